"""The target with an entropy bonus is the maximiser that is written down."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpo_jax import schedule, simplex, tilt
from lpo_jax.types import Group

_K, _N = 5, 6
_RNG = np.random.default_rng(3)
_LENGTHS = np.array([6, 1, 4, 2, 5])


def _group(anchor=0.5, rewards=None):
  mask = np.arange(_N) < _LENGTHS[:, None]
  behavior = np.where(mask, -_RNG.uniform(0.1, 2, mask.shape), 0).astype(np.float32)
  rewards = _RNG.uniform(size=_K) if rewards is None else rewards
  return Group(jnp.asarray(behavior + 0.1), jnp.asarray(behavior), jnp.asarray(mask),
               jnp.asarray(rewards, jnp.float32),
               jnp.asarray(anchor * _RNG.normal(size=_K), jnp.float32),
               jnp.float32(0.4), jnp.float32(0.3), jnp.int32(0))


def _log_target(group, rule='constant', tau=0.5, **choices):
  found = tilt.build(rule, schedule.Schedule(tau), **choices)(group)
  return np.float64(simplex.gibbs_target(group.rewards, *found))


def _log_behavior(group, score):
  behavior = np.float64(group.behavior_logprobs).sum(1)
  return behavior / _LENGTHS if score == 'mean' else behavior


@pytest.mark.parametrize('score', ['mean', 'sum'])
@pytest.mark.parametrize('entropy', tilt.ENTROPIES)
def test_no_distribution_earns_more_than_the_target(entropy, score):
  """max <w, R> - tau KL(w || P_t) + gamma (H(w) [- <w, log pi_b>]), by its gradient."""
  group, tau, gamma = _group(), 0.5, 0.3
  log_w = _log_target(group, tau=tau, bonus=gamma, entropy=entropy, score=score)
  anchor = np.float64(group.anchor_scores)
  log_p = anchor - np.log(np.exp(anchor).sum())
  gradient = np.float64(group.rewards) - tau * (log_w - log_p) - gamma * log_w
  if entropy == 'policy':
    gradient -= gamma * _log_behavior(group, score)
  np.testing.assert_allclose(gradient, gradient.mean(), atol=1e-6)  # as at a maximum
  assert np.ptp(log_w) > 0.5


def test_on_policy_the_simplex_entropy_is_a_warmer_temperature_and_nothing_else():
  fresh, stale = _group(anchor=0.0), _group(anchor=0.5)
  np.testing.assert_array_equal(_log_target(fresh, tau=0.5, bonus=0.25),
                                _log_target(fresh, tau=0.75))
  flattened = _log_target(stale, tau=0.5, bonus=0.25) - _log_target(stale, tau=0.75)
  assert np.ptp(flattened) > 0.1


def test_the_policys_entropy_makes_unlikely_responses_worth_more():
  group = _group(anchor=0.0, rewards=np.array([0, 1, 1, 0, 1]))
  plain, more = (_log_target(group, tau=0.5, bonus=0.5, entropy=entropy)
                 for entropy in tilt.ENTROPIES)
  likely = _log_behavior(group, 'mean')
  np.testing.assert_allclose(np.diff(more - plain), np.diff(-0.5 * likely), atol=1e-6)


def test_a_flat_group_is_pulled_to_uniform_and_without_a_bonus_stays():
  group = _group(rewards=np.full(_K, 0.7))
  np.testing.assert_allclose(_log_target(group, 'group_std', 1.0, bonus=0.2),
                             -np.log(_K), atol=1e-6)
  np.testing.assert_allclose(_log_target(group, 'group_std', 1.0),
                             jax.nn.log_softmax(group.anchor_scores), atol=1e-6)


def test_without_a_bonus_temperature_and_anchor_are_the_groups_own():
  group = _group()
  tau, anchor = tilt.build('group_std', schedule.Schedule(2.0))(group)
  assert anchor is group.anchor_scores
  np.testing.assert_allclose(tau, 2 * np.float64(group.rewards).std(), rtol=1e-6)


@pytest.mark.parametrize(('arguments', 'message'), [
  (('constant', -0.1, 'simplex'), 'entropy_bonus=-0.1'),
  (('constant', float('inf'), 'simplex'), 'entropy_bonus=inf'),
  (('constant', 0.1, 'token'), "entropy_of='token': choose one of simplex, policy"),
  (('target_kl', 0.1, 'simplex'), 'entropy_bonus=0.1 with temperature_rule=target_kl')])
def test_a_bonus_that_cannot_be_is_named(arguments, message):
  with pytest.raises(ValueError, match=message):
    tilt.check(*arguments)
