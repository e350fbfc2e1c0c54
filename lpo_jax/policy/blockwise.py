"""Causal attention of whole responses, a block of queries at a time.

Each block meets the prompt and the keys up to its own end; the backward pass computes
its weights again from their log-sum-exp (Dao et al. 2022, arXiv:2205.14135):

  w_s = exp(q k_s - lse)   out = sum_s w_s v_s   delta = <d out, out>
  d q = sum_s w_s (<d out, v_s> - delta) k_s     and so for k and v

What is beyond the causal diagonal, or before the sliding window, costs nothing, nor, if
asked, do blocks without a real query. All K responses read one copy of their prompt,
unless both are short. Weights and sums are float32, products in the dtype of queries.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lpo_jax.policy import linear, norm
from lpo_jax.types import Array

_MASKED = -1e30  # finite: a query that sees nothing averages instead of dividing by 0
_SHORT_PROMPT, _SHORT_RESPONSE = 64, 128  # up to both, prompts are copied K times


class Keys(NamedTuple):
  """Keys, values and which of them are real."""

  keys: Array  # [B, K, Hkv, N, d], or [B, Hkv, P, d] shared by the K responses
  values: Array
  mask: Array  # bool[B, 1 or K, N], or bool[B, P]


def attend(queries: Array, own: Keys, prompt: Keys | None, *,
           window: int | None = None, block: int = 0, skip: bool = False) -> Array:
  """Attend to the prompt, to earlier tokens and to oneself.

  Args:
    queries: [B, K, N, Hkv, G, d], G query heads to a key head; scaled by d ** -0.5
      here.
    own: of the same N tokens.
    prompt: of the P positions right before them; None for none.
    window: positions a query sees, itself included; None for all.
    block: queries at a time; 0: see `block_of`.
    skip: blocks in which no token of `own` is real are not computed, but 0.

  Returns:
    [B, K, N, Hkv, G, d] in the dtype of `queries`.
  """
  batch, samples, width, heads, group, size = queries.shape
  rows = jnp.moveaxis(queries * size**-0.5, 2, 3)
  rows = rows.reshape(batch, samples, heads, width * group, size)
  before = 0 if prompt is None else prompt.keys.shape[2]
  block = block or block_of(width, before)
  if is_copied(width, before):
    own, prompt = _joined(prompt, own), None
  else:
    before = 0
  out = _attend((window, block, group, skip, before), rows, own, prompt)
  return jnp.moveaxis(out.reshape(batch, samples, heads, width, group, size), 3, 2)


def block_of(width: int, before: int = 0) -> int:
  """Return how many of N queries are taken at a time by default.

  64, or 32 where prompts are copied; but a sixteenth of N where that is more, since a
  program grows with the blocks.

  Args:
    width: N.
    before: P, positions of the prompt.
  """
  return max(32 if is_copied(width, before) else 64, -(-width // 16))


def is_copied(width: int, before: int) -> bool:
  """Return whether a prompt of P positions is copied for each response of N tokens.

  Products as small as theirs cost less as parts of larger ones.
  """
  return 0 < before <= _SHORT_PROMPT and width <= _SHORT_RESPONSE


def _joined(prompt, own):
  """Return the keys of each response with those of its prompt before them."""
  batch, samples = own.keys.shape[:2]

  def join(shared, x, *lead):
    shared = jnp.broadcast_to(shared[:, None], (*lead, *shared.shape[1:]))
    return jnp.concatenate([shared, jnp.broadcast_to(x, (*lead, *x.shape[2:]))], -2)

  lead = batch, own.mask.shape[1]
  mask = join(prompt.mask[..., None], own.mask[..., None], *lead)[..., 0]
  return Keys(join(prompt.keys, own.keys, batch, samples),
              join(prompt.values, own.values, batch, samples), mask)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(statics, queries, own, prompt):
  """Return [B, K, Hkv, N G, d] for scaled queries of that shape."""
  return _forward(statics, queries, own, prompt)[0]


def _forward(statics, queries, own, prompt):
  outs, sums = [], []
  for rows, live, parts in _blocks(statics, queries.shape, own, prompt):
    def mixed(query, parts=parts):
      scores = [part.scores(query) for part in parts]
      peak = functools.reduce(jnp.maximum, (
        part.merge(jnp.max(score, -1, keepdims=True))
        for part, score in zip(parts, scores, strict=True)))
      total = mixed = 0.0
      for part, score in zip(parts, scores, strict=True):
        weights = jnp.exp(score - part.lay(peak))
        total += part.merge(jnp.sum(weights, -1, keepdims=True))
        mixed += part.merge(_product('ms,sd->md', weights, part.values))
      return (mixed / total).astype(query.dtype), peak + jnp.log(total)

    out, lse = _where_live(live, mixed, queries[:, :, :, rows])
    outs.append(out)
    sums.append(lse)
  out, lse = jnp.concatenate(outs, 3), jnp.concatenate(sums, 3)
  return out, (queries, own, prompt, out, lse)


def _backward(statics, saved, dout):
  queries, own, prompt, out, lse = saved
  delta = norm.vector_product(dout, out)[..., None]
  totals = [[jnp.zeros_like(x.mT, jnp.float32) for x in keys[:2]]  # [.., d, S]: faster
            for keys in (own, prompt) if keys is not None]
  dqueries = []
  for rows, live, parts in _blocks(statics, queries.shape, own, prompt):
    def slopes(*here, parts=parts):
      dquery, news = 0.0, []
      for part in parts:
        query, doutput, normaliser, shift = map(part.lay, here)
        weights = jnp.exp(part.scores(here[0]) - normaliser)
        slope = weights * (_product('md,sd->ms', doutput, part.values) - shift)
        dquery += part.merge(_product('ms,sd->md', slope, part.keys))
        news.append((linear.over_rows(*_alike(query, slope)),
                     linear.over_rows(*_alike(doutput, weights))))
      return dquery.astype(queries.dtype), news

    dquery, news = _where_live(
      live, slopes, *(x[:, :, :, rows] for x in (queries, dout, lse, delta)))
    for part, total, new in zip(parts, totals, news, strict=True):
      total[:] = (x.at[..., part.seen].add(y) for x, y in zip(total, new, strict=True))
    dqueries.append(dquery)
  grads = [Keys(*(x.mT.astype(keys.keys.dtype) for x in total), None)
           for keys, total in zip((own, prompt), totals, strict=False)]
  return jnp.concatenate(dqueries, 3), grads[0], None if prompt is None else grads[1]


_attend.defvjp(_forward, _backward)


def _where_live(live, function, *args):
  """Return function(*args), or zeros where `live` is False; None: it is True."""
  if live is None:
    return function(*args)
  function = jax.jit(function)  # traced once, for its shapes and for its values
  shapes = jax.eval_shape(function, *args)
  return jax.lax.cond(live, function, lambda *_: jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype), shapes), *args)


class _Part(NamedTuple):
  """Keys that a block of queries meets, as one matrix [M, d] x [d, S] a head.

  Queries are [B, K, Hkv, M, d]; those of all K responses, [B, Hkv, K M, d], meet the
  keys [B, Hkv, P, d] that they share.
  """

  keys: Array  # [B, (K,) Hkv, S, d]
  values: Array
  visible: Array  # bool, broadcastable to the scores
  seen: slice  # of all keys
  samples: int  # K, or 0 if every response has its own

  def lay(self, x: Array) -> Array:
    """Return [B, K, Hkv, M, ...] as the part's rows."""
    if not self.samples:
      return x
    x = jnp.swapaxes(x, 1, 2)
    return x.reshape(*x.shape[:2], -1, x.shape[-1])

  def merge(self, x: Array) -> Array:
    """Return the part's rows as [B, K, Hkv, M, ...]."""
    if not self.samples:
      return x
    x = x.reshape(*x.shape[:2], self.samples, -1, x.shape[-1])
    return jnp.swapaxes(x, 1, 2)

  def scores(self, query: Array) -> Array:
    """Return f32[..., M, S], hidden keys at a large negative number."""
    scores = _product('md,sd->ms', self.lay(query), self.keys)
    return jnp.where(self.visible, scores, _MASKED)


def _blocks(statics, shape, own, prompt):
  """Yield each block's rows of [N G], whether any is real, and the parts they see."""
  window, block, group, skip, before = statics
  samples, width = shape[1], shape[3] // group
  for start in range(0, width, block):
    stop = min(start + block, width)
    first, last = 0, before + stop
    if window is not None:
      first = max(0, before + start - window + 1) // block * block
    seen = slice(first, last)
    index = jnp.repeat(jnp.arange(start, stop), group)[:, None]
    parts = [_Part(
      own.keys[:, :, :, seen], own.values[:, :, :, seen],
      _within(before + index - jnp.arange(first, last)[None], window)[None, None, None]
      & own.mask[:, :, None, None, seen], seen, 0)]
    if prompt is not None:
      size = prompt.keys.shape[2]
      visible = prompt.mask[:, None, None]
      if window is not None:
        distance = jnp.tile(index, (samples, 1)) + size - jnp.arange(size)[None]
        visible &= _within(distance, window)[None, None]
      parts.append(_Part(prompt.keys, prompt.values, visible, slice(None), samples))
    live = jnp.any(own.mask[..., before + start:before + stop]) if skip else None
    yield slice(start * group, stop * group), live, parts


def _within(distance: Array, window: int | None) -> Array:
  """Return whether a query sees a key so many positions before it."""
  return (distance >= 0) if window is None else (distance >= 0) & (distance < window)


def _product(axes: str, a: Array, b: Array) -> Array:
  """Return a product of matrices for every head, summed in float32."""
  left, right = axes.split(',')
  right, out = right.split('->')
  return jnp.einsum(f'...{left},...{right}->...{out}', *_alike(a, b),
                    preferred_element_type=jnp.float32)


def _alike(a: Array, b: Array) -> tuple[Array, Array]:
  """Return two factors in one dtype, bfloat16 if they differ."""
  dtype = a.dtype if a.dtype == b.dtype else jnp.bfloat16
  return a.astype(dtype), b.astype(dtype)
