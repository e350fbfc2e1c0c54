"""What one grid step of the TPU attention kernels does; `flash_tpu` lays the grids.

A step holds a block of queries [M, d] and one of keys [S, d]. With z = q k + bias,
hidden where a query may not look,

  forward     running peak m, total sum exp(z - m) and mixture sum exp(z - m) v
  backward    w = exp(z - lse),  slope = w (<d out, v> - delta)
              d q = sum slope k,  d k = sum slope q,  d v = sum w d out

Sums stay in vector memory from step to step, in float32.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from lpo_jax.types import Array

MASKED = -1e30  # finite: a query that sees nothing averages instead of dividing by 0
LANES = 128  # of a vector register: widths of blocks are multiples of it


class Part(NamedTuple):
  """Where a part's keys stand, and how its blocks of keys meet those of queries."""

  offset: int  # position of the first key; the first query's is 0
  count: int  # blocks of keys
  size: int  # keys in a block
  rows: int  # queries in a block
  queries: int  # blocks of queries
  window: int | None

  def lag(self, i, j):
    """Return how far the first key of block j stands after query block i's first."""
    return j * self.size + self.offset - i * self.rows

  def meets(self, i, j):
    """Return whether some query of block i sees some key of block j; masks aside."""
    lag = self.lag(i, j)
    seen = lag < self.rows
    if self.window is not None:
      seen &= lag + self.size > 1 - self.window
    return seen

  def hide(self, scores: Array, i, j, queries: int) -> Array:
    """Hide the keys after a query or before its window; queries lie on that axis."""
    if self.offset and self.window is None:
      return scores  # of a prompt every query sees everything
    index = functools.partial(jax.lax.broadcasted_iota, jnp.int32, scores.shape)
    distance = index(queries) - index(1 - queries)
    seen = distance >= self.lag(i, j)
    if self.window is not None:
      seen &= distance < self.lag(i, j) + self.window
    return jnp.where(seen, scores, MASKED)

  def near_keys(self, i, j):
    """Return the block of keys that queries i meet nearest to j: what to have read."""
    last = (i + 1) * self.rows - 1 - self.offset
    first = 0 if self.window is None else (
      i * self.rows - self.window + 1 - self.offset)
    return _clip(j, _block(first, self.size, self.count),
                 _block(last, self.size, self.count))

  def near_queries(self, i, j):
    """Return the block of queries that keys j meet nearest to i."""
    first = j * self.size + self.offset
    last = self.queries * self.rows if self.window is None else (
      first + self.size + self.window - 2)
    return _clip(i, _block(first, self.rows, self.queries),
                 _block(last, self.rows, self.queries))


def starts(parts) -> list[int]:
  """Return the grid step at which each part begins."""
  return [sum(part.count for part in parts[:n]) for n in range(len(parts))]


def each_part(parts, refs, meet):
  """Call `meet(part, keys, values, bias, i, j)` for the part of this grid step."""
  i, step = pl.program_id(3), pl.program_id(4)
  for n, (start, part) in enumerate(zip(starts(parts), parts, strict=True)):
    j = step - start
    here = (j >= 0) & (j < part.count) & part.meets(i, j)
    pl.when(here)(functools.partial(meet, part, *refs[3 * n:3 * n + 3], i, j))


def forward(parts, queries, *refs):
  """Write the outputs of a block of queries and their log-sum-exp, f32[1, M]."""
  *keys, out, lse, mixed, peak, total = refs

  @pl.when(pl.program_id(4) == 0)
  def _():
    mixed[...] = jnp.zeros_like(mixed)
    total[...] = jnp.zeros_like(total)
    peak[...] = jnp.full_like(peak, -jnp.inf)

  def meet(part, keys, values, bias, i, j):
    scores = part.hide(_dot(queries[...], keys[...], 1, 1) + bias[...], i, j, 0)
    before = peak[:, :1]
    now = jnp.maximum(before, jnp.max(scores, 1, keepdims=True))
    fade, weights = jnp.exp(before - now), jnp.exp(scores - now)
    peak[...] = jnp.broadcast_to(now, peak.shape)
    total[...] = total[...] * fade + jnp.sum(weights, 1, keepdims=True)
    mixed[...] = mixed[...] * fade + _dot(weights.astype(values.dtype), values[...],
                                          1, 0)

  each_part(parts, keys, meet)

  @pl.when(pl.program_id(4) == pl.num_programs(4) - 1)
  def _():
    out[...] = (mixed[...] / total[:, :1]).astype(out.dtype)
    lse[...] = jnp.transpose(peak[...] + jnp.log(total[...]))[:1]


def queries_gradient(parts, queries, dout, lse, delta, *refs):
  """Write the gradient of a block of queries."""
  *keys, dqueries, total, normaliser, shift = refs

  @pl.when(pl.program_id(4) == 0)
  def _():
    total[...] = jnp.zeros_like(total)
    normaliser[...] = as_column(lse[...])
    shift[...] = as_column(delta[...])

  def meet(part, keys, values, bias, i, j):
    scores = part.hide(_dot(queries[...], keys[...], 1, 1) + bias[...], i, j, 0)
    weights = jnp.exp(scores - normaliser[:, :1])
    slope = weights * (_dot(dout[...], values[...], 1, 1) - shift[:, :1])
    total[...] += _dot(slope.astype(keys.dtype), keys[...], 1, 0)

  each_part(parts, keys, meet)

  @pl.when(pl.program_id(4) == pl.num_programs(4) - 1)
  def _():
    dqueries[...] = total[...].astype(dqueries.dtype)


def keys_gradient(part, queries, dout, lse, delta, keys, values, bias, dkeys, dvalues,
                 key_sum, value_sum, hidden):
  """Write the gradients of a block of a part's keys and values.

  Keys lie along the first axis of scores here, so that no block is transposed.
  """
  j, k, g, i = (pl.program_id(n) for n in range(3, 7))

  @pl.when((k == 0) & (g == 0) & (i == 0))
  def _():
    key_sum[...] = jnp.zeros_like(key_sum)
    value_sum[...] = jnp.zeros_like(value_sum)
    hidden[...] = as_column(bias[...])

  @pl.when(part.meets(i, j))
  def _():
    scores = part.hide(_dot(keys[...], queries[...], 1, 1) + hidden[:, :1], i, j, 1)
    weights = jnp.exp(scores - lse[...])
    value_sum[...] += _dot(weights.astype(dout.dtype), dout[...], 1, 0)
    slope = weights * (_dot(values[...], dout[...], 1, 1) - delta[...])
    key_sum[...] += _dot(slope.astype(queries.dtype), queries[...], 1, 0)

  last = [pl.num_programs(n) - 1 for n in range(4, 7)]

  @pl.when((k == last[0]) & (g == last[1]) & (i == last[2]))
  def _():
    dkeys[...] = key_sum[...].astype(dkeys.dtype)
    dvalues[...] = value_sum[...].astype(dvalues.dtype)


def as_column(row: Array) -> Array:
  """Return f32[1, M] as [M, lanes]: Mosaic transposes whole registers."""
  return jnp.transpose(jnp.broadcast_to(row, (LANES, row.shape[1])))


def _dot(a: Array, b: Array, left: int, right: int) -> Array:
  """Return the product of two matrices over one axis of each, summed in float32."""
  return jax.lax.dot_general(a, b, (((left,), (right,)), ((), ())),
                             preferred_element_type=jnp.float32)


def _clip(index, first, last):
  return jnp.minimum(jnp.maximum(index, first), last)


def _block(position, size: int, count: int):
  """Return the block that a position lies in, or the one nearest to it."""
  return jnp.minimum(jax.lax.div(jnp.maximum(jnp.int32(position), 0), jnp.int32(size)),
                     count - 1)
