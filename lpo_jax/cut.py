"""A minibatch of groups, cut into the microbatches that are computed one at a time.

A piece is a prompt with r of its K responses: all, or `micro_responses`. A microbatch
has m pieces as they lie, padded to [m, P + r N]; or, with `pack` above 1, as many as
pack m of them whose tokens fit into the same number of places: see `rows`.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from lpo_jax import rows, sharding
from lpo_jax.types import Array, Rollouts


@dataclasses.dataclass(frozen=True)
class Cut:
  """How arrays of M groups become arrays of microbatches, and back."""

  prompts: Callable[[Array], Array]  # [M, ...] -> [units, b, ...]
  responses: Callable[[Array], Array]  # [M, K, ...] -> [units, b, r, ...]
  join: Callable[[Array], Array]  # [units, b, r, ...] -> [M, K, ...]
  places: int  # that a microbatch computes, of prompts and responses
  room: tuple[int, int] | None  # of a shard's row: places, and those of responses

  def __call__(self, tree):
    """Cut every array of a tree, and Rollouts in it."""
    def cut(x):
      if not isinstance(x, Rollouts):
        return self.prompts(x) if x.ndim == 1 else self.responses(x)
      responses = map(self.responses, (x.response, x.response_mask, x.logprobs))
      return Rollouts(self.prompts(x.prompt), self.prompts(x.prompt_mask), *responses,
                      jax.tree.map(self.prompts, x.images))

    return jax.tree.map(cut, tree, is_leaf=lambda x: isinstance(x, Rollouts))


def plan(rollouts: Rollouts, keep: Array, micro_prompts: int, micro_responses: int,
         pack: int) -> Cut:
  """Return how groups are cut.

  Args:
    rollouts: of M prompts.
    keep: bool[M]; where pieces are packed, the others are in no microbatch.
    micro_prompts: m.
    micro_responses: r; 0 for K.
    pack: pieces of a microbatch are at most pack m; 1 leaves them as they lie.
  """
  groups, samples, width = rollouts.response.shape
  taken = micro_responses or samples
  places = micro_prompts * (rollouts.prompt.shape[1] + taken * width)
  if pack == 1:
    return _padded(groups // micro_prompts, samples, taken, places)
  return _packed(rollouts, keep, micro_prompts, taken, pack, places)


def _padded(count: int, samples: int, taken: int, places: int) -> Cut:
  slices = samples // taken

  def prompts(x):
    return jnp.repeat(sharding.split(x, count), slices, axis=0)

  def responses(x):  # [M, K, ...] -> [count, m, slices, r, ...] -> [units, m, r, ...]
    x = sharding.split(x, count)
    x = x.reshape(*x.shape[:2], slices, -1, *x.shape[3:])
    return jnp.moveaxis(x, 2, 1).reshape(-1, x.shape[1], *x.shape[3:])

  def join(x):
    x = jnp.moveaxis(x.reshape(count, slices, *x.shape[1:]), 1, 2)
    return sharding.joined(x.reshape(*x.shape[:2], samples, *x.shape[4:]))

  return Cut(prompts, responses, join, places, None)


def _packed(rollouts, keep, micro_prompts, taken, pack, places) -> Cut:
  """Every shard fills rows of its own, as many as padded pieces would need."""
  groups, samples, width = rollouts.response.shape
  slices, shards = samples // taken, sharding.batch_shards()
  pieces, most = groups * slices // shards, pack * micro_prompts // shards
  room = places // shards, micro_prompts * taken * width // shards
  own = jnp.sum(rollouts.response_mask, axis=-1).reshape(groups, slices, taken).sum(-1)
  sizes = jnp.stack([own + jnp.sum(rollouts.prompt_mask, axis=-1)[:, None], own], -1)
  sizes = jnp.where(keep[:, None, None], sizes, 0).reshape(shards, pieces, 2)
  members = jax.vmap(lambda sizes: rows.fill(
    sizes, room, most, groups * slices // micro_prompts), out_axes=1)(sizes)

  def take(x, index):  # [S, n, ...] at [units, S, most] -> [units, S most, ...]
    found = jax.vmap(lambda x, i: x[i], in_axes=(0, 1), out_axes=1)(x, index)
    there = (members >= 0).reshape(members.shape + (1,) * (x.ndim - 2))
    found = jnp.where(there, found, jnp.zeros((), x.dtype))
    return found.reshape(-1, shards * most, *x.shape[2:])

  def prompts(x):
    return take(x.reshape(shards, -1, *x.shape[1:]), members // slices)

  def responses(x):
    return take(x.reshape(shards, pieces, taken, *x.shape[2:]), members)

  def join(x):
    def put(x, members):  # [units, most, ...] -> [pieces, ...]
      there = jnp.where(members < 0, pieces, members)
      return jnp.zeros((pieces, *x.shape[2:]), x.dtype).at[there].set(x, mode='drop')

    x = x.reshape(-1, shards, most, *x.shape[2:])
    return jax.vmap(put, in_axes=(1, 1))(x, members).reshape(
      groups, samples, *x.shape[4:])

  return Cut(prompts, responses, join, places, room)
