"""Attention of whole responses through `jax.nn.dot_product_attention`: cuDNN's kernel.

cuDNN wants one sequence a row, causal from its first position, real up to a length:
  [padding | prompt | response]  is turned into  [prompt | response | padding]
for each of the K responses, with queries of 0 where the prompt is. What that costs
beside the responses alone is K copies of the prompt's keys and a (P / (P + N))^2 part
of the products; no mask and no weight of size N x N exists. The same rows through
`implementation='xla'` are for tests: they need no GPU.
"""

import jax
import jax.numpy as jnp

from lpo_jax.policy.blockwise import Keys
from lpo_jax.types import Array


def attend(queries: Array, own: Keys, prompt: Keys | None, *,
           window: int | None = None, implementation: str = 'cudnn') -> Array:
  """Attend to the prompt, to earlier tokens and to oneself; see `blockwise.attend`.

  Args:
    queries: [B, K, N, Hkv, G, d], G query heads to a key head; scaled by d ** -0.5
      here.
    own: of the same N tokens.
    prompt: of the P positions right before them; None for none. Its real positions
      and those of `own` must be one run: padding on the left, on the right, or both.
    window: positions a query sees, itself included; None for all.
    implementation: `cudnn` or `xla`.

  Returns:
    [B, K, N, Hkv, G, d] in the dtype of `queries`; nothing of use where `own` is
    padding.
  """
  batch, samples, width, heads, group, size = queries.shape
  rows = queries.reshape(batch, samples, width, heads * group, size)
  keys, values = jnp.moveaxis(own.keys, 3, 2), jnp.moveaxis(own.values, 3, 2)
  mask = jnp.broadcast_to(own.mask, (batch, samples, width))
  before = 0 if prompt is None else prompt.mask.shape[1]
  if prompt is not None:
    rows = jnp.pad(rows, ((0, 0), (0, 0), (before, 0), (0, 0), (0, 0)))
    keys, values = (
      jnp.concatenate([_copies(jnp.swapaxes(x, 1, 2), samples), y], axis=2)
      for x, y in ((prompt.keys, keys), (prompt.values, values)))
    mask = jnp.concatenate([_copies(prompt.mask, samples), mask], axis=2)
  rows, keys, values, mask = (
    x.reshape(batch * samples, *x.shape[2:]) for x in (rows, keys, values, mask))
  start = jnp.argmax(mask, axis=1)
  lengths = jnp.sum(mask, axis=1, dtype=jnp.int32)
  out = jax.nn.dot_product_attention(
    *(_turn(x, start) for x in (rows, keys, values)), is_causal=True,
    query_seq_lengths=lengths, key_value_seq_lengths=lengths,
    local_window_size=None if window is None else (window - 1, 0),
    implementation=implementation)
  return _turn(out, -start)[:, before:].reshape(queries.shape)


def _copies(x: Array, samples: int) -> Array:
  """Return [B, ...] as [B, K, ...]."""
  return jnp.broadcast_to(x[:, None], (x.shape[0], samples, *x.shape[1:]))


def _turn(x: Array, start: Array) -> Array:
  """Return rows [R, T, ...] that begin at `start`, what was before it behind."""
  width = x.shape[1]
  index = (jnp.arange(width)[None] + start[:, None]) % width
  rows = jnp.arange(x.shape[0])[:, None]
  # Said to be unique, so that the gradient is a copy and not a sum in turn.
  return x.at[rows, index].get(unique_indices=True, mode='promise_in_bounds')
