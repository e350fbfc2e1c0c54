"""Rotary embedding knows distances only, and stretches long wavelengths alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpo_jax.policy import RopeScaling, rotary
from tests import tiny


def test_rotary_product_depends_on_the_distance_only():
  config = tiny.policy().config
  queries, keys = np.random.default_rng(0).normal(size=(2, 1, 8)).astype(np.float32)

  def product(p, q):
    a = rotary.rotate(queries, *rotary.angles(jnp.int32(p), config))
    b = rotary.rotate(keys, *rotary.angles(jnp.int32(q), config))
    return float(jnp.sum(a * b))

  np.testing.assert_allclose(product(7, 3), product(104, 100), rtol=1e-4)
  np.testing.assert_allclose(product(3, 7), product(100, 104), rtol=1e-4)
  assert abs(product(7, 3) - product(7, 4)) > 1e-3
  np.testing.assert_allclose(product(5, 5), float(np.sum(queries * keys)), rtol=1e-4)


def test_gradient_is_that_of_the_written_rotation():
  config = tiny.policy().config
  x, slope = np.random.default_rng(0).normal(size=(2, 5, 3, 8)).astype(np.float32)
  cos, sin = rotary.angles(jnp.arange(5), config)

  def written(x):  # as 4 complex numbers
    z = (x[..., :4] + 1j * x[..., 4:]) * (cos + 1j * sin)[:, None]
    return jnp.concatenate([z.real, z.imag], axis=-1)

  got, expected = (jax.grad(lambda x, f=f: jnp.sum(f(x) * slope))(x)
                   for f in (lambda x: rotary.rotate(x, cos, sin), written))
  np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize('kind', ['linear', 'llama3'])
def test_scaling_stretches_as_its_kind_says(kind):
  scaling = RopeScaling(kind, factor=8.0, original_max_position=64)
  plain = dataclasses.replace(tiny.policy().config, head_dim=16, rope_theta=1e4)
  scaled = dataclasses.replace(plain, rope_scaling=scaling)

  def turns(config):  # radians a position adds, small enough not to wrap
    cos, sin = rotary.angles(jnp.float32(1e-2), config)
    return np.arctan2(sin, cos) * 1e2

  ratio = turns(plain) / turns(scaled)
  if kind == 'linear':
    np.testing.assert_allclose(ratio, 8.0, rtol=1e-3)
  else:  # wavelengths below 64 / 4 keep their speed, above 64 / 1 lose a factor 8
    wavelengths = 2 * np.pi / turns(plain)
    np.testing.assert_allclose(ratio[wavelengths < 16], 1.0, rtol=1e-3)
    np.testing.assert_allclose(ratio[wavelengths > 64], 8.0, rtol=1e-3)
    between = ratio[(wavelengths > 16) & (wavelengths < 64)]
    assert len(between) and ((between > 1.0) & (between < 8.0)).all()
