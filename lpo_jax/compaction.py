"""The rows that decoding carries: where they live, how they grow and shrink.

Rows are B' x K' responses with the keys and values of their prompts and of themselves.
Between chunks of decoding the cache grows, and rows that finished are taken out. Every
array is placed along the mesh here, once: keys and values are most of what sampling
holds, and left to itself XLA would copy them onto every device.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lpo_jax import policy as policies
from lpo_jax import sharding
from lpo_jax.types import Array


class Rows(NamedTuple):
  """What decoding carries for B' x K' rows, a compacted part of B x K."""

  prompt: policies.Prompt
  cache: policies.Cache  # its length is the index of `token` in the response
  keys: Array  # key[B', K']
  token: Array  # i32[B', K'], the last one sampled, not yet in the cache
  done: Array  # bool[B', K']


def compact_if_worth(rows, places, done):
  """Keep the unfinished rows when at most half of the places would remain.

  Responses are permuted within their group, and groups within their shard of the
  batch: the rows stay a [B', K'] rectangle over shared prompts, and keys and values
  stay on their device.

  Args:
    rows: of B x K responses.
    places: index arrays [B, 1] and [B or 1, K], where the rows stand in the batch.
    done: bool[B, K], on the host.

  Returns:
    rows and places, of those that remain.
  """
  shards = sharding.batch_shards()
  active = (~done).sum(axis=1).reshape(shards, -1)  # each shard keeps as many groups
  batch = _smallest_half(active.shape[1], (active > 0).sum(axis=1).max())
  samples = _smallest_half(done.shape[1], active.max())
  if 2 * shards * batch * samples > done.size:
    return rows, places
  local = np.argsort(active == 0, axis=1, kind='stable')[:, :batch]
  groups = (local + active.shape[1] * np.arange(shards)[:, None]).reshape(-1)
  members = np.argsort(done[groups], axis=1, kind='stable')[:, :samples]
  places = (places[0][groups], np.take_along_axis(
    np.broadcast_to(places[1], done.shape)[groups], members, axis=1))
  return _take(rows, local, groups, members), places


def _smallest_half(size, least):
  """Return the smallest halving of `size` that is >= least."""
  while size % 2 == 0 and size // 2 >= max(least, 1):
    size //= 2
  return size


@jax.jit
def _take(rows, local, groups, members):
  """Return the rows of some groups and, within each, some members.

  Args:
    rows: of B x K responses.
    local: i32[shards, b], the groups by their place within their shard: keys and
      values stay on the device that has them.
    groups: i32[B'], the same by their place within the batch, B' = shards b.
    members: i32[B', K'].
  """
  def along_batch(kv, axis):
    axis += kv.ndim
    before, after = kv.shape[:axis], kv.shape[axis + 1:]
    kv = kv.reshape(*before, local.shape[0], -1, *after)
    index = local.reshape((1,) * axis + local.shape + (1,) * len(after))
    kv = jnp.take_along_axis(kv, index, axis=axis + 1)
    return kv.reshape(*before, -1, *after)

  def own(kv):  # [.., B, K, Hkv, ., .]
    kv = along_batch(kv, -5)
    index = members.reshape((1,) * (kv.ndim - 5) + members.shape + (1, 1, 1))
    return jnp.take_along_axis(kv, index, axis=-4)

  def each(x):  # [B, K]
    return x[groups[:, None], members]

  prompt = jax.tree.map(lambda kv: along_batch(kv, -4), rows.prompt.layers)
  return placed(Rows(
    policies.Prompt(prompt, rows.prompt.mask[groups], rows.prompt.next[groups]),
    policies.Cache(jax.tree.map(own, rows.cache.layers), rows.cache.length),
    each(rows.keys), each(rows.token), each(rows.done)), sharding.constrain)


@functools.partial(jax.jit, static_argnames=('capacity',))
def grow(rows, *, capacity):
  """Return the rows with room for `capacity` tokens."""
  return placed(rows._replace(cache=rows.cache.grown(capacity)), sharding.constrain)


def placed(rows, place):
  """Return the rows with `place(array, *logical axes)` for each array."""
  def each(x):
    return place(x, 'batch', None)

  prompt, cache = rows.prompt, rows.cache
  return Rows(
    policies.Prompt(jax.tree.map(
      lambda kv: place(kv, 'batch', 'kv_heads', None, None), prompt.layers),
      each(prompt.mask), place(prompt.next, 'batch')),
    policies.Cache(jax.tree.map(
      lambda kv: place(kv, 'batch', None, 'kv_heads', None, None), cache.layers),
      cache.length),
    each(rows.keys), each(rows.token), each(rows.done))
