"""Theorem 2 holds, on thousands of groups, and its parts are what it says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpo_jax import simplex

_CASES = 4000


def _cases(count, seed, tau):
  rng = np.random.default_rng(seed)
  rewards = rng.uniform(-1, 1, size=(_CASES, count))
  rewards[::3] = rewards[::3] > 0  # a third of them binary, some of those flat
  before, after, anchor = rng.normal(size=(3, _CASES, count)) * rng.choice([0.1, 3.0])
  return before, after, rewards, np.full(_CASES, tau), anchor


@pytest.mark.parametrize('count,tau', [(1, 1.0), (2, 0.3), (8, 1e-8), (8, 5.0),
                                       (64, 0.2)])
@pytest.mark.parametrize('proximal', [True, False])
def test_improvement_is_never_below_the_bound(count, tau, proximal):
  before, after, rewards, taus, anchor = _cases(count, count, tau)
  anchor = before if proximal else anchor
  answer = jax.jit(jax.vmap(simplex.certificate))(before, after, rewards, taus, anchor)
  assert all(bool(jnp.all(jnp.isfinite(part))) for part in answer)
  assert jnp.all(answer.improvement >= answer.bound - 2e-6)
  if proximal:
    assert jnp.all(answer.gain >= -1e-6)
  assert jnp.all((answer.projection_error >= 0) & (answer.projection_error <= 1.000001))


def test_gain_is_tau_times_both_divergences_in_the_proximal_setting():
  rng = np.random.default_rng(0)
  for tau in (0.2, 1.0, 4.0):
    s, rewards = rng.normal(size=6), rng.uniform(size=6)
    p = np.exp(s) / np.exp(s).sum()
    w = p * np.exp(rewards / tau) / np.sum(p * np.exp(rewards / tau))
    expected = tau * (np.sum(w * np.log(w / p)) + np.sum(p * np.log(p / w)))
    answer = simplex.certificate(s, s, rewards, tau, s)
    np.testing.assert_allclose(answer.gain, expected, rtol=1e-4)
    np.testing.assert_allclose(answer.projection_error, np.abs(p - w).sum() / 2,
                               rtol=1e-4)
    np.testing.assert_allclose(
      answer.bound, expected - np.abs(rewards).max() * np.abs(p - w).sum(), rtol=1e-4)
    assert answer.improvement == 0


def test_landing_on_the_target_realises_the_whole_gain():
  s, rewards = np.array([0.1, -0.4, 0.0]), np.array([0.0, 1.0, 0.3])
  log_target = simplex.gibbs_target(rewards, 0.5, s)
  answer = simplex.certificate(s, log_target, rewards, 0.5)  # the anchor is s
  np.testing.assert_allclose(answer.projection_error, 0, atol=1e-6)
  np.testing.assert_allclose(answer.improvement, answer.gain, rtol=1e-4)
  np.testing.assert_allclose(answer.bound, answer.gain, rtol=1e-4)


def test_flat_group_has_nothing_to_gain():
  answer = simplex.certificate(np.zeros(4), np.arange(4.0), np.full(4, 0.1), 0.0,
                               np.zeros(4))
  assert answer.gain == 0
  np.testing.assert_allclose(answer.improvement, 0, atol=1e-7)
