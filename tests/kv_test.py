"""The cache of keys and values has the shapes it says, stacked or layer by layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpo_jax.policy import kv


def _prompt(unrolled):
  pair = (jnp.ones((2, 3, 5, 4)), jnp.ones((2, 3, 5, 4)))  # [B, Hkv, P, d]
  layers = (pair, pair) if unrolled else tuple(jnp.stack([x, x]) for x in pair)
  return kv.Prompt(layers, jnp.ones((2, 5), bool), jnp.full(2, 5))


@pytest.mark.parametrize('dtype', ['same', 'bfloat16', 'int8'])
@pytest.mark.parametrize('unrolled', [True, False])
def test_room_is_made_for_every_response_and_grows_without_loss(unrolled, dtype):
  cache = kv.Cache.empty(_prompt(unrolled), samples=6, slots=7, dtype=dtype)
  layer = cache.layers[0] if unrolled else jax.tree.map(lambda x: x[0], cache.layers)
  assert layer.keys.shape == (2 * 6, 3, 4, 7)
  assert layer.values.shape == (2 * 6, 3, 7, 4)
  assert layer.keys.dtype == layer.values.dtype == (
    'float32' if dtype == 'same' else dtype)
  assert (cache.slots, cache.length) == (7, 0)
  marked = cache._replace(layers=jax.tree.map(jnp.ones_like, cache.layers))
  grown = marked.grown(10)
  assert (grown.slots, grown.length) == (10, 0)
  for before, after in zip(*map(jax.tree.leaves, (marked.layers, grown.layers)),
                           strict=True):
    assert after.sum() == before.sum()  # new slots are zero
    np.testing.assert_array_equal(
      after[tuple(slice(0, n) for n in before.shape)], before)


@pytest.mark.parametrize(('dtype', 'steps'), [('bfloat16', 2**-8), ('int8', 0.5 / 127)])
def test_narrow_slots_hold_what_was_written_to_half_a_step(dtype, steps):
  pair = (jnp.zeros((2, 3, 1, 4)),) * 2
  slots = kv.Cache.empty(kv.Prompt(pair, None, None), 6, 7, dtype).layers
  rng = np.random.default_rng(0)
  keys = rng.normal(size=(2, 6, 3, 4, 2)) * 10.0 ** rng.integers(-3, 3, (2, 6, 3, 1, 2))
  values = np.zeros((2, 6, 3, 2, 4))  # a token of zeros stays one
  slots = slots.written(jnp.asarray(keys, jnp.float32), jnp.asarray(values), 5)
  wide = np.asarray(slots.keys, np.float64)
  keys = keys.reshape(2 * 6, 3, 4, 2)
  if dtype == 'int8':
    assert np.abs(wide).max() == 127
    wide *= slots.key_scale
  largest = np.abs(keys).max(axis=-2, keepdims=True)
  assert (np.abs(wide[..., 5:] - keys) <= 1.001 * steps * largest).all()
  assert not wide[..., :5].any() and not np.asarray(slots.values, float).any()
