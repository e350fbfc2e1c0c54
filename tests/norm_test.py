"""Root-mean-square normalisation against its formula, its gradient against JAX's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpo_jax.policy import norm

_EPS = 1e-5


def _formula(x, weight, eps=_EPS):
  return x / jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def _normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize('lead', [(5,), (2, 3, 4)])
def test_value_and_gradient_are_those_of_the_formula(lead):
  x, weight, slope = _normal(0, *lead, 6), _normal(1, 6), _normal(2, *lead, 6)
  wide = weight.reshape((1,) * len(lead) + (6,))

  def loss(function, x, weight):
    return jnp.sum(function(x, weight) * slope)

  value, got = jax.value_and_grad(
    lambda x, w: loss(lambda x, w: norm.rms_norm(x, w, _EPS), x, w), (0, 1))(x, weight)
  same, expected = jax.value_and_grad(lambda x, w: loss(_formula, x, w), (0, 1))(
    x, wide)
  np.testing.assert_allclose(value, same, rtol=1e-5)
  np.testing.assert_allclose(got[0], expected[0], rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(got[1], expected[1].ravel(), rtol=1e-4, atol=1e-6)


def test_epsilon_counts():
  x, weight = 1e-3 * _normal(0, 4, 6), np.ones(6, np.float32)
  values = [norm.rms_norm(x, weight, eps) for eps in (1e-6, 1e-5)]
  assert np.abs(values[0] - values[1]).max() > 0.1


def test_means_are_float32_in_low_precision():
  # Of this draw no mean leaves a product at a tie between two bfloat16.
  x, weight = _normal(1, 64, 512), np.ones(512, np.float32)
  low = norm.rms_norm(jnp.asarray(x, jnp.bfloat16), weight, _EPS)
  assert low.dtype == jnp.bfloat16
  rounded = np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32)
  expected = jnp.asarray(_formula(rounded, weight[None]), jnp.bfloat16)
  np.testing.assert_array_equal(low, expected)
