"""Rows hold every real token once, in order; packing moves and changes nothing."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpo_jax import rows, sharding


def _mask(batch, width, seed=0):
  lengths = np.random.default_rng(seed).integers(0, width + 1, batch)
  return np.arange(width)[None] < lengths[:, None]


@pytest.mark.parametrize('shards', [1, 2])
def test_rows_hold_the_real_tokens_end_to_end(shards):
  mask = _mask(6, 5)
  width = max(int(part.sum()) for part in np.split(mask, shards)) + 2
  x = np.arange(1, 61, dtype=np.float32).reshape(6, 5, 2)

  @jax.jit
  def moved(x):
    layout = rows.layout(jnp.asarray(mask), width)
    packed = rows.pack(x, layout)
    return packed, rows.unpack(packed, layout, 6)

  with jax.set_mesh(sharding.make_mesh((1, shards, 1))):
    packed, back = moved(x)
  for row, part, real in zip(packed, np.split(x, shards), np.split(mask, shards),
                             strict=True):
    np.testing.assert_array_equal(row[:real.sum()], part[real])
    np.testing.assert_array_equal(row[real.sum():], 0)
  np.testing.assert_array_equal(back, x * mask[..., None])


def test_gradients_go_back_where_tokens_came_from():
  mask = jnp.asarray(_mask(4, 6, seed=1))
  layout = rows.layout(mask, int(mask.sum()) + 3)
  x, slopes = (np.random.default_rng(i).normal(size=(4, 6, 3)) for i in (2, 3))

  def there_and_back(x):
    packed = rows.pack(x, layout)
    return jnp.sum(slopes * rows.unpack(packed ** 3, layout, 4))

  expected = jax.grad(lambda x: jnp.sum(slopes * mask[..., None] * x ** 3))(x)
  np.testing.assert_allclose(jax.grad(there_and_back)(x), expected, rtol=1e-6)


def _first_fit(sizes, room, most):
  """Return the rows of first fit decreasing, as a list of lists."""
  found = []
  for piece in sorted(range(len(sizes)), key=lambda i: -sizes[i][0]):
    if not sizes[piece][0]:
      continue
    for row in found:
      held = np.sum([sizes[i] for i in row], axis=0)
      if len(row) < most and np.all(held + sizes[piece] <= room):
        row.append(piece)
        break
    else:
      found.append([piece])
  return found


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('per_row', [1, 3])
@pytest.mark.parametrize('most', [3, 6])
def test_pieces_fill_rows_first_fit(seed, per_row, most):
  generator = np.random.default_rng(seed)
  responses = generator.integers(0, 20, 24)
  sizes = np.stack([responses + generator.integers(1, 5, 24), responses], 1)
  sizes[generator.integers(0, 24, 5)] = 0
  room = per_row * 24, per_row * 19
  members = np.asarray(jax.jit(rows.fill, static_argnums=(1, 2, 3))(
    sizes, room, most, 24 // per_row))
  expected = _first_fit(sizes, room, most)
  assert [[i for i in row if i >= 0] for row in members][:len(expected)] == expected
  assert (members[len(expected):] < 0).all()
  placed = sorted(itertools.chain(*expected))
  assert placed == np.flatnonzero(sizes[:, 0]).tolist()


def test_as_many_rows_as_padded_pieces_always_suffice():
  for seed, per_row in itertools.product(range(40), (1, 2, 4)):
    generator = np.random.default_rng(seed)
    responses = generator.integers(0, 31, 16)
    sizes = np.stack([responses + generator.integers(1, 11, 16), responses], 1)
    found = _first_fit(sizes, (per_row * 40, per_row * 30), per_row)
    assert len(found) <= 16 // per_row
