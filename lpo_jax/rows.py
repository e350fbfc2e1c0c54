"""Sequences of unlike lengths, end to end in rows of one length.

A layout says where the real places of a padded array [B, W] lie in rows [S, T]: on each
of the S shards of the batch one row holds the tokens of its B / S sequences, in their
order. Whatever treats tokens one by one then runs on S T places instead of B W, and
what needs sequences gets them back. Nothing travels between devices.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lpo_jax import sharding
from lpo_jax.types import Array


class Layout(NamedTuple):
  """Where each place of padded sequences lies in a row, and the inverse; -1: nowhere.

  The W places of a shard's sequences have numbers 0 to B / S W - 1.
  """

  place: Array  # i32[S, B / S * W]
  source: Array  # i32[S, T]


def layout(mask: Array, width: int) -> Layout:
  """Return the layout of the places that count.

  Args:
    mask: bool[B, W]; on each shard at most `width` of them.
    width: T.
  """
  mask = mask.reshape(sharding.batch_shards(), -1)
  place = jnp.where(mask, jnp.cumsum(mask, axis=1) - 1, -1)
  numbers = jnp.arange(mask.shape[1], dtype=place.dtype)

  def inverse(place):
    nowhere = jnp.full(width, -1, place.dtype)
    return nowhere.at[jnp.where(place < 0, width, place)].set(numbers, mode='drop')

  return Layout(place, jax.vmap(inverse)(place))


def pack(x: Array, layout: Layout) -> Array:
  """Return sequences [B, W, ...] as rows [S, T, ...], zeros where nothing lies."""
  x = x.reshape(layout.place.shape + x.shape[2:])
  return sharding.constrain_batch(_move(x, layout.source, layout.place))


def unpack(rows: Array, layout: Layout, batch: int) -> Array:
  """Return rows [S, T, ...] as `batch` sequences [B, W, ...], zeros at the padding."""
  x = _move(rows, layout.place, layout.source)
  return sharding.constrain_batch(x.reshape(batch, -1, *rows.shape[2:]))


@jax.custom_vjp
def _move(x: Array, source: Array, target: Array) -> Array:
  """Return x[s, source[s]], [S, m, ...] of [S, n, ...], and 0 where that is -1.

  No place goes to two, so the gradient is moved back by `target`, the inverse.
  """
  return _taken(x, source)


def _taken(x, source):
  found = jax.vmap(lambda x, i: x.at[i].get(mode='promise_in_bounds'))(
    x, jnp.maximum(source, 0))
  return jnp.where((source >= 0).reshape(source.shape + (1,) * (x.ndim - 2)), found, 0)


_move.defvjp(lambda x, source, target: (_taken(x, source), target),
             lambda target, slope: (_taken(slope, target), None, None))


def fill(sizes: Array, room: tuple[int, ...], most: int, count: int) -> Array:
  """Return i32[count, most], which pieces fill each row; -1 for none.

  First fit, longest first (Johnson 1973): each goes into the first row that has room.
  Where each row has room for m of the largest pieces and `most` >= m, ceil(n / m) rows
  hold n.

  Args:
    sizes: i32[n, D], of each piece, in D measures; one of size 0 is in no row.
    room: of a row, in each measure.
    most: pieces of a row.
    count: rows.
  """
  order, room = jnp.argsort(-sizes[:, 0]), jnp.array([room])

  def put(state, piece):
    used, held = state
    fits = jnp.all(used + sizes[piece][None] <= room, axis=1) & (held < most)
    row = jnp.where(sizes[piece, 0] > 0, jnp.argmax(fits), count)
    slot = held.at[row].get(mode='clip')
    used = used.at[row].add(sizes[piece], mode='drop')
    return (used, held.at[row].add(1, mode='drop')), (row, slot)

  empty = jnp.zeros((count, sizes.shape[1]), sizes.dtype), jnp.zeros(count, jnp.int32)
  _, (row, slot) = jax.lax.scan(put, empty, order)
  return jnp.full((count, most), -1, order.dtype).at[row, slot].set(order, mode='drop')
