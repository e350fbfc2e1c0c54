"""Rules for the target's temperature tau, in units of reward.

Each policy gradient has an implicit target w* = softmax(R / tau)
(arXiv:2605.06139, Tables 1 and 2): Dr.GRPO tau = 1; GRPO, DAPO, GSPO and CISPO the
group's population std; MaxRL the group's mean; REINFORCE++ the batch std of
group-centred rewards. Two further rules solve for the tau that puts the target at a
given distance from the anchor, KL(w* || P_t), or at a given sharpness, 1 / sum w*^2.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from lpo_jax.simplex import divergence, geometry, target
from lpo_jax.types import Array

# tau is sought within e^-16 .. e^16 times the spread of the rewards.
_LOG_RANGE = 16.0
_BISECTIONS = 40


def temperature_constant(rewards: Array, value: float = 1.0) -> Array:
  """Return `value` f32[], whatever the rewards f32[K]: Dr.GRPO's implicit 1."""
  geometry.group_vector(rewards)
  return jnp.asarray(value, float)


def temperature_group_std(rewards: Array) -> Array:
  """Return the population standard deviation f32[] of rewards f32[K]: GRPO's.

  Exactly 0 for equal rewards, and sqrt(p (1 - p)) for binary ones of mean p.
  """
  rewards = geometry.group_vector(rewards)
  centred = rewards - rewards[0]  # an equal group is exactly 0, whatever its value
  return _safe_sqrt(jnp.mean(jnp.square(centred - jnp.mean(centred))))


def temperature_group_mean(rewards: Array) -> Array:
  """Return the mean f32[] of rewards f32[K]: MaxRL's."""
  return jnp.mean(geometry.group_vector(rewards))


def temperature_batch_std(rewards: Array, where: Array | None = None) -> Array:
  """Return the population std f32[] over a batch of group-centred rewards.

  REINFORCE++ with baseline: each reward less its own group's mean, then one standard
  deviation for all. The only function here that sees more than one group. Groups of
  one (K = 1) are centred on the batch's mean, the baseline of their virtual pair.

  Args:
    rewards: f32[B, K].
    where: bool[B], groups that count; None for all. 0 where none does.
  """
  rewards = jnp.asarray(rewards, float)
  chex.assert_rank(rewards, 2)
  where = jnp.ones(rewards.shape[0], bool) if where is None else jnp.asarray(where)
  chex.assert_shape(where, rewards.shape[:1])
  groups = jnp.maximum(jnp.sum(where), 1)
  count = groups * rewards.shape[1]
  if rewards.shape[1] == 1:
    centred = rewards - jnp.sum(rewards, where=where[:, None]) / groups
  else:
    centred = rewards - rewards[:, :1]  # an equal group is exactly 0
    centred = centred - jnp.mean(centred, axis=1, keepdims=True)
  total = jnp.sum(jnp.square(centred), where=where[:, None])
  return _safe_sqrt(total / count)


def temperature_target_kl(rewards: Array, anchor_scores: Array,
                          value: float) -> Array:
  """Return the tau f32[] at which KL(w* || P_t) = value.

  The KL falls in tau from -log P_t(best responses) to 0. A value outside saturates:
  too large gives e^-16 of the rewards' spread, where w* sits on the best responses;
  0 or less gives e^16 of it, where w* is P_t.

  Args:
    rewards: f32[K]; equal ones give tau = 1, the target being P_t at any tau.
    anchor_scores: f32[K] s_t in nats.
    value: KL in nats.
  """
  log_anchor = geometry.log_policy(anchor_scores)

  def too_cold(log_target):
    return divergence.forward_kl(anchor_scores, log_target) > value

  return _bisect(rewards, log_anchor, too_cold)


def temperature_target_ess(rewards: Array, anchor_scores: Array,
                           value: float) -> Array:
  """Return the tau f32[] at which the target's effective sample size is `value`.

  1 / sum w*^2 rises in tau, from the number of best responses to K for a uniform
  anchor. A value outside saturates at e^-16 or e^16 of the rewards' spread. For an
  anchor far from uniform it need not be monotone; then one crossing is returned.

  Args:
    rewards: f32[K]; equal ones give tau = 1, the target being P_t at any tau.
    anchor_scores: f32[K] s_t in nats.
    value: effective number of responses, above 1 and at most K.
  """
  log_anchor = geometry.log_policy(anchor_scores)

  def too_cold(log_target):
    return geometry.effective_sample_size(log_target) < value

  return _bisect(rewards, log_anchor, too_cold)


def _bisect(rewards: Array, log_anchor: Array,
            too_cold: Callable[[Array], Array]) -> Array:
  """Return the tau where `too_cold(log w*)` turns from true to false."""
  rewards = geometry.group_vector(rewards)
  chex.assert_equal_shape([rewards, log_anchor])
  flat = geometry.is_flat(rewards)
  spread = jnp.where(flat, 1.0, jnp.max(rewards) - jnp.min(rewards))
  scaled = (rewards - jnp.max(rewards)) / spread

  def halve(_, bracket):
    low, high = bracket
    middle = 0.5 * (low + high)
    cold = too_cold(target.gibbs_target(scaled, jnp.exp(middle), log_anchor))
    return jnp.where(cold, middle, low), jnp.where(cold, high, middle)

  ends = jnp.asarray(-_LOG_RANGE, float), jnp.asarray(_LOG_RANGE, float)
  low, high = jax.lax.fori_loop(0, _BISECTIONS, halve, ends)
  return jnp.where(flat, 1.0, spread * jnp.exp(0.5 * (low + high)))


def _safe_sqrt(x: Array) -> Array:
  """Return sqrt(x) with gradient 0, not infinity, at 0."""
  return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1.0)), 0.0)
