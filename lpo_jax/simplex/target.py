"""The Gibbs target, and its two-point form for a group of one.

  w* = argmax_w <w, R> - tau KL(w || P_t) = softmax(R / tau + s_t)
                                   (arXiv:2605.06139, Eq. 7 and Theorem 1)

As tau -> infinity w* -> P_t; as tau -> 0 w* gathers on the largest reward.
"""

import chex
import jax
import jax.numpy as jnp

from lpo_jax.simplex import geometry
from lpo_jax.types import Array

# Tilts below this are read as this: e^-1e30 is zero in any float, and stays finite
# where an infinity times a zero probability would not.
_LOWEST_TILT = -1e30


def gibbs_target(rewards: Array, temperature: Array,
                 anchor_scores: Array | None = None) -> Array:
  """Return f32[K] log w*, w* = softmax(rewards / temperature + anchor_scores).

  Rewards are taken relative to the best one before the division, so a temperature of
  1e-8 still leaves the anchor's ratios among the best responses exact.

  Args:
    rewards: f32[K].
    temperature: f32[] tau in units of reward. At tau <= 0, as at equal rewards (where
      every statistic of the group is 0), the target is the anchor itself.
    anchor_scores: f32[K] s_t = log pi_t - log pi_b in nats; None for zeros.

  Returns:
    f32[K] log w*, finite for finite arguments; differentiable in all three.

  Raises:
    AssertionError: if the shapes differ or temperature is not a scalar.
  """
  rewards = geometry.group_vector(rewards)
  temperature = jnp.asarray(temperature, float)
  if anchor_scores is None:
    anchor_scores = jnp.zeros_like(rewards)
  anchor_scores = geometry.group_vector(anchor_scores)
  chex.assert_rank(temperature, 0)
  chex.assert_equal_shape([rewards, anchor_scores])
  no_tilt = (temperature <= 0) | geometry.is_flat(rewards)
  safe_temperature = jnp.where(no_tilt, 1.0, temperature)
  tilt = (rewards - jnp.max(rewards)) / safe_temperature
  tilt = jnp.where(no_tilt, 0.0, jnp.maximum(tilt, _LOWEST_TILT))
  return jax.nn.log_softmax(tilt + anchor_scores)


def virtual_pair_coefficient(reward: Array, baseline: Array,
                             temperature: Array) -> Array:
  """Return 1/2 - sigma((R - b) / tau) f32[]: the coefficient of a group of one.

  The response is paired with a virtual one that earned the baseline: on the pair's
  simplex P = (1/2, 1/2) and forward KL's P - w* is this in its first place. At most
  1/2 in absolute value; it sums to zero only over the pair, half of which is virtual.

  Args:
    reward: f32[] R of the one response.
    baseline: f32[] b in units of reward, for example the batch's mean.
    temperature: f32[] tau in units of reward; 0 at tau <= 0, as for `gibbs_target`.

  Source: arXiv:2605.06139, the K = 1 case.
  """
  reward, baseline, temperature = (
    jnp.asarray(x, float) for x in (reward, baseline, temperature))
  chex.assert_rank([reward, baseline, temperature], 0)
  no_tilt = temperature <= 0
  advantage = (reward - baseline) / jnp.where(no_tilt, 1.0, temperature)
  return -0.5 * jnp.tanh(0.5 * jnp.where(no_tilt, 0.0, advantage))
