"""The Gibbs target: what it maximises, its limits, and its form for one response."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpo_jax import simplex


def _softmax(x):
  x = np.exp(x - np.max(x))
  return x / x.sum()


def _objective(w, rewards, tau, p):
  """Return <w, R> - tau KL(w || P) in float64."""
  positive = w > 0
  kl = np.sum(w[positive] * np.log(w[positive] / p[positive]))
  return w @ rewards - tau * kl


@pytest.fixture
def group():
  rng = np.random.default_rng(0)
  return rng.uniform(size=6), 0.4, rng.normal(size=6)


def test_target_is_the_softmax_of_rewards_over_temperature_plus_anchor(group):
  rewards, tau, anchor = group
  np.testing.assert_allclose(np.exp(simplex.gibbs_target(rewards, tau, anchor)),
                             _softmax(rewards / tau + anchor), rtol=1e-5)


def test_no_point_of_the_simplex_beats_the_target(group):
  rewards, tau, anchor = group
  p = _softmax(anchor)
  target = np.exp(np.float64(simplex.gibbs_target(rewards, tau, anchor)))
  best = _objective(target, rewards, tau, p)
  rng = np.random.default_rng(1)
  others = np.concatenate([rng.dirichlet(np.ones(6), 2000), np.eye(6),
                           0.99 * target + 0.01 * rng.dirichlet(np.ones(6), 2000)])
  assert max(_objective(w, rewards, tau, p) for w in others) < best


def test_proximal_objective_is_minus_tau_reverse_kl_plus_log_partition(group):
  """Proposition 3: J(P) = -tau KL(P || w*) + tau log Z, for any P."""
  rewards, tau, anchor = group
  p_t = _softmax(anchor)
  log_z = np.log(np.sum(p_t * np.exp(rewards / tau)))
  log_target = simplex.gibbs_target(rewards, tau, anchor)
  for seed in range(20):
    scores = np.random.default_rng(seed).normal(size=6)
    value = -tau * float(simplex.reverse_kl(scores, log_target)) + tau * log_z
    np.testing.assert_allclose(
      value, _objective(_softmax(scores), rewards, tau, p_t), atol=1e-5)


def test_limits_are_the_anchor_and_the_best_responses():
  rewards, anchor = jnp.array([0.0, 1.0, 1.0]), jnp.array([0.0, np.log(3.0), 0.0])
  np.testing.assert_allclose(jnp.exp(simplex.gibbs_target(rewards, 1e8, anchor)),
                             [0.2, 0.6, 0.2], rtol=1e-5)
  # Among the best, the anchor's odds of 3 : 1 stay exact.
  np.testing.assert_allclose(jnp.exp(simplex.gibbs_target(rewards, 1e-8, anchor)),
                             [0.0, 0.75, 0.25], rtol=1e-5)


@pytest.mark.parametrize('value', [0.0, 0.1, 1.0])
@pytest.mark.parametrize('tau', [0.0, 1e-8, 1.0])
def test_equal_rewards_give_exactly_the_anchor(value, tau):
  anchor = jnp.array([0.3, -1.0, 2.0])
  np.testing.assert_array_equal(
    simplex.gibbs_target(jnp.full(3, value), tau, anchor), jax.nn.log_softmax(anchor))


def test_zero_temperature_gives_exactly_the_anchor():
  anchor = jnp.array([0.3, -1.0, 2.0])
  np.testing.assert_array_equal(
    simplex.gibbs_target(jnp.array([0.0, 1.0, 0.5]), 0.0, anchor),
    jax.nn.log_softmax(anchor))


def test_a_missing_anchor_is_uniform_and_shifts_change_nothing(group):
  rewards, tau, anchor = group
  np.testing.assert_array_equal(simplex.gibbs_target(rewards, tau),
                                simplex.gibbs_target(rewards, tau, np.zeros(6)))
  np.testing.assert_allclose(simplex.gibbs_target(rewards + 3, tau, anchor - 20),
                             simplex.gibbs_target(rewards, tau, anchor), atol=1e-5)


def test_target_is_equivariant_under_permutation(group):
  rewards, tau, anchor = group
  order = np.random.default_rng(2).permutation(6)
  np.testing.assert_allclose(
    simplex.gibbs_target(rewards[order], tau, anchor[order]),
    simplex.gibbs_target(rewards, tau, anchor)[order], rtol=1e-6)


@pytest.mark.parametrize('rewards', [[0.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
@pytest.mark.parametrize('tau', [0.0, 1e-38, 1e-8, 1.0, 1e8])
def test_target_and_its_gradients_are_finite(rewards, tau):
  def second(rewards, tau, anchor):
    return simplex.gibbs_target(rewards, tau, anchor)[1]

  arguments = jnp.array([rewards]), jnp.array([tau]), jnp.array([[80.0, -80.0, 0.0]])
  values = jax.vmap(second)(*arguments)
  if tau >= 1e-8:
    gradients = jax.vmap(jax.grad(second, argnums=(0, 1, 2)))(*arguments)
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in gradients[::2])
    assert not jnp.any(jnp.isnan(gradients[1]))
  assert jnp.all(jnp.isfinite(values))


def test_virtual_pair_is_forward_kl_on_a_pair_with_the_baseline():
  for reward, baseline, tau in [(1.0, 0.3, 0.5), (0.0, 0.3, 0.5), (0.7, 0.7, 1.0)]:
    pair = simplex.gibbs_target(jnp.array([reward, baseline]), tau)
    expected = simplex.coefficients(simplex.forward_kl, jnp.zeros(2), pair)[0]
    value = simplex.virtual_pair_coefficient(reward, baseline, tau)
    np.testing.assert_allclose(value, expected, atol=1e-6)
    np.testing.assert_allclose(
      value, 0.5 - 1 / (1 + np.exp(-(reward - baseline) / tau)), atol=1e-6)


def test_virtual_pair_is_bounded_by_a_half_and_zero_without_temperature():
  values = [simplex.virtual_pair_coefficient(r, 0.5, 1e-30) for r in (0.0, 0.5, 1.0)]
  np.testing.assert_allclose(values, [0.5, 0.0, -0.5])
  assert simplex.virtual_pair_coefficient(1.0, 0.5, 0.0) == 0
