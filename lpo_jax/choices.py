"""How a token is chosen from logits: temperature, top_k, top_p, and whose noise.

The likeliest after Gumbel noise is a sample of the softmax. The noise is a function of
the row's key and of the position alone, so no row depends on what is decoded beside it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lpo_jax.types import Array


class Choice(NamedTuple):
  """What of it programs are not compiled for."""

  temperature: Array  # f32[]
  stop_tokens: Array  # i32[n]
  top_p: Array  # f32[]


def settings(temperature: float, stop_tokens: tuple[int, ...], top_k: int,
             top_p: float) -> tuple[Choice, dict]:
  """Return how tokens are chosen, and what of that programs are compiled for."""
  choice = Choice(jnp.float32(temperature or 1.0),
                  jnp.asarray(stop_tokens, jnp.int32).reshape(-1), jnp.float32(top_p))
  return choice, dict(greedy=temperature == 0, top_k=top_k, use_top_p=top_p < 1)


def choose(keys: Array, position: Array, logits: Array, choice: Choice, *, greedy: bool,
           top_k: int, use_top_p: bool) -> tuple[Array, Array]:
  """Return a token for each row and its log-probability under what it came from.

  Args:
    keys: key[B, K] of the rows.
    position: i32[] in the response; with a row's key it decides the row's noise.
    logits: f32[B, K, V].
    choice: see `settings`, as for the rest.
    greedy: take the most likely.
    top_k: keep so many; 0 keeps all.
    use_top_p: keep the nucleus of `choice.top_p`.

  Returns:
    i32[B, K] and f32[B, K].
  """
  if greedy:
    token = jnp.argmax(logits, axis=-1)
    return token, jnp.zeros(token.shape)
  logits = logits / choice.temperature
  if top_k:
    least = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][..., -1:]
    logits = jnp.where(logits < least, -jnp.inf, logits)
  if use_top_p:
    logits = jnp.where(_outside_nucleus(logits, choice.top_p), -jnp.inf, logits)

  def noise(key):
    return jax.random.gumbel(jax.random.fold_in(key, position), logits.shape[-1:])

  token = jnp.argmax(logits + jax.vmap(jax.vmap(noise))(keys), axis=-1)
  picked = jnp.take_along_axis(logits, token[..., None], axis=-1)[..., 0]
  return token, picked - jax.nn.logsumexp(logits, axis=-1)


def _outside_nucleus(logits, top_p):
  """Return True for tokens beyond the most likely ones that together reach top_p."""
  order = jnp.argsort(-logits, axis=-1)
  probs = jnp.take_along_axis(jax.nn.softmax(logits, axis=-1), order, axis=-1)
  before = jnp.cumsum(probs, axis=-1) - probs  # mass of the strictly likelier tokens
  return jnp.take_along_axis(before >= top_p, jnp.argsort(order, axis=-1), axis=-1)
