"""Keys and values that outlive a forward pass: of prompts, and of responses so far.

Both are arguments and results, never state. A prompt's are one copy for its K
responses; a response's live in S slots, of which `length` are filled.
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

  keys: Array  # [(L,) B, K, Hkv, d, S]: slots last, where one query's product is fast
  values: Array  # [(L,) B, K, Hkv, S, d]


class Cache(NamedTuple):
  """Keys and values of the response tokens already taken; `length` of S are filled."""

  layers: Slots | tuple[Slots, ...]  # stacked, or one for each layer
  length: Array  # i32[]

  @property
  def slots(self) -> int:
    """Return S."""
    return jax.tree.leaves(self.layers)[0].shape[-1]

  @classmethod
  def empty(cls, prompt: Prompt, samples: int, slots: int) -> 'Cache':
    """Return a cache for K responses to each prompt, nothing in it."""
    def empty(pair):
      *lead, heads, _, size = pair[0].shape
      lead = (*lead, samples, heads)
      return Slots(jnp.zeros((*lead, size, slots), pair[0].dtype),
                   jnp.zeros((*lead, slots, size), pair[1].dtype))

    unrolled = isinstance(prompt.layers[0], tuple)
    layers = tuple(map(empty, prompt.layers)) if unrolled else empty(prompt.layers)
    return cls(layers, jnp.int32(0))

  def grown(self, slots: int) -> 'Cache':
    """Return the cache with room for `slots` tokens."""
    def grow(layer):
      short = [(0, slots - self.slots)]
      lead = [(0, 0)] * (layer.keys.ndim - 2)
      return Slots(jnp.pad(layer.keys, [*lead, (0, 0), *short]),
                   jnp.pad(layer.values, [*lead, *short, (0, 0)]))

    layers = jax.tree.map(grow, self.layers, is_leaf=lambda x: isinstance(x, Slots))
    return Cache(layers, self.length)
