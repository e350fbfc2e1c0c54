"""Attention over several parts, merged exactly.

The K responses of a group share one prompt. So a query attends to separate parts,
  prompt  k, v [B, Hkv, P, d]             one copy for all K responses
  own     k [B K, Hkv, d, S], v [.., S, d]   each response's own positions, in slots
and the parts are merged by their log-sum-exp: with scores z_j of part j,
  out = sum_j exp(z_j - m) v_j / sum_j sum exp(z_j - m),   m = max over all parts.
The prompt's product is one [K G N, d] x [d, P] matrix multiplication per key head.
Scores and weights are float32; the result has the dtype of the queries. Numbers of a
narrower cache are scaled after the products, one factor a slot, never spread out.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lpo_jax.types import Array

_MASKED = -1e30  # finite: a fully masked query averages instead of dividing by zero


class Part(NamedTuple):
  """Keys and values that the K responses to a prompt share."""

  keys: Array  # [B, Hkv, P, d]
  values: Array  # the same
  mask: Array  # bool, broadcastable to [B, K, N, P]


class Own(NamedTuple):
  """Keys and values of which each response has its own, as in `kv.Slots`.

  The axes B and K are one, and the product is taken so: see there.
  """

  keys: Array  # [B K, Hkv, d, S]
  values: Array  # [B K, Hkv, S, d]
  mask: Array  # bool, broadcastable to [B, K, N, S]
  key_scale: Array | None = None  # f32[B K, Hkv, 1, S] of int8 keys
  value_scale: Array | None = None  # f32[B K, Hkv, S, 1]


def attend(queries: Array, parts: tuple[Part | Own, ...]) -> Array:
  """Attend to all parts as if they were one sequence.

  Args:
    queries: [B, K, N, Hkv, G, d], G query heads to a key head; scaled by
      d ** -0.5 here.
    parts: at least one; every query should see at least one key.

  Returns:
    [B, K, N, Hkv, G, d] in the dtype of `queries`.
  """
  queries = queries * queries.shape[-1] ** -0.5
  scores = [_scores(queries, part) for part in parts]
  peak = functools.reduce(jnp.maximum, (
    _own_order(jnp.max(score, axis=-1), part)
    for score, part in zip(scores, parts, strict=True)))
  peak = jax.lax.stop_gradient(peak)
  total, mixed = 0.0, 0.0
  for score, part in zip(scores, parts, strict=True):
    weights = jnp.exp(score - _own_order(peak, part)[..., None])
    total += _own_order(jnp.sum(weights, axis=-1), part)
    mixed += _own_order(_mix(weights, part, queries.dtype), part)
  out = mixed / total[..., None].astype(mixed.dtype)  # [B, K, Hkv, N, G, d]
  return jnp.swapaxes(out, 2, 3).astype(queries.dtype)


def _own_order(x: Array, part: Part | Own) -> Array:
  """Swap K and Hkv of a shared part's [B, Hkv, K, ...], so that all parts agree."""
  return x if isinstance(part, Own) else jnp.swapaxes(x, 1, 2)


def _scores(queries: Array, part: Part | Own) -> Array:
  """Return f32 scores, masked keys at a large negative number.

  In the order in which the product is one matrix product a head, without a copy of
  the scores: [B, Hkv, K, N, G, P] of a shared part, [B, K, Hkv, N, G, S] of the own.
  """
  if isinstance(part, Own):
    queries = jnp.swapaxes(queries, 2, 3)
    scores = jnp.einsum('rhmd,rhds->rhms', _rows(queries),
                        part.keys.astype(queries.dtype),
                        preferred_element_type=jnp.float32)
    if part.key_scale is not None:
      scores *= part.key_scale
    scores = scores.reshape(*queries.shape[:-1], -1)
  else:
    scores = jnp.einsum('bknhgd,bhsd->bhkngs', queries, part.keys,
                        preferred_element_type=jnp.float32)
  mask = part.mask[:, :, None, :, None, :]
  return jnp.where(_own_order(mask, part), scores, _MASKED)


def _mix(weights: Array, part: Part | Own, dtype) -> Array:
  """Return the weighted sums of a part's values, in the order of its weights."""
  if not isinstance(part, Own):
    return jnp.einsum('bhkngs,bhsd->bhkngd', weights.astype(dtype),
                      part.values.astype(dtype), preferred_element_type=jnp.float32)
  rows = _rows(weights)
  if part.value_scale is not None:
    rows *= part.value_scale.mT
  mixed = jnp.einsum('rhms,rhsd->rhmd', rows.astype(dtype), part.values.astype(dtype),
                     preferred_element_type=jnp.float32)
  return mixed.reshape(*weights.shape[:-1], -1)


def _rows(x: Array) -> Array:
  """Return [B, K, Hkv, N, G, .] as [B K, Hkv, N G, .]."""
  return jax.lax.collapse(jax.lax.collapse(x, 0, 2), 2, 4)
