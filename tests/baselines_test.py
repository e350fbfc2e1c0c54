"""Baselines: advantages, losses against float64 loops, and coefficients = autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpo_jax import baselines

_LOW, _HIGH = 0.2, 0.28
_LOSSES = {  # the loss, its coefficients and its gradient by autodiff
  name: [jax.jit(f, static_argnums=(4, 5, 6))
         for f in (loss, coefficients, jax.grad(loss))]
  for name, loss, coefficients in [
    ('ppo', baselines.clipped_policy_gradient,
     baselines.clipped_policy_gradient_coefficients),
    ('gspo', baselines.gspo, baselines.gspo_coefficients),
    ('cispo', baselines.cispo, baselines.cispo_coefficients)]
}
every_loss = pytest.mark.parametrize('name', _LOSSES)
every_aggregation = pytest.mark.parametrize('aggregation', baselines.AGGREGATIONS)


def _group(seed=0, count=6, width=7, spread=0.4):
  """Return log-probabilities now and before, advantages and mask: one row is empty."""
  rng = np.random.default_rng(seed)
  old = -rng.uniform(0.1, 3, size=(count, width))
  new = old + spread * rng.normal(size=old.shape)
  lengths = np.array([width, 0, 1, 3, 5, width - 1])
  mask = np.arange(width)[None] < lengths[:, None]
  advantages = rng.normal(size=count)
  return new, old, advantages, mask


def _weight(mask, aggregation, k):
  """Return what one token of response k weighs: the aggregations' definitions."""
  count, width = mask.shape
  return {'token_mean': 1 / mask.sum(),
          'seq_mean_token_mean': 1 / (count * max(mask[k].sum(), 1)),
          'seq_mean_token_sum': 1 / count,
          'seq_mean_const_len': 1 / (count * width)}[aggregation]


def _loss_by_loops(name, new, old, advantages, mask, low, high, aggregation):
  """Return each loss as its paper writes it, token by token in float64."""
  total = 0.0
  for k, a in enumerate(advantages):
    tokens = np.flatnonzero(mask[k])
    sequence = np.exp(np.mean((new - old)[k, tokens])) if len(tokens) else 1.0
    for i in tokens:
      ratio = sequence if name == 'gspo' else np.exp(new[k, i] - old[k, i])
      held = min(max(ratio, 1 - low), 1 + high)
      value = held * a * new[k, i] if name == 'cispo' else min(ratio * a, held * a)
      total -= _weight(mask, aggregation, k) * value
  return total


# Advantages.


def test_advantages_match_their_formulas_in_float64():
  r = np.random.default_rng(0).uniform(size=8)
  centred = r - r.mean()
  others = [r[k] - np.mean(np.delete(r, k)) for k in range(8)]
  for value, expected in [
      (baselines.advantage_grpo(r), centred / (r.std() + 1e-6)),
      (baselines.advantage_dr_grpo(r), centred),
      (baselines.advantage_maxrl(r), centred / r.mean()),
      (baselines.advantage_rloo(r), others),
      (baselines.advantage_reinforce_pp(r, 0.25), centred / (0.25 + 1e-6))]:
    np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('value', [0.0, 0.1, 1 / 3, 1.0])
def test_equal_rewards_have_exactly_no_advantage(value):
  rewards = jnp.full(7, value)
  for advantage in (baselines.advantage_grpo, baselines.advantage_dr_grpo,
                    baselines.advantage_maxrl, baselines.advantage_rloo):
    np.testing.assert_array_equal(advantage(rewards), 0)
  np.testing.assert_array_equal(baselines.advantage_reinforce_pp(rewards, 0.0), 0)


def test_leave_one_out_of_one_is_refused():
  with pytest.raises(ValueError, match='K=1.*samples_per_prompt >= 2'):
    baselines.advantage_rloo(jnp.ones(1))


# Losses.


@every_loss
@every_aggregation
def test_loss_matches_float64_loops(name, aggregation):
  group = _group()
  value = _LOSSES[name][0](*group, _LOW, _HIGH, aggregation)
  np.testing.assert_allclose(
    value, _loss_by_loops(name, *group, _LOW, _HIGH, aggregation), rtol=1e-4, atol=1e-6)


@every_loss
@every_aggregation
def test_coefficients_equal_autodiff_with_both_clips_active(name, aggregation):
  _, coefficients, autodiff = _LOSSES[name]
  new, old, advantages, mask = _group(seed=1)
  values, clipped = coefficients(new, old, advantages, mask, _LOW, _HIGH, aggregation)
  gradient = autodiff(new, old, advantages, mask, _LOW, _HIGH, aggregation)
  np.testing.assert_allclose(values, gradient, rtol=1e-5, atol=1e-7)
  assert not np.any(values[~mask]) and not np.any(clipped[~mask])
  assert np.any(values[mask]) and np.any(np.asarray(clipped)[mask])
  if name == 'ppo':
    up, down = (advantages > 0)[:, None], (advantages < 0)[:, None]
    assert np.any(clipped & up) and np.any(clipped & down)


@pytest.mark.parametrize('name', ['ppo', 'gspo'])
def test_coefficients_equal_finite_differences_of_the_loops(name):
  new, old, advantages, mask = _group(seed=2, spread=0.3)
  values, _ = _LOSSES[name][1](new, old, advantages, mask, _LOW, _HIGH,
                               'seq_mean_token_mean')
  step, numeric = 1e-6, np.zeros_like(new)
  for k, i in np.ndindex(new.shape):
    ends = []
    for sign in (1, -1):
      moved = new.copy()
      moved[k, i] += sign * step
      ends.append(_loss_by_loops(name, moved, old, advantages, mask, _LOW, _HIGH,
                                 'seq_mean_token_mean'))
    numeric[k, i] = (ends[0] - ends[1]) / (2 * step)
  np.testing.assert_allclose(values, numeric, rtol=1e-4, atol=1e-6)


def test_a_token_is_clipped_only_where_the_clip_lowers_the_surrogate():
  ratios = np.log(np.array([[0.5, 1.0, 1.5], [0.5, 1.0, 1.5]]))
  mask = np.ones((2, 3), bool)
  _, clipped = baselines.clipped_policy_gradient_coefficients(
    ratios, np.zeros((2, 3)), np.array([1.0, -1.0]), mask, 0.2, 0.2, 'token_mean')
  np.testing.assert_array_equal(clipped, [[False, False, True], [True, False, False]])


@every_loss
def test_on_policy_gradient_is_minus_the_advantage_times_the_weight(name):
  _, old, advantages, mask = _group(seed=3)
  values, clipped = _LOSSES[name][1](old, old, advantages, mask, _LOW, _HIGH,
                                     'token_mean')
  np.testing.assert_allclose(
    values, np.where(mask, -advantages[:, None] / mask.sum(), 0), rtol=1e-5)
  assert not np.any(clipped)


@every_loss
def test_what_is_off_mask_or_far_away_never_makes_nan(name):
  new, old, advantages, mask = _group(seed=4)
  expected, _ = _LOSSES[name][1](new, old, advantages, mask, _LOW, _HIGH, 'token_mean')
  spoilt = np.where(mask, new, np.nan)
  for result in (
      _LOSSES[name][1](spoilt, old, advantages, mask, _LOW, _HIGH, 'token_mean')[0],
      _LOSSES[name][2](spoilt, old, advantages, mask, _LOW, _HIGH, 'token_mean')):
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-7)
  far, _ = _LOSSES[name][1](new + 500, old, 0 * advantages, mask, _LOW, _HIGH,
                            'token_mean')
  np.testing.assert_array_equal(far, 0)


@every_loss
@every_aggregation
def test_a_group_of_empty_responses_has_no_gradient(name, aggregation):
  new, old, advantages, mask = _group()
  arguments = new, old, advantages, mask & False, _LOW, _HIGH, aggregation
  loss, coefficients, _ = _LOSSES[name]
  np.testing.assert_array_equal(coefficients(*arguments)[0], 0)
  assert loss(*arguments) == 0


def test_an_unknown_aggregation_is_refused_with_the_choices():
  with pytest.raises(ValueError, match="'mean' is not one of token_mean, seq_mean"):
    baselines.clipped_policy_gradient(*_group(), 0.2, 0.2, 'mean')


def test_pointwise_coefficients_are_minus_the_target():
  log_target = np.log(np.array([0.2, 0.5, 0.3]))
  np.testing.assert_allclose(baselines.pointwise_coefficients(log_target),
                             [-0.2, -0.5, -0.3], rtol=1e-6)
  gradient = jax.grad(baselines.pointwise)(jnp.zeros(3), log_target)
  np.testing.assert_allclose(gradient, [-0.2, -0.5, -0.3], rtol=1e-6)
  np.testing.assert_allclose(baselines.pointwise([-1.0, -2.0, 0.0], log_target), 1.2,
                             rtol=1e-6)
