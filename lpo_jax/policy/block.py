"""One layer of the decoder: pre-norm attention and SwiGLU, with what a family adds.

It attends to a prompt that K responses share, to earlier tokens in a cache, and to the
tokens given: see `transformer` for the passes that are composed of it.
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


def _along_last(vector: Array, ndim: int) -> Array:
  """Return a vector as the last of `ndim` axes."""
  return vector.reshape((1,) * (ndim - 1) + vector.shape)
