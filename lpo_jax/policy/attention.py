"""Attention over several parts, merged exactly.

The K responses of a group share one prompt. So a query attends to separate parts,
  prompt  k, v [B, Hkv, P, d]       one copy for all K responses
  own     k, v [B, K, Hkv, S, d]    each response's own positions
and the parts are merged by their log-sum-exp: with scores z_j of part j,
  out = sum_j exp(z_j - m) v_j / sum_j sum exp(z_j - m),   m = max over all parts.
The prompt's product is one [K G N, d] x [d, P] matrix multiplication per key head.
Scores and weights are float32; the result has the dtype of the queries.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lpo_jax.types import Array

_MASKED = -1e30  # finite: a fully masked query averages instead of dividing by zero


class Part(NamedTuple):
  """Keys and values that a query may look at."""

  keys: Array  # [B, Hkv, P, d] shared by the responses, or [B, K, Hkv, S, d]
  values: Array
  mask: Array  # bool, broadcastable to [B, K, N, P] or [B, K, N, S]


def attend(queries: Array, parts: tuple[Part, ...]) -> Array:
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
  peaks = [jnp.max(score, axis=-1) for score in scores]
  peak = peaks[0]
  for other in peaks[1:]:
    peak = jnp.maximum(peak, other)
  peak = jax.lax.stop_gradient(peak)[..., None]
  weights = [jnp.exp(score - peak) for score in scores]
  total = sum(jnp.sum(weight, axis=-1, keepdims=True) for weight in weights)
  mixed = sum(
    _mix(weight.astype(queries.dtype), part)
    for weight, part in zip(weights, parts, strict=True)
  )
  out = mixed / total.astype(mixed.dtype)  # [B, K, Hkv, N, G, d]
  return jnp.swapaxes(out, 2, 3).astype(queries.dtype)


def _scores(queries: Array, part: Part) -> Array:
  """Return f32[B, K, Hkv, N, G, keys], masked keys at a large negative number."""
  spec = 'bknhgd,bhsd->bkhngs' if part.keys.ndim == 4 else 'bknhgd,bkhsd->bkhngs'
  scores = jnp.einsum(spec, queries, part.keys, preferred_element_type=jnp.float32)
  return jnp.where(part.mask[:, :, None, :, None, :], scores, _MASKED)


def _mix(weights: Array, part: Part) -> Array:
  """Return the weighted sum of a part's values, [B, K, Hkv, N, G, d]."""
  if part.values.ndim == 4:  # heads first: one product per head, in matmul order
    mixed = jnp.einsum('bkhngs,bhsd->bhkngd', weights, part.values,
                       preferred_element_type=jnp.float32)
    return jnp.swapaxes(mixed, 1, 2)
  return jnp.einsum('bkhngs,bkhsd->bkhngd', weights, part.values,
                    preferred_element_type=jnp.float32)
