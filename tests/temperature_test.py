"""Temperature rules: the statistics they are, and the equations they solve."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpo_jax import simplex


def test_group_std_of_binary_rewards_is_root_p_one_minus_p():
  for wins in range(9):
    rewards = jnp.arange(8) < wins
    np.testing.assert_allclose(simplex.temperature_group_std(rewards),
                               np.sqrt(wins / 8 * (1 - wins / 8)), rtol=1e-6)


def test_statistics_match_numpy_in_float64():
  rewards = np.random.default_rng(0).uniform(size=11)
  np.testing.assert_allclose(simplex.temperature_group_std(rewards), rewards.std(),
                             rtol=1e-5)
  np.testing.assert_allclose(simplex.temperature_group_mean(rewards), rewards.mean(),
                             rtol=1e-5)
  assert simplex.temperature_constant(rewards) == 1
  assert simplex.temperature_constant(rewards, value=0.5) == 0.5


@pytest.mark.parametrize('value', [0.0, 0.1, 0.7, 1 / 3, 1.0])
@pytest.mark.parametrize('count', [1, 3, 7, 64])
def test_std_of_equal_rewards_is_exactly_zero_with_a_finite_gradient(value, count):
  rewards = jnp.full(count, value)
  assert simplex.temperature_group_std(rewards) == 0
  assert jnp.all(jnp.isfinite(jax.grad(simplex.temperature_group_std)(rewards)))


def test_batch_std_centres_each_group_and_leaves_out_what_does_not_count():
  rewards = np.random.default_rng(1).uniform(size=(5, 4)) + np.arange(5)[:, None]
  where = np.array([True, False, True, True, False])
  centred = [r - rewards[b].mean() for b in range(5) if where[b] for r in rewards[b]]
  expected = np.sqrt(np.mean(np.square(centred)))
  np.testing.assert_allclose(simplex.temperature_batch_std(rewards, where), expected,
                             rtol=1e-5)
  kept = rewards[where]
  np.testing.assert_allclose(simplex.temperature_batch_std(kept), expected, rtol=1e-5)
  assert simplex.temperature_batch_std(rewards, np.zeros(5, bool)) == 0


def test_batch_std_of_groups_of_one_is_the_std_of_the_batch():
  rewards = np.array([[0.0], [1.0], [1.0], [9.0]])
  where = np.array([True, True, True, False])
  np.testing.assert_allclose(simplex.temperature_batch_std(rewards, where),
                             rewards[:3].std(), rtol=1e-6)


def _targets(rewards, tau, anchor):
  phi = rewards / tau + anchor
  w = np.exp(phi - phi.max())
  return w / w.sum()


@pytest.mark.parametrize('scale', [1e-3, 1.0, 100.0])
def test_target_kl_puts_the_target_at_that_distance_from_the_anchor(scale):
  rng = np.random.default_rng(2)
  solve = jax.jit(simplex.temperature_target_kl)
  for value in (0.01, 0.1, 0.5):
    rewards, anchor = rng.uniform(size=8) * scale, rng.normal(size=8) * 0.3
    w = _targets(rewards, float(solve(rewards, anchor, value)), anchor)
    p = _targets(np.zeros(8), 1.0, anchor)
    np.testing.assert_allclose(np.sum(w * np.log(w / p)), value, rtol=1e-3)


@pytest.mark.parametrize('scale', [1e-3, 1.0, 100.0])
def test_target_ess_gives_the_target_that_sample_size(scale):
  rng = np.random.default_rng(3)
  solve = jax.jit(simplex.temperature_target_ess)
  for value in (1.5, 3.0, 7.5):
    rewards = rng.uniform(size=8) * scale
    w = _targets(rewards, float(solve(rewards, np.zeros(8), value)), np.zeros(8))
    np.testing.assert_allclose(1 / np.sum(w * w), value, rtol=1e-3)


def test_unreachable_values_saturate_at_the_best_responses_or_at_the_anchor():
  rewards, anchor = jnp.array([0.0, 1.0, 1.0, 0.0]), jnp.zeros(4)
  best, uniform = [0, 0.5, 0.5, 0], [0.25] * 4
  for rule, cold, hot in [(simplex.temperature_target_kl, 5.0, 0.0),
                          (simplex.temperature_target_ess, 1.5, 4.5)]:
    for value, expected in [(cold, best), (hot, uniform)]:
      tau = rule(rewards, anchor, value)
      assert jnp.isfinite(tau) and tau > 0
      np.testing.assert_allclose(jnp.exp(simplex.gibbs_target(rewards, tau, anchor)),
                                 expected, atol=1e-5)


@pytest.mark.parametrize('rule', [simplex.temperature_target_kl,
                                  simplex.temperature_target_ess])
def test_flat_rewards_get_a_finite_temperature(rule):
  rewards = jnp.array([[0.1] * 4, [0.0] * 4])
  taus = jax.vmap(lambda r: rule(r, jnp.zeros(4), 2.0))(rewards)
  assert jnp.all(jnp.isfinite(taus)) and jnp.all(taus > 0)
