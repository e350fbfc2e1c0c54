"""One layer of the decoder: pre-norm attention and SwiGLU, with what a family adds.

What its rows attend to is given by the pass, see `mixing`; all else is row by row.
"""

import itertools

import jax
import jax.numpy as jnp
from flax import nnx

from lpo_jax import sharding
from lpo_jax.policy import linear, norm, rotary, swiglu
from lpo_jax.policy.config import PolicyConfig
from lpo_jax.types import Array

_HEADS = 'query', 'key', 'value'
_WIDE = 'gate', 'up'


class Block(nnx.Module):
  """One layer: attention, then SwiGLU, each behind an RMSNorm."""

  turned = False  # whether its matrices are those of `turn`

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

  def __call__(self, x: Array, rope: tuple, attend):
    """Run the layer on the rows of a pass.

    Args:
      x: [*rows, D] residual stream.
      rope: (cos, sin), f32 broadcastable to [*rows, head_dim / 2].
      attend: of `mixing`, what the rows attend to.

    Returns:
      x [*rows, D], and what `attend` keeps of the layer.
    """
    mixed, kept = attend(*self._project(self._norm(x, self.attention_norm), rope))
    x = x + self._linear('out', mixed.reshape(*x.shape[:-1], -1))
    y = self._norm(x, self.mlp_norm)
    x = x + self._linear('down', swiglu.swiglu(*self._linears(_WIDE, y)))
    return sharding.constrain_residual(x, self.config.sequence_sharding), kept

  def turn(self) -> 'Block':
    """Return the same layer with W^T for every matrix W, as `linear.turned` reads.

    Matrices that multiply the same rows become one.
    """
    block = jax.tree.map(lambda x: x.T if x.ndim == 2 else x, self)
    for names in (_HEADS, _WIDE):
      whole = jnp.concatenate([getattr(block, name)[...] for name in names])
      setattr(block, '_'.join(names), nnx.Param(whole))
      for name in names:
        delattr(block, name)
    block.turned = True
    return block

  def _linear(self, name: str, x: Array) -> Array:
    """Return x W, and what the adapter of W adds."""
    return self._adapted(name, x, self._product(x, name))

  def _linears(self, names: tuple[str, ...], x: Array) -> list[Array]:
    """Return x W of several W, and what their adapters add."""
    if not self.turned:
      return [self._linear(name, x) for name in names]
    ends = itertools.accumulate(self.config.matrix_shapes[name][1] for name in names)
    parts = jnp.split(self._product(x, '_'.join(names)), [*ends][:-1], axis=-1)
    return [self._adapted(name, x, y) for name, y in zip(names, parts, strict=True)]

  def _product(self, x: Array, name: str) -> Array:
    return (linear.turned if self.turned else linear.linear)(
      x, getattr(self, name)[...])

  def _adapted(self, name: str, x: Array, y: Array) -> Array:
    """Return y, and what the adapter of W adds."""
    lora = self.config.lora
    if lora is None or name not in lora.targets:
      return y
    inner = self._product(x, f'{name}_lora_a')
    return y + self._product(lora.scale * inner, f'{name}_lora_b')

  def _norm(self, x: Array, weight: nnx.Param) -> Array:
    return norm.rms_norm(x, weight[...], self.config.norm_eps)

  def _project(self, y: Array, rope: tuple) -> tuple[Array, Array, Array]:
    """Return rotated queries [*rows, Hkv, G, d], rotated keys, values [*rows, Hkv, d].
    """
    config = self.config
    heads = {}
    for name, z in zip(_HEADS, self._linears(_HEADS, y), strict=True):
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
    return queries, heads['key'], heads['value']


def _along_last(vector: Array, ndim: int) -> Array:
  """Return a vector as the last of `ndim` axes."""
  return vector.reshape((1,) * (ndim - 1) + vector.shape)
