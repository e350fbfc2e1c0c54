"""Theorem 2: what one update is guaranteed to have gained on a group.

  <P', R> >= <P_t, R> + tau [KL(w* || P_t) + KL(P_t || w*)] - 2 R_max TV(P', w*)
                                                  (arXiv:2605.06139, Theorem 2)

P_t is the policy before the update, P' the policy after it, w* the target.
"""

from typing import NamedTuple

import chex
import jax.numpy as jnp

from lpo_jax.simplex import geometry, target
from lpo_jax.types import Array


class Certificate(NamedTuple):
  """A bound on a group's improvement, and the improvement itself, in reward."""

  gain: Array  # f32[]: <w*, R> - <P_t, R>, what landing on the target is worth
  projection_error: Array  # f32[]: TV(P', w*), in [0, 1]
  bound: Array  # f32[]: gain - 2 R_max projection_error
  improvement: Array  # f32[]: <P', R> - <P_t, R>, at least `bound`


def certificate(scores_before: Array, scores_after: Array, rewards: Array,
                temperature: Array, anchor_scores: Array | None = None) -> Certificate:
  """Return Theorem 2's guarantee for one group beside what was realised.

  In the proximal setting the anchor is the policy before the update, scores_before =
  anchor_scores, and the gain is tau [KL(w* || P_t) + KL(P_t || w*)] >= 0. Where an
  earlier minibatch has already moved the policy, it is compared with where it stood
  before this update: the gain is <w* - softmax(scores_before), R>, which may be
  negative, and the bound holds as before. The gain is computed as this inner product,
  which is exact for both and does not lose tau = 1e-8.

  Args:
    scores_before: f32[K] s before the update.
    scores_after: f32[K] s after it.
    rewards: f32[K]; R_max is their largest absolute value.
    temperature: f32[] tau of the target.
    anchor_scores: f32[K] s_t of the target; None for scores_before.
  """
  if anchor_scores is None:
    anchor_scores = scores_before
  rewards = geometry.group_vector(rewards)
  log_before = geometry.log_policy(scores_before)
  log_after = geometry.log_policy(scores_after)
  chex.assert_equal_shape([rewards, log_before, log_after])
  log_target = target.gibbs_target(rewards, temperature, anchor_scores)
  centred = rewards - jnp.mean(rewards)  # a common constant earns nothing

  def excess(log_p):
    return jnp.sum((jnp.exp(log_p) - jnp.exp(log_before)) * centred)

  gain = excess(log_target)
  projection_error = geometry.total_variation(log_after, log_target)
  bound = gain - 2 * jnp.max(jnp.abs(rewards)) * projection_error
  return Certificate(gain, projection_error, bound, excess(log_after))
