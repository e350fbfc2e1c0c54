"""The product of a layer and its gradients, against JAX's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpo_jax.policy import linear


def _normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize('lead', [(), (5,), (2, 3, 4)])
def test_value_and_gradients_are_those_of_a_matrix_product(lead):
  x, weight, slope = _normal(0, *lead, 6), _normal(1, 6, 3), _normal(2, *lead, 3)

  def loss(function, x, weight):
    return jnp.sum(function(x, weight) * slope)

  got, expected = (
    jax.value_and_grad(loss, argnums=(1, 2))(f, x, weight)
    for f in (linear.linear, jnp.matmul))
  for a, b in zip(*map(jax.tree.leaves, (got, expected)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_weights_are_cast_to_the_activations_and_gradients_back():
  x, weight = jnp.asarray(_normal(0, 4, 6), jnp.bfloat16), _normal(1, 6, 3)
  assert linear.linear(x, weight).dtype == jnp.bfloat16
  dx, dweight = jax.grad(
    lambda x, w: jnp.sum(linear.linear(x, w).astype(jnp.float32)), argnums=(0, 1))(
      x, weight)
  assert (dx.dtype, dweight.dtype) == (jnp.bfloat16, jnp.float32)


def test_no_activation_is_transposed():
  def loss(x, weight):
    return jnp.sum(linear.linear(x, weight) ** 2)

  text = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(
    _normal(0, 2, 4, 6), _normal(1, 6, 3)).as_text()
  assert 'transpose' not in text
