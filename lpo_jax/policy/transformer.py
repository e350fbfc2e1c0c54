"""The one decoder: a pre-norm, rotary, grouped-query, SwiGLU transformer in Flax NNX.

It is used as a pure pytree: no split or merge, no mutable state. Blocks are stacked on
a leading layer axis and scanned. A forward pass has two halves that every caller
composes:

  prefill  [B, P]     prompts      -> their last outputs and one Prompt of keys/values
  extend   [B, K, N]  responses    -> outputs and the grown Cache; they attend to the
                                      shared Prompt, to earlier tokens, to themselves

Training is prefill + extend; sampling is prefill, then extend by one token in a loop.
Calling the policy on [B, T] tokens is extend with no prompt and K = 1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from lpo_jax import sharding
from lpo_jax.policy import attention, rotary
from lpo_jax.policy.config import PolicyConfig
from lpo_jax.types import Array


class Prompt(NamedTuple):
  """Keys and values of B prompts, and which positions are real."""

  layers: tuple  # (keys, values): [L, B, Hkv, P, d], or a tuple of L such pairs
  mask: Array  # bool[B, P], left-padded


class Cache(NamedTuple):
  """Keys and values of the response tokens already taken; `length` of S are filled."""

  layers: tuple  # (keys, values): [L, B, K, Hkv, S, d], or a tuple of L such pairs
  length: Array  # i32[]


class Block(nnx.Module):
  """One layer: attention, then SwiGLU, each behind an RMSNorm."""

  def __init__(self, config: PolicyConfig, key: Array):
    keys = iter(jax.random.split(key, 7))
    dtype = jnp.dtype(config.param_dtype)

    def matrix(rows, columns, scale=1.0):
      std = 0.02 * scale
      return nnx.Param(std * jax.random.normal(next(keys), (rows, columns), dtype))

    width, head = config.width, config.head_dim
    depth_scale = (2 * config.layers) ** -0.5  # residual branches (GPT-2)
    self.attention_norm = nnx.Param(jnp.ones(width, dtype))
    self.query = matrix(width, config.heads * head)
    self.key = matrix(width, config.kv_heads * head)
    self.value = matrix(width, config.kv_heads * head)
    self.out = matrix(config.heads * head, width, depth_scale)
    self.mlp_norm = nnx.Param(jnp.ones(width, dtype))
    self.gate = matrix(width, config.mlp_width)
    self.up = matrix(width, config.mlp_width)
    self.down = matrix(config.mlp_width, width, depth_scale)
    if config.qkv_bias:
      self.query_bias = nnx.Param(jnp.zeros(config.heads * head, dtype))
      self.key_bias = nnx.Param(jnp.zeros(config.kv_heads * head, dtype))
      self.value_bias = nnx.Param(jnp.zeros(config.kv_heads * head, dtype))
    if config.qk_norm:
      self.query_norm = nnx.Param(jnp.ones(head, dtype))
      self.key_norm = nnx.Param(jnp.ones(head, dtype))
    self.config = config

  def __call__(self, x: Array, rope: tuple, own_mask: Array, prompt=None, cache=None,
               length=0):
    """Run the layer on x [B, K, N, D].

    Args:
      x: [B, K, N, D] residual stream.
      rope: (cos, sin), f32[B, K, N, head_dim / 2].
      own_mask: bool broadcastable to [B, K, N, S], what the N tokens see of the
        responses; S = N without a cache.
      prompt: the shared attention.Part, or None.
      cache: this layer's (keys, values) [B, K, Hkv, S, d] of earlier tokens, or None.
      length: filled slots of the cache.

    Returns:
      x [B, K, N, D] and this layer's (keys, values): of the N tokens, or the cache
      with them written at `length`.
    """
    queries, keys, values = self._project(rms_norm(x, self.attention_norm, self.config),
                                          rope)
    if cache is not None:  # written before it is read, so that it is not copied
      keys, values = (
        jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), length, axis=3)
        for old, new in zip(cache, (keys, values), strict=True))
    own = attention.Part(keys, values, own_mask)
    mixed = attention.attend(queries, (own,) if prompt is None else (prompt, own))
    mixed = mixed.reshape(*x.shape[:-1], -1)
    x = x + mixed @ self.out[...].astype(x.dtype)
    y = rms_norm(x, self.mlp_norm, self.config)
    gate = jax.nn.silu(y @ self.gate[...].astype(x.dtype))
    x = x + (gate * (y @ self.up[...].astype(x.dtype))) @ self.down[...].astype(x.dtype)
    return sharding.constrain_batch(x), (keys, values)

  def _project(self, y: Array, rope: tuple) -> tuple[Array, Array, Array]:
    """Return rotated queries [B,K,N,Hkv,G,d], rotated keys and values [B,K,Hkv,N,d]."""
    config = self.config
    heads = {}
    for name in ('query', 'key', 'value'):
      z = y @ getattr(self, name)[...].astype(y.dtype)
      if config.qkv_bias:
        bias = getattr(self, f'{name}_bias')[...].astype(y.dtype)
        z = z + _along_last(bias, z.ndim)
      z = z.reshape(*y.shape[:-1], -1, config.head_dim)
      if name != 'value':
        if config.qk_norm:
          z = rms_norm(z, getattr(self, f'{name}_norm'), config)
        z = rotary.rotate(z, *rope)
      heads[name] = z
    queries = heads['query'].reshape(*y.shape[:-1], config.kv_heads, -1,
                                     config.head_dim)
    return queries, jnp.swapaxes(heads['key'], 2, 3), jnp.swapaxes(heads['value'], 2, 3)


class Policy(nnx.Module):
  """A decoder-only transformer policy pi_theta."""

  def __init__(self, config: PolicyConfig, key: Array):
    """Initialise from scratch: normal(0.02), residual branches scaled by depth."""
    keys = jax.random.split(key, 3)
    dtype = jnp.dtype(config.param_dtype)
    shape = (config.vocab_size, config.width)
    self.embedding = nnx.Param(0.02 * jax.random.normal(keys[0], shape, dtype))
    self.blocks = jax.vmap(lambda k: Block(config, k))(
      jax.random.split(keys[1], config.layers))
    self.final_norm = nnx.Param(jnp.ones(config.width, dtype))
    if not config.tied_embeddings:
      self.unembedding = nnx.Param(
        0.02 * jax.random.normal(keys[2], shape[::-1], dtype))
    self.config = config

  def __call__(self, tokens: Array, positions: Array, mask: Array,
               images=None) -> Array:
    """Return logits f32[B, T, V] for whole sequences.

    Args:
      tokens: i32[B, T].
      positions: i32[B, T], 0 at each row's first real token.
      mask: bool[B, T], False on padding, left or right.
      images: must be None; this policy has no vision tower.

    Raises:
      ValueError: if images are given.
    """
    if images is not None:
      raise ValueError('this policy reads text only: images must be None')
    hidden, _ = self._forward(tokens[:, None], positions[:, None], mask[:, None], None,
                              None)
    return self.logits(hidden[:, 0])

  def prefill(self, tokens: Array, mask: Array) -> tuple[Array, Prompt]:
    """Run left-padded prompts once.

    Args:
      tokens: i32[B, P].
      mask: bool[B, P], False on the left padding.

    Returns:
      The last position's output [B, D], which predicts the first response token, and
      the Prompt that responses attend to.
    """
    positions = jnp.maximum(jnp.cumsum(mask, axis=-1) - 1, 0)
    hidden, layers = self._forward(tokens[:, None], positions[:, None], mask[:, None],
                                   None, None)
    layers = jax.tree.map(lambda kv: jnp.squeeze(kv, -4), layers)  # drop K = 1
    return hidden[:, 0, -1], Prompt(layers, mask)

  def extend(self, tokens: Array, prompt: Prompt, cache: Cache | None = None):
    """Run N more tokens of each of the K responses to each prompt.

    Args:
      tokens: i32[B, K, N].
      prompt: of the B prompts.
      cache: the responses' earlier tokens; None when `tokens` start the responses.

    Returns:
      Outputs [B, K, N, D], and the cache with the N tokens in it; None without one.
    """
    start = jnp.sum(prompt.mask, axis=-1)[:, None, None]  # each prompt's length
    start = start + (0 if cache is None else cache.length)
    positions = start + jax.lax.broadcasted_iota(jnp.int32, tokens.shape, 2)
    mask = jnp.ones((1, 1, tokens.shape[-1]), bool)
    hidden, layers = self._forward(tokens, positions, mask, prompt, cache)
    if cache is None:
      return hidden, None
    return hidden, Cache(layers, cache.length + tokens.shape[-1])

  def logits(self, hidden: Array) -> Array:
    """Return f32[..., V] for outputs [..., D]."""
    weight = (self.embedding[...].T if self.config.tied_embeddings
              else self.unembedding[...])
    return jnp.matmul(hidden, weight.astype(hidden.dtype),
                      preferred_element_type=jnp.float32)

  def unstack(self) -> 'Policy':
    """Return the same policy with its blocks as a tuple, so layers run unrolled."""
    leaves, structure = jax.tree.flatten(self)
    policy = jax.tree.unflatten(structure, leaves)
    policy.blocks = nnx.data(tuple(
      jax.tree.map(lambda a, i=i: a[i], self.blocks)
      for i in range(self.config.layers)))
    return policy

  def _forward(self, tokens, positions, mask, prompt, cache):
    """Return outputs [B, K, N, D] and every layer's (keys, values)."""
    config = self.config
    x = self.embedding[...][tokens].astype(config.dtype)
    x = sharding.constrain_batch(x)
    rope = rotary.angles(positions, config)
    width = tokens.shape[-1]
    length = 0 if cache is None else cache.length
    if cache is None:
      own_mask = _causal(width, width, 0, config) & mask[:, :, None, :]
    else:
      slots = jax.tree.leaves(cache.layers)[0].shape[-2]
      own_mask = _causal(width, slots, length, config)
    if prompt is not None:
      size = prompt.mask.shape[-1]
      prompt_mask = (_causal(width, size, size + length, config)
                     & prompt.mask[:, None, None, :])

    def body(block, x, prompt_layer, cache_layer):
      part = prompt_layer and attention.Part(*prompt_layer, prompt_mask)
      return block(x, rope, own_mask, part, cache_layer, length)

    x, layers = _each_layer(_remat(body, config.remat), self.blocks, x,
                            prompt and prompt.layers, cache and cache.layers)
    return rms_norm(x, self.final_norm, config), layers


def rms_norm(x: Array, weight: nnx.Param, config: PolicyConfig) -> Array:
  """Normalise the last axis by its root mean square, in float32."""
  y = x.astype(jnp.float32)
  y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + config.norm_eps)
  return (y * _along_last(weight[...].astype(jnp.float32), y.ndim)).astype(x.dtype)


def _along_last(vector: Array, ndim: int) -> Array:
  """Return a vector as the last of `ndim` axes."""
  return vector.reshape((1,) * (ndim - 1) + vector.shape)


def _each_layer(body, blocks, x, prompt, cache):
  """Carry x through the layers: a loop over a tuple, or a scan over stacked blocks.

  The scan carries the stacked cache along, so that it is updated and not collected.
  """
  if isinstance(blocks, tuple | list):
    collected = []
    for i, block in enumerate(blocks):
      x, layer = body(block, x, prompt and prompt[i], cache and cache[i])
      collected.append(layer)
    return x, tuple(collected)
  if cache is None:
    return jax.lax.scan(lambda x, layer: body(layer[0], x, layer[1], None), x,
                        (blocks, prompt))

  def cached(carry, layer):
    x, cache = carry
    i, block, prompt = layer
    mine = jax.tree.map(lambda c: c[i], cache)
    x, mine = body(block, x, prompt, mine)
    return (x, jax.tree.map(lambda c, new: c.at[i].set(new), cache, mine)), None

  layers = jnp.arange(jax.tree.leaves(blocks)[0].shape[0])
  return jax.lax.scan(cached, (x, cache), (layers, blocks, prompt))[0]


def _remat(body, policy: str):
  if policy == 'none':
    return body
  if policy == 'dots':
    saved = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return jax.checkpoint(body, policy=saved)
  return jax.checkpoint(body)


def _causal(queries: int, keys: int, offset, config: PolicyConfig) -> Array:
  """Return bool[1, 1, N, S]: query n sees key s when 0 <= n + offset - s < window.

  `offset` is how many positions query 0 stands after key 0.
  """
  distance = jnp.arange(queries)[:, None] + offset - jnp.arange(keys)[None]
  seen = distance >= 0
  if config.sliding_window is not None:
    seen &= distance < config.sliding_window
  return seen[None, None]
