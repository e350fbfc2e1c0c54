"""One layer is the same by whole sequences, behind a prompt, and token by token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpo_jax.policy import kv, rotary
from tests import tiny

WIDTH = 5


@pytest.fixture(scope='module')
def layer():
  policy = tiny.policy(qkv_bias=True, qk_norm=True)
  return policy.config, jax.tree.map(lambda a: a[0], policy.blocks)


def stream() -> jax.Array:
  return jnp.asarray(np.random.default_rng(0).normal(size=(2, 1, WIDTH, 16)),
                     jnp.float32)


def rope(config, start: int, stop: int):
  return rotary.angles(jnp.arange(start, stop)[None, None], config)


def whole(layer):
  config, block = layer
  return block(stream(), rope(config, 0, WIDTH), jnp.ones((1, 1, WIDTH), bool))


def test_token_by_token_is_the_whole_sequence(layer):
  config, block = layer
  expected, (keys, values) = whole(layer)
  prompt = (jnp.zeros((2, config.kv_heads, 1, config.head_dim)),) * 2
  hidden = jnp.zeros((1, 1, 1, 1), bool)  # a prompt that nobody sees
  cache = kv.Slots(jnp.zeros((2, 1, config.kv_heads, config.head_dim, WIDTH)),
                   jnp.zeros((2, 1, config.kv_heads, WIDTH, config.head_dim)))
  for i in range(WIDTH):
    seen = (jnp.arange(WIDTH) <= i)[None, None, None]
    found, cache = block(stream()[:, :, i:i + 1], rope(config, i, i + 1), seen,
                         (*prompt, hidden), cache, i)
    np.testing.assert_allclose(found, expected[:, :, i:i + 1], atol=1e-5)
  np.testing.assert_allclose(jnp.swapaxes(cache.keys, 3, 4), keys, atol=1e-5)
  np.testing.assert_allclose(cache.values, values, atol=1e-5)


def test_behind_its_own_beginning_the_end_is_the_same(layer):
  config, block = layer
  expected, (keys, values) = whole(layer)
  prompt = (keys[:, 0, :, :2], values[:, 0, :, :2], jnp.ones((2, 2), bool))
  found, _ = block(stream()[:, :, 2:], rope(config, 2, WIDTH),
                   jnp.ones((1, 1, WIDTH - 2), bool), prompt)
  np.testing.assert_allclose(found, expected[:, :, 2:], atol=1e-5)


def test_a_token_does_not_see_those_after_it(layer):
  config, block = layer
  changed = stream().at[:, :, -1].add(1.0)
  found, _ = block(changed, rope(config, 0, WIDTH), jnp.ones((1, 1, WIDTH), bool))
  gap = np.abs(found - whole(layer)[0]).max(axis=(0, 1, 3))
  assert gap[-1] > 0.1 and not gap[:-1].any()
