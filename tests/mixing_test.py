"""A layer gives the same whole, together with its prompt, and token by token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpo_jax.policy import attention, kv, mixing, rotary
from tests import tiny

WIDTH = 5


@pytest.fixture(scope='module')
def layer():
  policy = tiny.policy(qkv_bias=True, qk_norm=True)
  return policy.config, jax.tree.map(lambda a: a[0], policy.blocks)


def stream(samples: int = 1) -> jax.Array:
  return jnp.asarray(np.random.default_rng(0).normal(size=(2, samples, WIDTH, 16)),
                     jnp.float32)


def rope(config, start: int, stop: int):
  return rotary.angles(jnp.arange(start, stop)[None, None], config)


def whole(layer, x=None):
  config, block = layer
  return block(stream() if x is None else x, rope(config, 0, WIDTH),
               mixing.whole(config, jnp.ones((1, 1, WIDTH), bool)))


@pytest.mark.parametrize(('dtype', 'error'), [
  ('same', 1e-5), ('bfloat16', 0.02), ('int8', 0.03)])
def test_token_by_token_is_the_whole_sequence(layer, dtype, error):
  config, block = layer
  expected, (keys, values) = whole(layer)
  hidden = jnp.zeros((1, 1, 1, 1), bool)  # a prompt that nobody sees
  empty = jnp.zeros((2, config.kv_heads, 1, config.head_dim))
  prompt = attention.Part(empty, empty, hidden)
  cache = kv.Cache.empty(kv.Prompt((empty, empty), None, None), 1, WIDTH, dtype).layers
  for i in range(WIDTH):
    seen = (jnp.arange(WIDTH) <= i)[None, None, None]
    found, cache = block(stream()[:, :, i:i + 1], rope(config, i, i + 1),
                         mixing.cached(prompt, cache, seen, i))
    np.testing.assert_allclose(found, expected[:, :, i:i + 1], atol=error)
  scales = (1.0, 1.0) if dtype != 'int8' else cache[2:]
  np.testing.assert_allclose((cache.keys * scales[0]).mT, keys[:, 0], atol=error)
  np.testing.assert_allclose(cache.values * scales[1], values[:, 0], atol=error)


def test_behind_a_shared_beginning_every_end_is_the_same(layer):
  config, block = layer
  samples, size = 3, 2
  x = stream(samples)
  x = x.at[:, :, :size].set(x[:, :1, :size])  # the same beginning
  expected, _ = whole(layer, x)
  rows = jnp.concatenate([x[:, 0, :size], x[:, :, size:].reshape(2, -1, 16)], axis=1)
  angles = (jnp.concatenate([angle[:, 0, :size], *[angle[:, 0, size:]] * samples], 1)
            for angle in rope(config, 0, WIDTH))
  found, kept = block(rows, tuple(angles), mixing.together(
    config, jnp.ones((2, size), bool), samples))
  assert kept is None
  np.testing.assert_allclose(found[:, :size], expected[:, 0, :size], atol=1e-5)
  np.testing.assert_allclose(found[:, size:].reshape(2, samples, -1, 16),
                             expected[:, :, size:], atol=1e-5)


def test_padding_before_a_prompt_is_not_seen(layer):
  config, block = layer
  rows, mask = stream()[:, 0], jnp.asarray([[False, True]] * 2)

  def run(rows):
    return block(rows, tuple(angle[:, 0] for angle in rope(config, 0, WIDTH)),
                 mixing.together(config, mask, samples=3))[0]

  moved = np.abs(run(rows.at[:, 0].add(1.0)) - run(rows)).max(axis=(0, 2))
  assert moved[0] > 0.1 and not moved[1:].any()
