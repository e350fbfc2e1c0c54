"""Rows that are taken out or given room keep their values and their devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpo_jax import compaction, sharding
from lpo_jax import policy as policies
from lpo_jax.policy import kv

_B, _K, _HEADS, _SLOTS = 8, 4, 2, 3


def _rows(mesh):
  """Return rows of numbered keys and values, placed along the mesh."""
  def numbered(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)

  keys, values = (2, _B, _K, _HEADS, 2, _SLOTS), (2, _B, _K, _HEADS, _SLOTS, 2)
  prompt = (2, _B, _HEADS, 5, 2)
  rows = compaction.Rows(
    policies.Prompt((numbered(*prompt),) * 2, np.ones((_B, 5), bool), np.full(_B, 5)),
    policies.Cache(kv.Slots(numbered(*keys), numbered(*values)), jnp.int32(1)),
    jax.vmap(jax.random.split, (0, None))(
      jax.random.split(jax.random.key(0), _B), _K),
    np.arange(_B * _K).reshape(_B, _K), np.zeros((_B, _K), bool))
  return compaction.placed(rows, lambda x, *logical: jax.device_put(
    x, sharding.placement(x.shape, logical, mesh)))


def _places():
  return np.arange(_B)[:, None], np.arange(_K)[None]


def _done(active):
  """Return bool[B, K], True but for the given (group, member) pairs."""
  done = np.ones((_B, _K), bool)
  done[tuple(np.transpose(active))] = False
  return done


@pytest.mark.parametrize('shape', [(1, 1, 1), (2, 2, 2), (1, 4, 1)])
def test_the_unfinished_remain_with_their_own_keys_values_and_places(shape):
  mesh = sharding.make_mesh(shape)
  active = [(0, 1), (3, 0), (3, 3), (5, 2), (6, 1)]
  done = _done(active)
  with jax.set_mesh(mesh):
    rows = _rows(mesh)
    taken, places = compaction.compact_if_worth(rows, _places(), done)
  assert taken.token.size < _B * _K
  groups, members = np.broadcast_arrays(*places)
  assert set(active) <= set(zip(groups.ravel().tolist(), members.ravel().tolist(),
                                strict=True))
  np.testing.assert_array_equal(taken.token, rows.token[groups, members])
  np.testing.assert_array_equal(*(jax.random.key_data(keys) for keys in (
    taken.keys, rows.keys[groups, members])))
  for new, old in zip(*map(jax.tree.leaves, (taken.cache.layers, rows.cache.layers)),
                      strict=True):
    np.testing.assert_array_equal(new, np.asarray(old)[:, groups, members])
  for new, old in zip(taken.prompt.layers, rows.prompt.layers, strict=True):
    np.testing.assert_array_equal(new, np.asarray(old)[:, groups[:, 0]])


def test_keys_and_values_stay_on_their_devices():
  mesh = sharding.make_mesh((2, 2, 2))
  with jax.set_mesh(mesh):
    rows = _rows(mesh)
    taken, _ = compaction.compact_if_worth(rows, _places(), _done([(0, 1), (7, 2)]))
    grown = compaction.grow(taken, capacity=7)
    text = compaction._take.lower(
      rows, *(np.zeros(shape, np.int32) for shape in ((4, 1), (4,), (4, 2)))
    ).compile().as_text()
  for x in jax.tree.leaves((grown.cache.layers, grown.prompt.layers)):
    shard = x.sharding.shard_shape(x.shape)
    assert (shard[1], shard[-3]) == (x.shape[1] // 4, x.shape[-3] // 2)
  moved = [line for line in text.splitlines() if 'f32[' in line and any(
    f' {name}(' in line for name in ('all-gather', 'all-reduce', 'all-to-all'))]
  assert not moved, moved
  assert grown.cache.slots == 7


def test_nothing_is_taken_while_more_than_half_of_a_shard_runs():
  mesh = sharding.make_mesh((4, 1, 1))
  with jax.set_mesh(mesh):
    rows = _rows(mesh)
    active = [(i, k) for i in (0, 1) for k in range(_K)]  # all of the first shard
    same, places = compaction.compact_if_worth(rows, _places(), _done(active))
  assert same is rows
