"""Blocks meet exactly where some query sees some key, and hide exactly the others."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from lpo_jax.policy import flash_tpu_kernels as kernels


def _seen(part):
  """Return bool[queries, keys] for all queries and keys, padding of blocks included."""
  queries = np.arange(part.queries * part.rows)[:, None]
  distance = queries - np.arange(part.count * part.size) - part.offset
  seen = distance < (part.window or 10**6)
  return seen if part.offset and not part.window else seen & (distance >= 0)


@pytest.mark.parametrize('part', [
  kernels.Part(offset, count, size, rows, queries, window)
  for offset, window in itertools.product((0, -7), (None, 1, 3, 6, 40))
  for count, size, rows, queries in ((3, 4, 4, 3), (4, 3, 5, 2), (2, 8, 2, 7))
  if not offset or count * size - 7 < size])
def test_blocks_meet_hide_and_are_read_where_a_query_sees_a_key(part):
  seen = _seen(part)
  met = np.zeros((part.queries, part.count), bool)
  for i, j in np.ndindex(*met.shape):
    block = seen[i * part.rows:(i + 1) * part.rows, j * part.size:(j + 1) * part.size]
    met[i, j] = block.any()
    real = not part.offset or j * part.size + part.offset < 0
    assert not met[i, j] or bool(part.meets(i, j)) or not real
    assert bool(part.meets(i, j)) <= met[i, j]
    scores = jnp.zeros((part.rows, part.size))
    np.testing.assert_array_equal(part.hide(scores, i, j, 0) == 0, block)
    np.testing.assert_array_equal(part.hide(scores.T, i, j, 1) == 0, block.T)
  for i, j in np.argwhere(met):
    assert part.near_keys(i, j) == j and part.near_queries(i, j) == i
  for i in range(part.queries):  # what is read between two blocks that meet is either
    read = {int(part.near_keys(i, j)) for j in range(-2, part.count + 2)}
    assert len(read) <= max(1, met[i].sum())


def test_rows_become_columns():
  row = np.arange(6, dtype=np.float32)[None]
  np.testing.assert_array_equal(kernels.as_column(jnp.asarray(row))[:, 5], row[0])
