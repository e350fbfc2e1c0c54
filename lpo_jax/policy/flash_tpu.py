"""Attention of whole responses as Pallas kernels for TPUs.

The same result as `blockwise`, which is the oracle, in three kernels (Dao et al. 2022,
arXiv:2205.14135): outputs and their log-sum-exp; the gradient of queries; the gradient
of the keys and values of one part. A grid step meets one block of queries with one
block of keys, so scores live in the chip's vector memory only. Prompt and own keys are
two operands of one grid: step j reads a block of one or of the other, so the K
responses of a group share one copy of their prompt and the softmax is one. Blocks that
no query of a block sees are neither read nor computed.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from lpo_jax.policy import flash_tpu_kernels as kernels
from lpo_jax.policy import norm
from lpo_jax.policy.blockwise import Keys
from lpo_jax.types import Array


def attend(queries: Array, own: Keys, prompt: Keys | None, *,
           window: int | None = None, block: int = 512,
           interpret: bool = False) -> Array:
  """Attend to the prompt, to earlier tokens and to oneself; see `blockwise.attend`.

  Args:
    queries: [B, K, N, Hkv, G, d], G query heads to a key head; scaled by d ** -0.5
      here.
    own: of the same N tokens.
    prompt: of the P positions right before them; None for none.
    window: positions a query sees, itself included; None for all.
    block: the most queries or keys that a grid step takes.
    interpret: run the kernels as JAX operations, where there is no TPU.

  Returns:
    [B, K, N, Hkv, G, d] in the dtype of `queries`.
  """
  batch, samples, width, heads, group, size = queries.shape
  rows = jnp.moveaxis(queries * size**-0.5, 2, 4)  # [B, K, Hkv, G, N, d]
  count, rows_block = _cut(width, block)
  rows = _pad(rows.reshape(batch, samples, -1, width, size), count * rows_block, 3)
  operands, parts = [], []
  for keys in (own, prompt):
    if keys is None:
      continue
    offset = 0 if keys is own else -keys.mask.shape[-1]
    keys = keys if keys is own else Keys(*(x[:, None] for x in keys))
    blocks, keys_block = _cut(keys.mask.shape[-1], block)
    padded = functools.partial(_pad, width=blocks * keys_block)
    owners = keys.keys.shape[1]
    mask = jnp.broadcast_to(keys.mask, (batch, owners, keys.mask.shape[2]))
    bias = jnp.where(padded(mask, axis=2), 0.0, kernels.MASKED)[:, :, None]
    operands.append((padded(keys.keys, axis=3), padded(keys.values, axis=3), bias))
    parts.append(kernels.Part(offset, blocks, keys_block, rows_block, count, window))
  out = _attend((tuple(parts), interpret), rows, tuple(operands))[..., :width, :]
  out = out.reshape(batch, samples, heads, group, width, size)
  return jnp.moveaxis(out, 4, 2)


def _cut(width: int, block: int) -> tuple[int, int]:
  """Return how many blocks of at most `block` cover `width`, and their equal size."""
  unit = min(block, kernels.LANES)
  count = pl.cdiv(width, block)
  return count, pl.cdiv(width, count * unit) * unit


def _pad(x: Array, width: int, axis: int) -> Array:
  """Return `x` with zeros behind, up to a width."""
  short = [(0, 0)] * x.ndim
  short[axis] = (0, width - x.shape[axis])
  return jnp.pad(x, short)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(statics, queries, operands):
  """Return [B, K, H, N, d] for scaled queries of that shape.

  `operands` holds a part's keys and values [B, K or 1, Hkv, S, d] and what is added to
  its scores, f32[B, K or 1, 1, S].
  """
  return _forward(statics, queries, operands)[0]


def _forward(statics, queries, operands):
  parts, interpret = statics
  rows, depth = parts[0].rows, queries.shape[-1]
  specs = _Specs(parts, queries, operands)
  out, lse = pl.pallas_call(
    functools.partial(kernels.forward, parts), grid=specs.grid,
    in_specs=[specs.queries, *specs.keys], out_specs=[specs.queries, specs.sums],
    out_shape=[jax.ShapeDtypeStruct(queries.shape, queries.dtype),
               jax.ShapeDtypeStruct(specs.sums_shape, jnp.float32)],
    scratch_shapes=[pltpu.VMEM((rows, depth), jnp.float32),
                    pltpu.VMEM((rows, kernels.LANES), jnp.float32),
                    pltpu.VMEM((rows, kernels.LANES), jnp.float32)],
    compiler_params=_params(specs.grid, 4), interpret=interpret,
    name='attention_forward')(queries, *sum(operands, ()))
  return out, (queries, operands, out, lse)


def _backward(statics, saved, dout):
  parts, interpret = statics
  queries, operands, out, lse = saved
  rows, depth = parts[0].rows, queries.shape[-1]
  delta = norm.vector_product(dout, out)[..., None, :]
  specs = _Specs(parts, queries, operands)
  dqueries = pl.pallas_call(
    functools.partial(kernels.queries_gradient, parts), grid=specs.grid,
    in_specs=[specs.queries, specs.queries, specs.sums, specs.sums, *specs.keys],
    out_specs=specs.queries,
    out_shape=jax.ShapeDtypeStruct(queries.shape, queries.dtype),
    scratch_shapes=[pltpu.VMEM((rows, depth), jnp.float32),
                    pltpu.VMEM((rows, kernels.LANES), jnp.float32),
                    pltpu.VMEM((rows, kernels.LANES), jnp.float32)],
    compiler_params=_params(specs.grid, 4), interpret=interpret,
    name='attention_backward_queries')(queries, dout, lse, delta, *sum(operands, ()))
  grads = tuple(
    (*_keys_gradient(part, interpret, queries, dout, lse, delta, *operand), None)
    for part, operand in zip(parts, operands, strict=True))
  return dqueries, grads


_attend.defvjp(_forward, _backward)


def _keys_gradient(part, interpret, queries, dout, lse, delta, keys, values, bias):
  """Return the gradients of one part's keys and values.

  A block of keys stays while all queries that see it pass by: of the G heads, and of
  the K responses if it is a prompt's.
  """
  batch, samples, heads, _, depth = queries.shape
  _, owners, kv_heads = keys.shape[:3]
  group = heads // kv_heads
  grid = (batch, owners, kv_heads, part.count, samples // owners, group, part.queries)

  def rows_at(b, o, h, j, k, g, i):  # one of o and k is 0
    return b, o + k, h * group + g, part.near_queries(i, j), 0

  def sums_at(*index):
    b, k, h, i, _ = rows_at(*index)
    return b, k, h, 0, i

  rows = pl.BlockSpec((None, None, None, part.rows, depth), rows_at)
  sums = pl.BlockSpec((None, None, None, 1, part.rows), sums_at)
  block = pl.BlockSpec((None, None, None, part.size, depth),
                       lambda b, o, h, j, *_: (b, o, h, j, 0))
  return pl.pallas_call(
    functools.partial(kernels.keys_gradient, part), grid=grid,
    in_specs=[rows, rows, sums, sums, block, block,
              pl.BlockSpec((None, None, 1, part.size),
                           lambda b, o, h, j, *_: (b, o, 0, j))],
    out_specs=[block, block],
    out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (keys, values)],
    scratch_shapes=[pltpu.VMEM((part.size, depth), jnp.float32),
                    pltpu.VMEM((part.size, depth), jnp.float32),
                    pltpu.VMEM((part.size, kernels.LANES), jnp.float32)],
    compiler_params=_params(grid, 4), interpret=interpret,
    name='attention_backward_keys')(queries, dout, lse, delta, keys, values, bias)


def _params(grid, parallel: int):
  """Say which axes of a grid are independent; along the others sums are carried."""
  kinds = ['parallel'] * parallel + ['arbitrary'] * (len(grid) - parallel)
  return pltpu.CompilerParams(dimension_semantics=tuple(kinds))


class _Specs:
  """The grid (B, K, H, blocks of queries, blocks of keys of all parts) and its blocks.

  While a step meets one part, the other's index stands still, so nothing is read.
  """

  def __init__(self, parts, queries, operands):
    batch, samples, heads, width, depth = queries.shape
    blocks = sum(part.count for part in parts)
    self.grid = (batch, samples, heads, parts[0].queries, blocks)
    self.queries = pl.BlockSpec((None, None, None, parts[0].rows, depth),
                                lambda b, k, h, i, j: (b, k, h, i, 0))
    self.sums = pl.BlockSpec((None, None, None, 1, parts[0].rows),
                             lambda b, k, h, i, j: (b, k, h, 0, i))
    self.sums_shape = (batch, samples, heads, 1, width)
    self.keys = []
    starts = kernels.starts(parts)
    for start, part, (keys, *_) in zip(starts, parts, operands, strict=True):
      group, shared = heads // keys.shape[2], keys.shape[1] < samples

      def block_at(b, k, h, i, j, *, start=start, part=part, group=group,
                   shared=shared):
        return (b, 0 if shared else k, jax.lax.div(h, jnp.int32(group)),
                part.near_keys(i, j - start), 0)

      def bias_at(*index, block_at=block_at):
        b, k, _, j, _ = block_at(*index)
        return b, k, 0, j

      block = pl.BlockSpec((None, None, None, part.size, depth), block_at)
      bias = pl.BlockSpec((None, None, 1, part.size), bias_at)
      self.keys += [block, block, bias]
