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


@pytest.mark.parametrize(('platform', 'copies'), [('tpu', 0), ('cuda', 0), ('cpu', 1)])
def test_no_activation_is_transposed_but_one_on_cpu(platform, copies):
  def loss(x, weight):
    return jnp.sum(linear.linear(x, weight) ** 2)

  text = jax.jit(jax.grad(loss, argnums=(0, 1))).trace(
    _normal(0, 2, 4, 6), _normal(1, 6, 3)).lower(
      lowering_platforms=(platform,)).as_text()
  assert text.count('transpose') == copies


@pytest.mark.parametrize(('rows', 'columns', 'turned'), [
  (6, 3, ['6x8']), (3, 6, ['3x8']), (7, 3, ['3x8', '3x7'])])
def test_on_cpu_alone_the_narrower_factor_is_written_transposed(rows, columns, turned):
  traced = jax.jit(linear.over_rows).trace(_normal(0, 8, rows), _normal(1, 8, columns))
  for platform, expected in (('cpu', turned), ('tpu', []), ('cuda', [])):
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    written = [line.split('tensor<')[1].split('xf32')[0]
               for line in text.splitlines() if 'optimization_barrier' in line]
    assert written == expected


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('widths', [(6, 3), (3, 6), (7, 3), (3, 7)])
def test_products_over_rows_equal_those_in_float64(widths, dtype):
  x, y = (jnp.asarray(_normal(i, 2, 5, 8, width), dtype)
          for i, width in enumerate(widths))
  got = linear.over_rows(x, y)
  expected = np.swapaxes(np.asarray(x, np.float64), -1, -2) @ np.asarray(y, np.float64)
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('lead', [(), (1,), (2,), (2, 3, 4), (40, 4)])
@pytest.mark.parametrize(('dtype', 'wanted'), [
  ('float32', None), ('bfloat16', None), ('bfloat16', jnp.float32)])
def test_a_product_with_a_turned_weight_is_that_with_the_weight(lead, dtype, wanted):
  x, weight = jnp.asarray(_normal(0, *lead, 6), dtype), _normal(1, 6, 3)
  rounded = np.asarray(jnp.asarray(weight, dtype), np.float64)
  got = linear.turned(x, jnp.asarray(weight.T), wanted)
  assert got.dtype == (wanted or x.dtype)
  tolerance = 1e-5 if got.dtype == jnp.float32 else 2e-2
  np.testing.assert_allclose(np.asarray(got, np.float64),
                             np.asarray(x, np.float64) @ rounded, atol=tolerance,
                             rtol=tolerance)


def test_xla_takes_the_turned_weight_for_the_left_factor_as_it_lies():
  text = jax.jit(linear.turned).lower(
    _normal(0, 8, 256), _normal(1, 384, 256)).compile().as_text()
  dot, = (line for line in text.splitlines() if ' dot(' in line)
  assert ' = f32[384,8]' in dot
  assert 'f32[384,256]{1,0} copy(' not in text
  assert 'transpose(f32[384,256]' not in text
