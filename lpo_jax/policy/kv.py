"""Keys and values that outlive a forward pass: of prompts, and of responses so far.

Both are arguments and results, never state. A prompt's are one copy for its K
responses; a response's live in S slots, of which `length` are filled. The axes B and K
are one, here and in `attention`: where the product sees another shape than the one
written to, XLA copies the cache for every token. Slots may be narrower than the policy
computes (`PolicyConfig.cache_dtype`): bfloat16, or int8 with one scale for each token
and head, the largest of its d numbers over 127.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lpo_jax.types import Array


class Prompt(NamedTuple):
  """Keys and values of B prompts, and which positions are real."""

  layers: tuple  # (keys, values): [L, B, Hkv, P, d], or a tuple of L such pairs
  mask: Array  # bool[B, P], left-padded
  next: Array  # i32[B], the position of the first response token


class Slots(NamedTuple):
  """Room for the keys and values of S response tokens, stacked layers or one."""

  keys: Array  # [(L,) B K, Hkv, d, S]: slots last, where one query's product is fast
  values: Array  # [(L,) B K, Hkv, S, d]
  key_scale: Array | None = None  # f32[(L,) B K, Hkv, 1, S], what int8 keys count in
  value_scale: Array | None = None  # f32[(L,) B K, Hkv, S, 1]

  def written(self, keys: Array, values: Array, start: Array) -> 'Slots':
    """Return the slots of one layer with N tokens from slot `start` on.

    Args:
      keys: [B, K, Hkv, d, N].
      values: [B, K, Hkv, N, d].
      start: i32[].
    """
    new = tuple(jax.lax.collapse(x, 0, 2) for x in (keys, values))
    if self.key_scale is not None:
      pairs = _quantised(new[0], -2), _quantised(new[1], -1)
      new = (*(x for x, _ in pairs), *(scale for _, scale in pairs))
    return Slots(*(
      jax.lax.dynamic_update_slice_in_dim(old, x.astype(old.dtype), start, axis)
      for old, x, axis in zip(self, new, _SLOT_AXES, strict=False)))


_SLOT_AXES = (-1, -2, -1, -2)  # of each field of Slots


def _quantised(x: Array, axis: int) -> tuple[Array, Array]:
  """Return numbers in [-127, 127] and the scale, along `axis`, that they count in."""
  x = x.astype(jnp.float32)
  scale = jnp.max(jnp.abs(x), axis, keepdims=True) / 127
  return jnp.round(x / jnp.where(scale == 0, 1.0, scale)), scale


class Cache(NamedTuple):
  """Keys and values of the response tokens already taken; `length` of S are filled."""

  layers: Slots | tuple[Slots, ...]  # stacked, or one for each layer
  length: Array  # i32[]

  @property
  def slots(self) -> int:
    """Return S."""
    return jax.tree.leaves(self.layers)[0].shape[-1]

  @classmethod
  def empty(cls, prompt: Prompt, samples: int, slots: int,
            dtype: str = 'same') -> 'Cache':
    """Return a cache for K responses to each prompt, nothing in it.

    Args:
      prompt: of B prompts.
      samples: K.
      slots: S.
      dtype: 'same' as the prompt's keys and values, 'bfloat16' or 'int8'.
    """
    def empty(pair):
      *lead, batch, heads, _, size = pair[0].shape
      lead = (*lead, batch * samples, heads)
      kind = pair[0].dtype if dtype == 'same' else jnp.dtype(dtype)
      scales = () if dtype != 'int8' else (jnp.zeros((*lead, 1, slots)),
                                           jnp.zeros((*lead, slots, 1)))
      return Slots(jnp.zeros((*lead, size, slots), kind),
                   jnp.zeros((*lead, slots, size), kind), *scales)

    unrolled = isinstance(prompt.layers[0], tuple)
    layers = tuple(map(empty, prompt.layers)) if unrolled else empty(prompt.layers)
    return cls(layers, jnp.int32(0))

  def grown(self, slots: int) -> 'Cache':
    """Return the cache with room for `slots` tokens."""
    def grow(layer):
      short = slots - self.slots
      return Slots(*(
        x if x is None else jnp.pad(x, [
          (0, short if place == x.ndim + axis else 0) for place in range(x.ndim)])
        for x, axis in zip(layer, _SLOT_AXES, strict=True)))

    layers = jax.tree.map(grow, self.layers, is_leaf=lambda x: isinstance(x, Slots))
    return Cache(layers, self.length)
