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


@pytest.mark.parametrize('unrolled', [True, False])
def test_room_is_made_for_every_response_and_grows_without_loss(unrolled):
  cache = kv.Cache.empty(_prompt(unrolled), samples=6, slots=7)
  layer = cache.layers[0] if unrolled else jax.tree.map(lambda x: x[0], cache.layers)
  assert layer.keys.shape == (2, 6, 3, 4, 7)
  assert layer.values.shape == (2, 6, 3, 7, 4)
  assert (cache.slots, cache.length) == (7, 0)
  marked = cache._replace(layers=jax.tree.map(lambda x: x + 1.0, cache.layers))
  grown = marked.grown(10)
  assert (grown.slots, grown.length) == (10, 0)
  for before, after in zip(*map(jax.tree.leaves, (marked.layers, grown.layers)),
                           strict=True):
    assert after.sum() == before.sum()  # new slots are zero
    np.testing.assert_array_equal(
      after[tuple(slice(0, n) for n in before.shape)], before)
