"""The gated activation and its gradient, against JAX's own and float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

from lpo_jax.policy import swiglu


def _arrays(dtype=np.float32):
  return np.random.default_rng(0).normal(scale=4, size=(3, 2, 5, 7)).astype(dtype)


def test_value_is_that_of_float64():
  gate, up, _ = _arrays(np.float64)
  np.testing.assert_allclose(swiglu.swiglu(*_arrays()[:2]),
                             gate / (1 + np.exp(-gate)) * up, rtol=1e-5, atol=1e-6)


def test_gradients_are_jax_s_own():
  gate, up, slope = _arrays()

  def gradient(function):
    return jax.grad(lambda g, u: jnp.sum(function(g, u) * slope), argnums=(0, 1))(
      gate, up)

  for a, b in zip(gradient(swiglu.swiglu),
                  gradient(lambda g, u: jax.nn.silu(g) * u), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_dtype_is_that_of_the_activations_and_far_ends_are_finite():
  gate = jnp.asarray([-1e4, -80.0, 0.0, 80.0, 1e4], jnp.bfloat16)
  assert swiglu.swiglu(gate, gate).dtype == jnp.bfloat16
  slopes = jax.grad(lambda g: jnp.sum(swiglu.swiglu(g, jnp.ones_like(g))
                                      .astype(jnp.float32)))(gate)
  np.testing.assert_allclose(slopes.astype(jnp.float32), [0, 0, 0.5, 1, 1], atol=1e-6)


def test_the_backward_pass_keeps_two_arrays():
  gate, up, _ = _arrays()
  _, pull = jax.vjp(swiglu.swiglu, gate, up)
  assert len(jax.tree.leaves(pull)) == 2
