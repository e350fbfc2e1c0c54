"""What the tokens of a pass attend to: the part of a layer in which passes differ.

Each function here returns an `attend` for `block.Block`, which maps

  queries [*rows, Hkv, G, d], rotated     keys, values [*rows, Hkv, d], keys rotated

to the mixed values [*rows, Hkv, G, d] and to what the pass keeps of the layer:

  whole     rows [B, K, N]      sequences by themselves; keeps their keys and values
  together  rows [B, P + K N]   a prompt, then its K responses; keeps nothing
            rows [S, T]         or the real tokens of these, packed
  cached    rows [B, K, N]      after a prompt and a cache; keeps the grown cache
"""

import functools

import jax
import jax.numpy as jnp

from lpo_jax import rows, sharding
from lpo_jax.policy import attention, blockwise, flash, kv
from lpo_jax.policy.config import PolicyConfig
from lpo_jax.types import Array


def whole(config: PolicyConfig, mask: Array):
  """Attend within sequences; keeps (keys, values), each [B, K, Hkv, N, d].

  Args:
    config: of the policy.
    mask: bool[B, 1 or K, N], which tokens are real.
  """
  def attend(queries, keys, values):
    own = blockwise.Keys(_by_head(keys), _by_head(values), mask)
    mixed = flash.attend(config.attention, queries, own, None,
                         window=config.sliding_window)
    return mixed, (own.keys, own.values)

  return attend


def together(config: PolicyConfig, prompt_mask: Array, samples: int,
             layout: rows.Layout | None = None):
  """Attend within prompts, and from each prompt's K responses to it and themselves.

  Args:
    config: of the policy.
    prompt_mask: bool[B, P]; the response tokens all count as real.
    samples: K.
    layout: where the tokens of [B, P + K N] lie; None: there.
  """
  batch, size = prompt_mask.shape

  def split(x):  # [B, P + K N, ...] -> [B, 1, P, ...], [B, K, N, ...]
    # Not by slices, whose gradients XLA pads and adds up.
    first, later = jax.lax.split(x, (size, x.shape[1] - size), axis=1)
    return first[:, None], later.reshape(len(x), samples, -1, *x.shape[2:])

  def mixed(queries, keys, values, prompt_mask, own_mask, attend_own):
    prompts, own = zip(*map(split, (queries, keys, values)), strict=True)
    first, kept = whole(config, prompt_mask[:, None])(*prompts)
    later = attend_own(own[0], blockwise.Keys(*map(_by_head, own[1:]), own_mask),
                       blockwise.Keys(*(x[:, 0] for x in kept), prompt_mask),
                       window=config.sliding_window)
    later = later.reshape(len(first), -1, *later.shape[3:])
    return jnp.concatenate([first[:, 0], later], axis=1)

  def attend(queries, keys, values):
    real = jnp.ones((1, 1, (queries.shape[1] - size) // samples), bool)
    return mixed(queries, keys, values, prompt_mask, real,
                 functools.partial(flash.attend, config.attention)), None

  def attend_packed(*packed):
    padded = [rows.unpack(x, layout, batch) for x in packed]
    if config.attention != 'xla':
      return rows.pack(attend(*padded)[0], layout), None
    # A group at a time, so that each costs what its longest response does.
    _, own_mask = split(layout.place.reshape(batch, -1) >= 0)
    found = jax.lax.map(
      lambda group: mixed(*group, functools.partial(blockwise.attend, skip=True)),
      sharding.split((*padded, prompt_mask, own_mask), batch // len(layout.place)))
    return rows.pack(sharding.joined(found), layout), None

  return attend if layout is None else attend_packed


def cached(prompt: attention.Part, cache: kv.Slots, mask: Array, length: Array):
  """Attend to a prompt and to the cache; keeps the cache with the N tokens written.

  Args:
    prompt: keys, values [B, Hkv, P, d] and mask broadcastable to [B, K, N, P].
    cache: this layer's slots with the earlier tokens.
    mask: bool broadcastable to [B, K, N, S], which slots each token sees.
    length: i32[], filled slots.
  """
  def attend(queries, keys, values):
    # Written before it is read, so that it is not copied.
    slots = cache.written(jnp.moveaxis(keys, 2, 4), _by_head(values), length)
    own = attention.Own(slots.keys, slots.values, mask, slots.key_scale,
                        slots.value_scale)
    return attention.attend(queries, (prompt, own)), slots

  return attend


def _by_head(x: Array) -> Array:
  """Return [B, K, N, Hkv, d] as [B, K, Hkv, N, d]."""
  return jnp.swapaxes(x, 2, 3)
