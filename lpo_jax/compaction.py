"""The rows that decoding carries: where they live, how they grow and come together.

Rows are B' x K' responses with the keys and values of their prompts and of themselves.
Between chunks of decoding the cache grows, rows that finished are taken out, and those
of two loads are brought together. Every array is placed along the mesh here, once: keys
and values are most of what sampling holds, and left to itself XLA would copy them onto
every device.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lpo_jax import policy as policies
from lpo_jax import refill, sharding
from lpo_jax.types import Array


class Rows(NamedTuple):
  """What decoding carries for B' x K' rows, a compacted part of B x K."""

  prompt: policies.Prompt
  cache: policies.Cache  # its length is the index of `token` in the response
  keys: Array  # key[B', K']
  limit: Array  # i32[B', K'], tokens it may have
  token: Array  # i32[B', K'], the last one sampled, not yet in the cache
  done: Array  # bool[B', K']


def move(loads, to: refill.Move):
  """Return the rows of some loads that `refill` brings together.

  Responses are permuted within their group, and groups within their shard of the
  batch: keys and values stay on their device, but for those that are sent to another
  shard. A prompt's are copied where its responses come to lie in several slots.
  """
  groups, members = to.slot.shape[0] * to.slot.shape[1], to.member.shape[-1]
  found = []
  for number, rows in enumerate(loads):
    mine = to.load == number
    local = np.where(mine, to.slot, 0)
    size = rows.token.shape[0] // len(local)
    found.append((local, (local + size * np.arange(len(local))[:, None]).reshape(-1),
                  np.where(mine[..., None], to.member, 0).reshape(groups, members)))
  if len(loads) == 1:
    rows = _take(*loads, *found[0])
  else:
    rows = _merge(tuple(loads), tuple(found), to.load.reshape(-1))
  return _send(rows, distance=to.distance) if to.distance else rows


@jax.jit
def _merge(loads, indices, load):
  """Return slots of several loads, each of that which `load` i[B'] says."""
  first, *others = (_gather(rows, *index) for rows, index in zip(loads, indices,
                                                               strict=True))
  axes = placed(first, lambda x, *logical: x.ndim - len(logical))

  def chosen(number, x, y, axis):
    if not x.ndim:  # the length, which is one
      return x
    mine = jnp.repeat(load == number, x.shape[axis] // len(load))
    return jnp.where(mine.reshape(-1, *[1] * (x.ndim - axis - 1)), y, x)

  for number, other in enumerate(others, 1):
    first = jax.tree.map(functools.partial(chosen, number), first, other, axes)
  return placed(first, sharding.constrain)


@functools.partial(jax.jit, static_argnames='distance')
def _send(rows, *, distance):
  """Return for each shard the rows of its partner; see `refill.partners`."""
  to = refill.partners(sharding.batch_shards(), distance)
  where = placed(rows, sharding.spec)

  def each(x):
    if not x.ndim:  # the length, which is one
      return x
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      return jax.random.wrap_key_data(each(jax.random.key_data(x)),
                                      impl=jax.random.key_impl(x))
    return jax.lax.ppermute(x, sharding.BATCH, list(enumerate(to.tolist())))

  return jax.shard_map(lambda rows: jax.tree.map(each, rows), in_specs=(where,),
                       out_specs=where, check_vma=False)(rows)


@jax.jit
def _take(rows, local, groups, members):
  """Return the rows of some groups and, within each, some members; see `_gather`."""
  return placed(_gather(rows, local, groups, members), sharding.constrain)


def _gather(rows, local, groups, members):
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

  def own(kv):  # [.., B K, Hkv, ., .]
    before, after = kv.shape[:-4], kv.shape[-3:]
    kv = along_batch(kv.reshape(*before, *rows.token.shape, *after), -5)
    index = members.reshape((1,) * len(before) + members.shape + (1, 1, 1))
    kv = jnp.take_along_axis(kv, index, axis=-4)
    return kv.reshape(*before, -1, *after)

  def each(x):  # [B, K]
    return x[groups[:, None], members]

  prompt = jax.tree.map(lambda kv: along_batch(kv, -4), rows.prompt.layers)
  return Rows(
    policies.Prompt(prompt, rows.prompt.mask[groups], rows.prompt.next[groups]),
    policies.Cache(jax.tree.map(own, rows.cache.layers), rows.cache.length),
    *map(each, (rows.keys, rows.limit, rows.token, rows.done)))


def grow(rows, *, capacity):
  """Return the rows with room for `capacity` tokens; the old cache is gone."""
  cache = _grown(rows, capacity=capacity)
  jax.tree.map(lambda x: x.delete(), rows.cache.layers)
  return rows._replace(cache=cache)


@functools.partial(jax.jit, static_argnames=('capacity',))
def _grown(rows, *, capacity):
  rows = rows._replace(cache=rows.cache.grown(capacity))
  return placed(rows, sharding.constrain).cache


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
      lambda kv: place(kv, 'batch', 'kv_heads', None, None), cache.layers),
      place(cache.length)),
    *map(each, (rows.keys, rows.limit, rows.token, rows.done)))
