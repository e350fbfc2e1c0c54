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

import jax
import jax.numpy as jnp
from flax import nnx

from lpo_jax import sharding
from lpo_jax.policy import attention, blockwise, flash, kv, linear, norm, rotary
from lpo_jax.policy.config import PolicyConfig
from lpo_jax.types import Array


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
    for i, name in enumerate(config.lora.targets if config.lora else ()):
      rows, columns = config.matrix_shapes[name]
      down = jax.random.uniform(jax.random.fold_in(key, i), (rows, config.lora.rank),
                                minval=-rows ** -0.5, maxval=rows ** -0.5)
      setattr(self, f'{name}_lora_a', nnx.Param(down))
      setattr(self, f'{name}_lora_b', nnx.Param(jnp.zeros((config.lora.rank, columns))))
    self.config = config

  def __call__(self, x: Array, rope: tuple, mask: Array, prompt=None, cache=None,
               length=0):
    """Run the layer on x [B, K, N, D].

    Args:
      x: [B, K, N, D] residual stream.
      rope: (cos, sin), f32[B, 1 or K, N, head_dim / 2].
      mask: without a cache, bool[B, 1 or K, N], which of the N tokens are real; with
        one, bool broadcastable to [B, K, N, S], which slots each token sees.
      prompt: its keys, values [B, Hkv, P, d] and mask: bool[B, P] without a cache,
        bool broadcastable to [B, K, N, P] with one; None for no prompt.
      cache: this layer's Slots with the earlier tokens, or None.
      length: filled slots of the cache.

    Returns:
      x [B, K, N, D] and the N tokens' keys and values [B, K, Hkv, N, d], or the cache
      with them written at `length`.
    """
    queries, keys, values = self._project(self._norm(x, self.attention_norm), rope)
    if cache is None:
      prompt = prompt and blockwise.Keys(*prompt)
      mixed = flash.attend(self.config.attention, queries,
                           blockwise.Keys(keys, values, mask), prompt,
                           window=self.config.sliding_window)
    else:  # written before it is read, so that it is not copied
      new = kv.Slots(jnp.swapaxes(keys, 3, 4), values)
      keys, values = kv.Slots(*(
        jax.lax.dynamic_update_slice_in_dim(old, x.astype(old.dtype), length, axis)
        for old, x, axis in zip(cache, new, (4, 3), strict=True)))
      parts = (attention.Part(*prompt), attention.Part(keys, values, mask))
      mixed = attention.attend(queries, parts)
    mixed = mixed.reshape(*x.shape[:-1], -1)
    x = x + self._linear('out', mixed)
    y = self._norm(x, self.mlp_norm)
    gate = jax.nn.silu(self._linear('gate', y))
    x = x + self._linear('down', gate * self._linear('up', y))
    kept = (keys, values) if cache is None else kv.Slots(keys, values)
    return sharding.constrain_residual(x, self.config.sequence_sharding), kept

  def _linear(self, name: str, x: Array) -> Array:
    """Return x W, and what the adapter of W adds."""
    y = linear.linear(x, getattr(self, name)[...])
    lora = self.config.lora
    if lora is None or name not in lora.targets:
      return y
    inner = linear.linear(x, getattr(self, f'{name}_lora_a')[...])
    return y + linear.linear(lora.scale * inner, getattr(self, f'{name}_lora_b')[...])

  def _norm(self, x: Array, weight: nnx.Param) -> Array:
    return norm.rms_norm(x, weight[...], self.config.norm_eps)

  def _project(self, y: Array, rope: tuple) -> tuple[Array, Array, Array]:
    """Return rotated queries [B,K,N,Hkv,G,d], rotated keys and values [B,K,Hkv,N,d]."""
    config = self.config
    heads = {}
    for name in ('query', 'key', 'value'):
      z = self._linear(name, y)
      if config.qkv_bias:
        bias = getattr(self, f'{name}_bias')[...].astype(y.dtype)
        z = z + _along_last(bias, z.ndim)
      z = z.reshape(*y.shape[:-1], -1, config.head_dim)
      if name != 'value':
        if config.qk_norm:
          z = self._norm(z, getattr(self, f'{name}_norm'))
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
    rope = rotary.angles(positions[:, None], self.config)
    hidden, _ = self._forward(tokens[:, None], rope, mask[:, None], None, None)
    return self.logits(hidden[:, 0])

  def prefill(self, tokens: Array, mask: Array) -> tuple[Array, kv.Prompt]:
    """Run left-padded prompts once.

    Args:
      tokens: i32[B, P].
      mask: bool[B, P], False on the left padding.

    Returns:
      The last position's output [B, D], which predicts the first response token, and
      the Prompt that responses attend to.
    """
    positions = jnp.maximum(jnp.cumsum(mask, axis=-1) - 1, 0)
    rope = rotary.angles(positions[:, None], self.config, limit=tokens.shape[1])
    hidden, layers = self._forward(tokens[:, None], rope, mask[:, None], None, None)
    layers = jax.tree.map(lambda kv: jnp.squeeze(kv, -4), layers)  # drop K = 1
    return hidden[:, 0, -1], kv.Prompt(layers, mask)

  def extend(self, tokens: Array, prompt: kv.Prompt, cache: kv.Cache | None = None):
    """Run N more tokens of each of the K responses to each prompt.

    Args:
      tokens: i32[B, K, N].
      prompt: of the B prompts.
      cache: the responses' earlier tokens; None when `tokens` start the responses.

    Returns:
      Outputs [B, K, N, D], and the cache with the N tokens in it; None without one.
    """
    width = tokens.shape[-1]
    slots = width if cache is None else cache.slots
    start = jnp.sum(prompt.mask, axis=-1)[:, None, None]  # each prompt's length
    start = start + (0 if cache is None else cache.length)
    positions = start + jnp.arange(width)[None, None]  # the same for all K
    rope = rotary.angles(positions, self.config, limit=prompt.mask.shape[-1] + slots)
    mask = jnp.ones((1, 1, width), bool)
    hidden, layers = self._forward(tokens, rope, mask, prompt, cache)
    if cache is None:
      return hidden, None
    return hidden, kv.Cache(layers, cache.length + width)

  def logits(self, hidden: Array) -> Array:
    """Return f32[..., V] for outputs [..., D]."""
    weight = (self.embedding[...].T if self.config.tied_embeddings
              else self.unembedding[...])
    return jnp.matmul(hidden, weight.astype(hidden.dtype),
                      preferred_element_type=jnp.float32)

  def unstack(self) -> 'Policy':
    """Return the same policy with its blocks as a tuple, so layers run unrolled.

    A program of few layers runs faster so, on CPU above all, since XLA fuses across
    them and slices no stacked weights; it takes longer to compile.
    """
    if isinstance(self.blocks, tuple | list):
      return self
    leaves, structure = jax.tree.flatten(self)
    policy = jax.tree.unflatten(structure, leaves)
    policy.blocks = nnx.data(tuple(
      jax.tree.map(lambda a, i=i: a[i], self.blocks)
      for i in range(self.config.layers)))
    return policy

  def _forward(self, tokens, rope, mask, prompt, cache):
    """Return outputs [B, K, N, D] and every layer's (keys, values)."""
    config = self.config
    x = sharding.lookup(self.embedding[...].astype(config.dtype), tokens)
    x = sharding.constrain_residual(x, config.sequence_sharding)
    length = 0 if cache is None else cache.length
    prompt_mask = prompt and prompt.mask
    if cache is not None:
      width, size = tokens.shape[-1], prompt.mask.shape[-1]
      mask = _causal(width, cache.slots, length, config)
      prompt_mask = (_causal(width, size, size + length, config)
                     & prompt.mask[:, None, None, :])

    def body(block, x, prompt_layer, cache_layer):
      part = prompt_layer and (*prompt_layer, prompt_mask)
      return block(x, rope, mask, part, cache_layer, length)

    blocks = self.unstack().blocks if config.unroll else self.blocks
    x, layers = _each_layer(_remat(body, config.remat), blocks, x,
                            prompt and prompt.layers, cache and cache.layers)
    return norm.rms_norm(x, self.final_norm[...], config.norm_eps), layers


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
