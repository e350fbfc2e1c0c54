"""From a policy's outputs to log-probabilities of tokens and sequences.

  log pi(y) = (1/|y|) sum_i log pi(y_i | x, y_<i)        (arXiv:2605.06139, Eq. 3)

The one shift of the house is here: output t - 1 predicts token t, and a response's
first token is predicted by the last output of its prompt. Logits exist only for a few
positions at a time, [B, K, chunk, V], and are recomputed in the backward pass; the
vocabulary axis stays whole (or sharded) so each softmax is one exact reduction.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from lpo_jax import rows
from lpo_jax.types import Array, Rollouts


def token_logprobs(first: Array, hidden: Array, response: Array, mask: Array,
                   logits: Callable[[Array], Array], *, temperature: float = 1.0,
                   chunk: int = 0, width: int = 0) -> tuple[Array, Array]:
  """Return each response token's log-probability and the entropy at its position.

  Args:
    first: [B, D] last output of each prompt.
    hidden: [B, K, N, D] outputs at the response tokens.
    response: i32[B, K, N] tokens.
    mask: bool[B, K, N] tokens that count.
    logits: maps outputs [..., D] to f32[..., V].
    temperature: logits are divided by it: pi is the distribution sampled from.
    chunk: positions whose logits exist at once; 0 for all N.
    width: 0, or logits are of the tokens that count alone, packed into a row of so many
      places on each shard of the batch.

  Returns:
    log-probabilities f32[B, K, N], 0 off mask, and entropies f32[B, K, N] in nats,
    0 off mask, through which no gradient flows.
  """
  chex.assert_rank([first, hidden, response, mask], [2, 4, 3, 3])
  start = (*hidden.shape[:2], 1, hidden.shape[-1])
  first = jnp.broadcast_to(first[:, None, None], start)
  predictors = jnp.concatenate([first, hidden[:, :, :-1]], axis=2)

  def one_chunk(predictors, response):
    return _log_softmax_at(logits(predictors) / temperature, response)

  def whole(predictors, response, chunk):
    if not chunk or chunk >= response.shape[-1]:
      return one_chunk(predictors, response)
    return _chunked(one_chunk, predictors, response, chunk)

  if width:
    layout = rows.layout(mask, width)
    found = whole(*(rows.pack(jax.lax.collapse(x, 1, 3), layout)[:, None]
                    for x in (predictors, response)),
                  chunk * width // mask.shape[-1])  # as many positions of all K
    logprobs, entropy = (rows.unpack(x[:, 0], layout, len(mask)).reshape(mask.shape)
                         for x in found)
  else:
    logprobs, entropy = whole(predictors, response, chunk)
  return jnp.where(mask, logprobs, 0.0), jnp.where(mask, entropy, 0.0)


def _chunked(function, predictors, response, chunk):
  """Apply `function` to `chunk` positions at a time, rematerialised."""
  width = response.shape[-1]
  count = -(-width // chunk)
  short = count * chunk - width
  predictors = jnp.pad(predictors, ((0, 0), (0, 0), (0, short), (0, 0)))
  response = jnp.pad(response, ((0, 0), (0, 0), (0, short)))

  def split(x):  # [B, K, count * chunk, ...] -> [count, B, K, chunk, ...]
    return jnp.moveaxis(x.reshape(*x.shape[:2], count, chunk, *x.shape[3:]), 2, 0)

  parts = jax.lax.map(lambda xs: jax.checkpoint(function)(*xs),
                      (split(predictors), split(response)))
  return tuple(jnp.moveaxis(part, 0, 2).reshape(response.shape)[..., :width]
               for part in parts)


@jax.custom_vjp
def _log_softmax_at(logits: Array, tokens: Array) -> tuple[Array, Array]:
  """Return log softmax(logits)[tokens] and the entropy, over the last axis.

  The gradient of the former is 1[token] - softmax; none flows through the latter.
  """
  return _forward(logits, tokens)[0]


def _forward(logits, tokens):
  normaliser = jax.nn.logsumexp(logits, axis=-1)
  # A masked sum, not a gather: it fuses, and it stays local when V is sharded.
  picked = jnp.sum(jnp.where(_chosen(logits, tokens), logits, 0.0), axis=-1)
  logprobs = logits - normaliser[..., None]
  # A product of vectors: on CPU ten times as fast as the sum of what it multiplies.
  entropy = -jnp.einsum('...v,...v->...', jnp.exp(logprobs),
                        jnp.maximum(logprobs, -1e30), precision='highest')
  return (picked - normaliser, entropy), (logits, normaliser, tokens)


def _backward(saved, slopes):
  logits, normaliser, tokens = saved
  softmax = jnp.exp(logits - normaliser[..., None])
  return slopes[0][..., None] * (_chosen(logits, tokens) - softmax), None


_log_softmax_at.defvjp(_forward, _backward)


def _chosen(logits, tokens):
  vocabulary = jax.lax.broadcasted_iota(tokens.dtype, logits.shape, logits.ndim - 1)
  return vocabulary == tokens[..., None]


def sequence_scores(logprobs: Array, behavior_logprobs: Array, mask: Array,
                    score: str = 'mean') -> Array:
  """Return the listwise scores s_k of one group.

  Args:
    logprobs: f32[K, N] under pi_theta.
    behavior_logprobs: f32[K, N] under pi_b.
    mask: bool[K, N].
    score: `mean` over a response's tokens (the paper's length-normalised form) or
      `sum`.

  Returns:
    f32[K]; 0 for an empty response.
  """
  chex.assert_rank([logprobs, behavior_logprobs, mask], 2)
  ratio = jnp.where(mask, logprobs - behavior_logprobs, 0.0)
  total = jnp.sum(ratio, axis=-1)
  if score == 'sum':
    return total
  return total / jnp.maximum(jnp.sum(mask, axis=-1), 1)


def masked_mean(values: Array, mask: Array, axis=None) -> Array:
  """Return the mean of `values` where `mask`; 0 where nothing is."""
  total = jnp.sum(values, axis=axis, where=mask)
  return total / jnp.maximum(jnp.sum(mask, axis=axis), 1)


def response_logprobs(policy, rollouts: Rollouts, *, temperature: float = 1.0,
                      chunk: int = 0, room: tuple[int, int] | None = None,
                      ) -> tuple[Array, Array]:
  """Return log-probabilities and entropies of the responses under a policy.

  Args:
    policy: anything with `together` and `logits` (see `policy.Policy`).
    rollouts: of B prompts and K responses.
    temperature: see `token_logprobs`.
    chunk: see `token_logprobs`.
    room: None, or real tokens alone are computed, packed into a row of so many places
      on each shard of the batch; and how many of these hold responses at most.

  Returns:
    f32[B, K, N] and f32[B, K, N], both 0 off mask.
  """
  mask, places = rollouts.response_mask, None
  if room:
    flat = rollouts.prompt_mask, jax.lax.collapse(mask, 1, 3)
    places = rows.layout(jnp.concatenate(flat, axis=1), room[0])
  first, hidden = policy.together(rollouts.prompt, rollouts.prompt_mask,
                                  rollouts.response, rollouts.images, places)
  return token_logprobs(first, hidden, rollouts.response, mask, policy.logits,
                        temperature=temperature, chunk=chunk,
                        width=room[1] if room else 0)
