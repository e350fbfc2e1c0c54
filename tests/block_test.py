"""A layer is causal, and is row by row but for what its rows attend to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpo_jax.policy import mixing, rotary
from tests import tiny

WIDTH = 5


@pytest.fixture(scope='module')
def layer():
  policy = tiny.policy(qkv_bias=True, qk_norm=True)
  return policy.config, jax.tree.map(lambda a: a[0], policy.blocks)


def stream() -> jax.Array:
  return jnp.asarray(np.random.default_rng(0).normal(size=(2, 1, WIDTH, 16)),
                     jnp.float32)


def run(layer, x, attend=None):
  config, block = layer
  rope = rotary.angles(jnp.arange(WIDTH)[None, None], config)
  return block(x, rope, attend or mixing.whole(config, jnp.ones((1, 1, WIDTH), bool)))


def test_a_token_does_not_see_those_after_it(layer):
  found, _ = run(layer, stream().at[:, :, -1].add(1.0))
  gap = np.abs(found - run(layer, stream())[0]).max(axis=(0, 1, 3))
  assert gap[-1] > 0.1 and not gap[:-1].any()


def test_rows_that_attend_to_nothing_do_not_meet(layer):
  config, _ = layer
  shapes = []

  def nothing(queries, keys, values):
    shapes.extend(x.shape for x in (queries, keys, values))
    return jnp.zeros_like(queries), 'kept'

  found, kept = run(layer, stream().at[:, :, 0].add(1.0), nothing)
  gap = np.abs(found - run(layer, stream(), nothing)[0]).max(axis=(0, 1, 3))
  assert kept == 'kept' and gap[0] > 0.1 and not gap[1:].any()
  rows, heads = (2, 1, WIDTH), (config.kv_heads, config.head_dim)
  group = config.heads // config.kv_heads
  assert shapes[:3] == [(*rows, heads[0], group, heads[1]), (*rows, *heads),
                        (*rows, *heads)]
