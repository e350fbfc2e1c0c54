"""Rows that are taken out or given room keep their values and their devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpo_jax import compaction, refill, sharding
from lpo_jax import policy as policies
from lpo_jax.policy import kv

_B, _K, _HEADS, _SLOTS = 8, 4, 2, 3


def _rows(mesh):
  """Return rows of numbered keys and values, placed along the mesh."""
  def numbered(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)

  keys, values = (2, _B * _K, _HEADS, 2, _SLOTS), (2, _B * _K, _HEADS, _SLOTS, 2)
  prompt = (2, _B, _HEADS, 5, 2)
  rows = compaction.Rows(
    policies.Prompt((numbered(*prompt),) * 2, np.ones((_B, 5), bool), np.full(_B, 5)),
    policies.Cache(kv.Slots(numbered(*keys), numbered(*values)), jnp.int32(1)),
    jax.vmap(jax.random.split, (0, None))(
      jax.random.split(jax.random.key(0), _B), _K),
    np.full((_B, _K), 9), np.arange(_B * _K).reshape(_B, _K), np.zeros((_B, _K), bool))
  return compaction.placed(rows, lambda x, *logical: jax.device_put(
    x, sharding.placement(x.shape, logical, mesh)))


def _places(mesh, *active):
  """Return the rows [S, b, K] of a load, NOBODY but for some (group, member) pairs."""
  rows = np.full((_B, _K), refill.NOBODY)
  for group, member in active:
    rows[group, member] = group * _K + member
  return rows.reshape(sharding.batch_shards(mesh), -1, _K)


def _whole(mesh):
  shards = sharding.batch_shards(mesh)
  return shards, _B // shards, _K


def _same(taken, rows, places):
  """Assert that real places hold what rows [B, K] of those numbers do."""
  places = places.reshape(-1, places.shape[-1])
  real = places != refill.NOBODY
  groups, members = places[real] // _K, places[real] % _K
  np.testing.assert_array_equal(taken.token[real], rows.token[groups, members])
  np.testing.assert_array_equal(*(jax.random.key_data(keys) for keys in (
    taken.keys[real], rows.keys[groups, members])))
  for new, old in zip(*map(jax.tree.leaves, (taken.cache.layers, rows.cache.layers)),
                      strict=True):
    np.testing.assert_array_equal(np.asarray(new)[:, real.reshape(-1)],
                                  np.asarray(old)[:, groups * _K + members])
  slots = np.nonzero(real)[0]
  for new, old in zip(taken.prompt.layers, rows.prompt.layers, strict=True):
    np.testing.assert_array_equal(np.asarray(new)[:, slots], np.asarray(old)[:, groups])


_MESHES = [(1, 1, 1), (2, 2, 2), (1, 4, 1)]


@pytest.mark.parametrize('shape', _MESHES)
def test_the_unfinished_remain_with_their_own_keys_and_values(shape):
  mesh = sharding.make_mesh(shape)
  places = _places(mesh, (0, 1), (3, 0), (3, 3), (5, 2), (6, 1))
  with jax.set_mesh(mesh):
    rows, to = _rows(mesh), refill.pack([places], _whole(mesh))
    taken = compaction.move([rows], to)
  assert taken.token.shape == (to.rows[..., 0].size, to.rows.shape[2])
  assert taken.token.size < _B * _K and (to.rows != refill.NOBODY).sum() == 5
  _same(taken, rows, to.rows)


@pytest.mark.parametrize('shape', _MESHES)
def test_two_loads_come_together_and_keep_whatever_is_theirs(shape):
  mesh = sharding.make_mesh(shape)
  first = _places(mesh, (0, 1), (3, 0), (3, 3), (5, 2), (6, 1))
  other = _places(mesh, (1, 0), (1, 1), (2, 3), (7, 0))
  with jax.set_mesh(mesh):
    rows = _rows(mesh)
    to = refill.pack([first], _whole(mesh))
    second = refill.pack([to.rows, other], _whole(mesh))
    both = compaction.move([compaction.move([rows], to), rows], second)
  assert both.token.shape[0] == second.rows[..., 0].size < _B * _K
  assert (second.rows != refill.NOBODY).sum() == 9
  assert {0, 1} <= set(second.load.ravel().tolist())
  _same(both, rows, second.rows)
  assert both.cache.length == rows.cache.length


def test_keys_and_values_stay_on_their_devices():
  mesh = sharding.make_mesh((2, 2, 2))
  with jax.set_mesh(mesh):
    rows = _rows(mesh)
    to = refill.pack([_places(mesh, (0, 1), (7, 2))], _whole(mesh))
    taken = compaction.move([rows], to)
    index = tuple(np.zeros(shape, np.int32) for shape in ((4, 1), (4,), (4, 2)))
    texts = [compaction._take.lower(rows, *index).compile().as_text(),
             compaction._merge.lower((rows, taken), (index, index), np.zeros(4, bool)
                                     ).compile().as_text()]
    grown = compaction.grow(taken, capacity=7)
  for x in jax.tree.leaves((grown.cache.layers, grown.prompt.layers)):
    shard = x.sharding.shard_shape(x.shape)
    assert (shard[1], shard[-3]) == (x.shape[1] // 4, x.shape[-3] // 2)
  for text in texts:
    moved = [line for line in text.splitlines() if 'f32[' in line and any(
      f' {name}(' in line for name in ('all-gather', 'all-reduce', 'all-to-all'))]
    assert not moved, moved
  assert grown.cache.slots == 7
