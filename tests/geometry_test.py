"""The response simplex: its softmax, its statistics and the zero-sum formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpo_jax.simplex import geometry


def test_policy_is_uniform_at_equal_scores_and_shift_invariant():
  np.testing.assert_allclose(
    geometry.log_policy(jnp.full(5, 7.0)), -np.log(5.0), rtol=1e-6)
  scores = np.array([0.3, -2.0, 1.1, 0.0])
  np.testing.assert_allclose(geometry.log_policy(scores + 50.0),
                             geometry.log_policy(scores), atol=1e-5)
  total = jnp.sum(jnp.exp(geometry.log_policy(scores)))
  np.testing.assert_allclose(total, 1, rtol=1e-6)


def test_policy_matches_a_float64_softmax():
  scores = np.random.default_rng(0).normal(size=9) * 5
  p = np.exp(scores) / np.exp(scores).sum()
  np.testing.assert_allclose(geometry.log_policy(scores), np.log(p), rtol=1e-5)


@pytest.mark.parametrize('count', [1, 2, 7, 64])
def test_uniform_has_entropy_log_k_and_sample_size_k(count):
  log_p = jnp.full(count, -np.log(count))
  np.testing.assert_allclose(geometry.entropy(log_p), np.log(count), atol=1e-5)
  np.testing.assert_allclose(geometry.effective_sample_size(log_p), count, rtol=1e-5)


def test_point_mass_has_entropy_zero_and_sample_size_one():
  log_p = geometry.log_policy(jnp.array([0.0, -1e8, -np.inf]))
  assert geometry.entropy(log_p) == 0
  assert geometry.effective_sample_size(log_p) == 1


def test_entropy_and_sample_size_match_their_definitions():
  p = np.random.default_rng(1).dirichlet(np.ones(6))
  np.testing.assert_allclose(
    geometry.entropy(np.log(p)), -sum(q * np.log(q) for q in p), rtol=1e-5)
  np.testing.assert_allclose(
    geometry.effective_sample_size(np.log(p)), 1 / sum(q * q for q in p), rtol=1e-5)


def test_total_variation_is_half_the_distance_and_one_when_disjoint():
  rng = np.random.default_rng(2)
  p, q = rng.dirichlet(np.ones(5)), rng.dirichlet(np.ones(5))
  largest = max(sum(p[i] - q[i] for i in range(5) if subset >> i & 1)
                for subset in range(32))
  np.testing.assert_allclose(
    geometry.total_variation(np.log(p), np.log(q)), largest, rtol=1e-5)
  np.testing.assert_allclose(
    geometry.total_variation(jnp.array([0.0, -1e8]), jnp.array([-1e8, 0.0])), 1)


def test_zero_sum_matches_the_softmax_jacobian():
  rng = np.random.default_rng(3)
  p, g = rng.dirichlet(np.ones(7)), rng.normal(size=7)
  jacobian = np.diag(p) - np.outer(p, p)
  np.testing.assert_allclose(geometry.zero_sum(np.log(p), g), jacobian @ g, atol=1e-6)


def test_zero_sum_survives_a_derivative_that_dwarfs_float32():
  # P = (1, 1e-9), g = (1e8, 0): c = 1e8 * 1e-9 = 0.1 on both sides, where
  # P_1 (g_1 - <P, g>) rounds to 0.
  log_p = jnp.array([0.0, np.log(1e-9)])
  coefficients = geometry.zero_sum(log_p, jnp.array([1e8, 0.0]))
  np.testing.assert_allclose(coefficients, [0.1, -0.1], rtol=1e-5)


def test_flat_means_all_rewards_equal():
  assert geometry.is_flat(jnp.full(4, 0.1)) and geometry.is_flat(jnp.ones(1))
  assert not geometry.is_flat(jnp.array([0.1, 0.1, 0.2]))


def test_a_batch_is_refused_and_vmap_serves_it():
  scores = jnp.zeros((3, 4))
  with pytest.raises(AssertionError):
    geometry.log_policy(scores)
  assert jax.vmap(geometry.log_policy)(scores).shape == (3, 4)
