"""Group policy gradients, as losses and as the coefficients of their gradients.

  L = -sum_{k,i} a_{k,i} min(r A_k, clip(r, 1 - e_low, 1 + e_high) A_k)
                                                   (arXiv:2605.06139, Eq. 2)

r_{k,i} is the token ratio pi / pi_b and a_{k,i} the aggregation's weights. Each loss
has a twin `<loss>_coefficients` giving c, grad L = sum c_{k,i} grad log pi(y_{k,i}):
for the loss above -a A r where it is not clipped.
"""

import chex
import jax
import jax.numpy as jnp

from lpo_jax.types import Array

_STD_EPSILON = 1e-6
# Log-ratios beyond this are held at it, without gradient, so that no ratio overflows.
_LARGEST_LOG_RATIO = 20.0


def _rewards(rewards) -> Array:
  rewards = jnp.asarray(rewards, float)
  chex.assert_rank(rewards, 1)
  return rewards


def _centred(rewards) -> Array:
  """Return rewards - mean: exactly 0 for equal rewards, whatever their value."""
  rewards = _rewards(rewards)
  shifted = rewards - rewards[0]
  return shifted - jnp.mean(shifted)


def advantage_grpo(rewards: Array) -> Array:
  """Return (R - mean) / (std + 1e-6) f32[K] for rewards f32[K].

  The population std, so that it pairs with `simplex.temperature_group_std`. Exactly 0
  for equal rewards. Source: arXiv:2402.03300.
  """
  centred = _centred(rewards)
  return centred / (jnp.sqrt(jnp.mean(jnp.square(centred))) + _STD_EPSILON)


def advantage_dr_grpo(rewards: Array) -> Array:
  """Return R - mean f32[K] for rewards f32[K]. Source: arXiv:2503.20783."""
  return _centred(rewards)


def advantage_maxrl(rewards: Array) -> Array:
  """Return (R - mean) / mean f32[K] for rewards f32[K] >= 0; zeros where the mean is 0.

  Source: arXiv:2602.02710.
  """
  mean = jnp.mean(_rewards(rewards))
  return jnp.where(mean == 0, 0.0, _centred(rewards) / jnp.where(mean == 0, 1.0, mean))


def advantage_rloo(rewards: Array) -> Array:
  """Return R less the mean of the others f32[K]: K / (K - 1) (R - mean).

  Args:
    rewards: f32[K], K >= 2.

  Raises:
    ValueError: if K = 1, where there are no others.

  Source: arXiv:2402.14740.
  """
  centred = _centred(rewards)
  count = centred.shape[0]
  if count == 1:
    raise ValueError('K=1: leave-one-out needs samples_per_prompt >= 2')
  return centred * (count / (count - 1))


def advantage_reinforce_pp(rewards: Array, batch_std: Array) -> Array:
  """Return (R - mean) / (batch_std + 1e-6) f32[K]: REINFORCE++ with group baseline.

  Args:
    rewards: f32[K].
    batch_std: f32[] std of the group-centred rewards over the batch.

  Source: arXiv:2501.03262.
  """
  return _centred(rewards) / (jnp.asarray(batch_std, float) + _STD_EPSILON)


def _token_mean(mask: Array) -> Array:
  return mask / jnp.maximum(jnp.sum(mask), 1)


def _seq_mean_token_mean(mask: Array) -> Array:
  return mask / _lengths(mask) / mask.shape[0]


def _seq_mean_token_sum(mask: Array) -> Array:
  return mask / mask.shape[0]


def _seq_mean_const_len(mask: Array) -> Array:
  return mask / mask.size


# What each token weighs in the loss, f32[K, N]. The const length is N, the width.
AGGREGATIONS = {
  'token_mean': _token_mean,
  'seq_mean_token_mean': _seq_mean_token_mean,
  'seq_mean_token_sum': _seq_mean_token_sum,
  'seq_mean_const_len': _seq_mean_const_len,
}


def token_weights(mask: Array, aggregation: str) -> Array:
  """Return each token's weight f32[K, N] in a group's loss; an empty response has none.

  Args:
    mask: bool[K, N] tokens that count.
    aggregation: a name in `AGGREGATIONS`.

  Raises:
    ValueError: if the aggregation is unknown.
  """
  if aggregation not in AGGREGATIONS:
    raise ValueError(f'aggregation={aggregation!r} is not one of '
                     f'{", ".join(AGGREGATIONS)}')
  chex.assert_rank(mask, 2)
  return AGGREGATIONS[aggregation](mask).astype(float)


def clipped_policy_gradient(logprobs: Array, old_logprobs: Array, advantages: Array,
                            mask: Array, clip_low: float, clip_high: float,
                            aggregation: str) -> Array:
  """Return the PPO-clip surrogate of one group f32[], to be minimised.

  Args:
    logprobs: f32[K, N] under pi_theta.
    old_logprobs: f32[K, N] under pi_b, fixed.
    advantages: f32[K].
    mask: bool[K, N] tokens that count.
    clip_low: ratios are held above 1 - clip_low.
    clip_high: ratios are held below 1 + clip_high.
    aggregation: a name in `AGGREGATIONS`.

  Raises:
    ValueError: if the aggregation is unknown.

  Source: arXiv:2605.06139, Eq. 2; arXiv:2402.03300.
  """
  log_ratio, advantage, mask = _tokens(logprobs, old_logprobs, advantages, mask)
  ratio = jnp.exp(log_ratio)
  clipped = jnp.clip(ratio, 1 - clip_low, 1 + clip_high)
  surrogate = jnp.minimum(ratio * advantage, clipped * advantage)
  return -jnp.sum(token_weights(mask, aggregation) * surrogate)


def clipped_policy_gradient_coefficients(
    logprobs: Array, old_logprobs: Array, advantages: Array, mask: Array,
    clip_low: float, clip_high: float, aggregation: str) -> tuple[Array, Array]:
  """Return `clipped_policy_gradient`'s coefficients, and the tokens it clipped.

  Takes the loss's arguments.

  Returns:
    f32[K, N]: -a A r, zero where clipped; and bool[K, N].
  """
  log_ratio, advantage, mask = _tokens(logprobs, old_logprobs, advantages, mask)
  ratio = jnp.exp(log_ratio)
  clipped = mask & _clipped(ratio, advantage, clip_low, clip_high)
  values = -token_weights(mask, aggregation) * advantage * ratio
  return jnp.where(clipped | _held(log_ratio), 0.0, values), clipped


def gspo(logprobs: Array, old_logprobs: Array, advantages: Array, mask: Array,
         clip_low: float, clip_high: float, aggregation: str) -> Array:
  """Return the GSPO surrogate of one group f32[], to be minimised.

  The ratio is the sequence's, exp(mean_i log r_{k,i}), and is clipped as one. It is
  written per token, s_{k,i} = sg(s_k) pi_i / sg(pi_i), so that any aggregation applies;
  with seq_mean_token_mean this is the sequence-level loss and gradient.

  Takes the arguments of `clipped_policy_gradient`. Source: arXiv:2507.18071.
  """
  log_ratio, advantage, mask = _tokens(logprobs, old_logprobs, advantages, mask)
  mean = _sequence_mean(log_ratio, mask)
  log_ratio = jax.lax.stop_gradient(mean - log_ratio) + log_ratio
  ratio = jnp.exp(log_ratio)
  clipped = jnp.clip(ratio, 1 - clip_low, 1 + clip_high)
  surrogate = jnp.minimum(ratio * advantage, clipped * advantage)
  return -jnp.sum(token_weights(mask, aggregation) * surrogate)


def gspo_coefficients(
    logprobs: Array, old_logprobs: Array, advantages: Array, mask: Array,
    clip_low: float, clip_high: float, aggregation: str) -> tuple[Array, Array]:
  """Return `gspo`'s coefficients f32[K, N], and the tokens of clipped sequences."""
  log_ratio, advantage, mask = _tokens(logprobs, old_logprobs, advantages, mask)
  ratio = jnp.exp(_sequence_mean(log_ratio, mask))
  clipped = mask & _clipped(ratio, advantage, clip_low, clip_high)
  values = -token_weights(mask, aggregation) * advantage * ratio
  return jnp.where(clipped | _held(log_ratio), 0.0, values), clipped


def cispo(logprobs: Array, old_logprobs: Array, advantages: Array, mask: Array,
          clip_low: float, clip_high: float, aggregation: str) -> Array:
  """Return the CISPO loss of one group f32[]: -sum a sg(clip(r)) A log pi.

  The clipped ratio is a weight without gradient, so no token is left out.

  Takes the arguments of `clipped_policy_gradient`. Source: arXiv:2506.13585.
  """
  log_ratio, advantage, mask = _tokens(logprobs, old_logprobs, advantages, mask)
  held = jnp.clip(jnp.exp(log_ratio), 1 - clip_low, 1 + clip_high)
  weight = token_weights(mask, aggregation) * jax.lax.stop_gradient(held)
  return -jnp.sum(weight * advantage * jnp.where(mask, logprobs, 0.0))


def cispo_coefficients(
    logprobs: Array, old_logprobs: Array, advantages: Array, mask: Array,
    clip_low: float, clip_high: float, aggregation: str) -> tuple[Array, Array]:
  """Return `cispo`'s coefficients f32[K, N], and the tokens whose ratio was held."""
  log_ratio, advantage, mask = _tokens(logprobs, old_logprobs, advantages, mask)
  ratio = jnp.exp(log_ratio)
  held = jnp.clip(ratio, 1 - clip_low, 1 + clip_high)
  values = -token_weights(mask, aggregation) * advantage * held
  return values, mask & (ratio != held)


def pointwise(scores: Array, log_target: Array) -> Array:
  """Return -sum_k w*_k log pi(y_k) f32[], the ablation without a projection.

  Neither zero-sum nor self-correcting (arXiv:2605.06139, Eq. 52).

  Args:
    scores: f32[K] sequence log-probabilities, or log-ratios to a fixed policy.
    log_target: f32[K] log w*.
  """
  return jnp.sum(pointwise_coefficients(log_target) * jnp.asarray(scores, float))


def pointwise_coefficients(log_target: Array) -> Array:
  """Return `pointwise`'s coefficients -w* f32[K] of the scores; log_target f32[K]."""
  log_target = jnp.asarray(log_target, float)
  chex.assert_rank(log_target, 1)
  return -jnp.exp(log_target)


def _tokens(logprobs, old_logprobs, advantages, mask) -> tuple[Array, Array, Array]:
  """Return log-ratios f32[K, N] (bounded, 0 off mask), advantages [K, 1] and mask."""
  logprobs, old_logprobs, advantages = (
    jnp.asarray(x, float) for x in (logprobs, old_logprobs, advantages))
  mask = jnp.asarray(mask, bool)
  chex.assert_rank([logprobs, advantages], [2, 1])
  chex.assert_equal_shape([logprobs, old_logprobs, mask])
  chex.assert_equal_shape_prefix([logprobs, advantages], 1)
  log_ratio = jnp.where(mask, logprobs - old_logprobs, 0.0)
  log_ratio = jnp.clip(log_ratio, -_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO)
  return log_ratio, advantages[:, None], mask


def _held(log_ratio: Array) -> Array:
  return jnp.abs(log_ratio) >= _LARGEST_LOG_RATIO


def _lengths(mask: Array) -> Array:
  """Return response lengths [K, 1], 1 for an empty one: a safe denominator."""
  return jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)


def _sequence_mean(log_ratio: Array, mask: Array) -> Array:
  total = jnp.sum(log_ratio, axis=1, keepdims=True, where=mask)
  return total / _lengths(mask)


def _clipped(ratio: Array, advantage: Array, low: float, high: float) -> Array:
  """Return where the minimum is taken by the clipped branch, which has no gradient."""
  too_high = (advantage > 0) & (ratio > 1 + high)
  too_low = (advantage < 0) & (ratio < 1 - low)
  return too_high | too_low
