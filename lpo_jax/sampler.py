"""Sample K responses to each prompt, with the log-probability of every token.

A prompt is prefilled once and its K responses attend to that one copy. Decoding is a
`lax.while_loop` that ends when every row has met a stop token. It runs in chunks: in
between, the cache grows and rows that finished are compacted away, so that a long tail
costs what its few rows cost. Programs are compiled per (rows, cache size); both come
from halvings and growth by half, so they are few.

A row's randomness depends only on (key, row id, response, position): the result does
not depend on what else is in the batch, on padding, or on the mesh.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lpo_jax import policy as policies
from lpo_jax import sharding
from lpo_jax.types import Array, Rollouts


class _Rows(NamedTuple):
  """What decoding carries for B' x K' rows, a compacted part of B x K."""

  prompt: policies.Prompt
  cache: policies.Cache  # its length is the index of `token` in the response
  keys: Array  # key[B', K']
  token: Array  # i32[B', K'], the last one sampled, not yet in the cache
  done: Array  # bool[B', K']


class _Choice(NamedTuple):
  """How a token is chosen from logits."""

  temperature: Array  # f32[]
  stop_tokens: Array  # i32[n]
  top_p: Array  # f32[]


def sample(policy: policies.Policy, prompt: Array, prompt_mask: Array, key: Array, *,
           samples_per_prompt: int, max_new_tokens: int, temperature: float = 1.0,
           stop_tokens: tuple[int, ...] = (), top_k: int = 0, top_p: float = 1.0,
           pad_token: int = 0, chunk: int = 128, row_ids: Array | None = None,
           unroll: bool = True) -> Rollouts:
  """Sample K responses to each of B prompts.

  Args:
    policy: the policy pi_b.
    prompt: i32[B, P], left-padded.
    prompt_mask: bool[B, P], False on the padding; every row has a real token.
    key: a PRNG key.
    samples_per_prompt: K.
    max_new_tokens: N; a response that meets no stop token is cut there.
    temperature: divides the logits; 0 takes the most likely token.
    stop_tokens: any of them ends a response and belongs to it.
    top_k: keep only the k most likely tokens; 0 keeps all.
    top_p: keep the fewest tokens whose probability reaches it; 1 keeps all.
    pad_token: fills responses after their end.
    chunk: tokens between two compactions.
    row_ids: i32[B] names of the rows' random streams; default 0..B-1.
    unroll: run layers unrolled (faster, a second copy of the weights) or scanned.

  Returns:
    Rollouts; `logprobs` are under the distribution sampled from, after temperature,
    top_k and top_p (so 0 everywhere when temperature is 0).

  Raises:
    ValueError: if a size or a setting is out of range.
  """
  _check(prompt, samples_per_prompt, max_new_tokens, temperature, top_k, top_p, chunk)
  shape = (prompt.shape[0], samples_per_prompt, max_new_tokens)
  if row_ids is None:
    row_ids = np.arange(shape[0], dtype=np.int32)
  choice = _Choice(jnp.float32(temperature or 1.0),
                   jnp.asarray(stop_tokens, jnp.int32).reshape(-1), jnp.float32(top_p))
  statics = dict(greedy=temperature == 0, top_k=top_k, use_top_p=top_p < 1)
  capacity = min(chunk, max_new_tokens)
  rows, out = _start(policy, prompt, prompt_mask, key, row_ids, choice, shape=shape,
                     capacity=capacity, pad_token=pad_token, unroll=unroll, **statics)
  places = (np.arange(shape[0])[:, None], np.arange(shape[1])[None])  # of the rows
  start = 1
  while start < max_new_tokens:
    if start > 1:  # between chunks the host looks at who is left
      done = np.asarray(jax.device_get(rows.done))
      if done.all():
        break
      rows, places = _compact_if_worth(rows, places, done)
      if start + chunk - 1 > capacity and capacity < max_new_tokens:
        capacity = min(capacity + max(chunk, capacity // 2), max_new_tokens)
        rows = _grow(rows, capacity=capacity)
    steps = min(chunk, max_new_tokens - start, capacity - start + 1)
    rows, out = _decode(policy, rows, out, places, choice, steps=steps,
                        pad_token=pad_token, unroll=unroll, **statics)
    start += steps
  response, response_mask, logprobs = out
  return Rollouts(prompt, prompt_mask, response, response_mask, logprobs)


@functools.partial(jax.jit, static_argnames=(
  'shape', 'capacity', 'pad_token', 'unroll', 'greedy', 'top_k', 'use_top_p'))
def _start(policy, prompt, prompt_mask, key, row_ids, choice, *, shape, capacity,
           pad_token, unroll, **statics):
  """Prefill the prompts and sample every response's first token."""
  batch, samples, width = shape
  last, prompts = (policy.unstack() if unroll else policy).prefill(prompt, prompt_mask)
  keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(row_ids)
  keys = jax.vmap(lambda k: jax.vmap(lambda j: jax.random.fold_in(k, j))(
    jnp.arange(samples)))(keys)
  logits = policy.logits(last)[:, None]
  logits = jnp.broadcast_to(logits, (batch, samples, logits.shape[-1]))
  token, logprob = _choose(keys, jnp.int32(0), logits, choice, **statics)

  def empty(kv):  # [.., B, Hkv, P, d] -> [.., B, K, Hkv, capacity, d]
    *lead, heads, _, size = kv.shape
    return jnp.zeros((*lead, samples, heads, capacity, size), kv.dtype)

  cache = policies.Cache(jax.tree.map(empty, prompts.layers), jnp.int32(0))
  done = jnp.isin(token, choice.stop_tokens)
  first = jax.lax.broadcasted_iota(jnp.int32, shape, 2) == 0
  out = (jnp.where(first, token[..., None], pad_token),
         first, jnp.where(first, logprob[..., None], 0.0))
  return _Rows(prompts, cache, keys, token, done), out


@functools.partial(jax.jit, donate_argnames=('rows', 'out'), static_argnames=(
  'steps', 'pad_token', 'unroll', 'greedy', 'top_k', 'use_top_p'))
def _decode(policy, rows, out, places, choice, *, steps, pad_token, unroll, **statics):
  """Decode up to `steps` tokens and write them into `out` at the rows' places."""
  policy = policy.unstack() if unroll else policy
  start = rows.cache.length + 1  # index in the response of the next token
  shape = (*rows.token.shape, steps)
  chunk = (jnp.full(shape, pad_token), jnp.zeros(shape, bool), jnp.zeros(shape))

  def unfinished(carry):
    step, _, _, done, _ = carry
    return (step < steps) & ~jnp.all(done)

  def one_token(carry):
    step, cache, token, done, (tokens, mask, logprobs) = carry
    hidden, cache = policy.extend(token[..., None], rows.prompt, cache)
    logits = policy.logits(hidden[:, :, 0])
    token, logprob = _choose(rows.keys, start + step, logits, choice, **statics)
    token = jnp.where(done, pad_token, token)

    def write(buffer, column):
      return jax.lax.dynamic_update_index_in_dim(buffer, column, step, -1)

    chunk = (write(tokens, token), write(mask, ~done),
             write(logprobs, jnp.where(done, 0.0, logprob)))
    done |= jnp.isin(token, choice.stop_tokens)
    return step + 1, cache, token, done, chunk

  carry = (jnp.int32(0), rows.cache, rows.token, rows.done, chunk)
  _, cache, token, done, chunk = jax.lax.while_loop(unfinished, one_token, carry)
  columns = (start + jnp.arange(steps))[None, None]
  out = tuple(
    whole.at[places[0][..., None], places[1][..., None], columns].set(part)
    for whole, part in zip(out, chunk, strict=True))
  return rows._replace(cache=cache, token=token, done=done), out


def _choose(keys, position, logits, choice, *, greedy, top_k, use_top_p):
  """Return a token for each row and its log-probability under what it came from."""
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


def _compact_if_worth(rows, places, done):
  """Keep the unfinished rows when at most half of the places would remain.

  Responses are permuted within their group and groups within the batch, so the rows
  stay a [B', K'] rectangle over shared prompts.
  """
  active = (~done).sum(axis=1)
  batch = _smallest_half(done.shape[0], (active > 0).sum(), sharding.batch_shards())
  samples = _smallest_half(done.shape[1], active.max(), 1)
  if 2 * batch * samples > done.size:
    return rows, places
  groups = np.argsort(active == 0, kind='stable')[:batch]
  members = np.argsort(done[groups], axis=1, kind='stable')[:, :samples]
  places = (places[0][groups], np.take_along_axis(
    np.broadcast_to(places[1], done.shape)[groups], members, axis=1))
  return _take(rows, groups, members), places


def _smallest_half(size, least, multiple):
  """Return the smallest halving of `size` that is >= least and splits `multiple`."""
  while size % 2 == 0 and size // 2 >= max(least, 1) and (size // 2) % multiple == 0:
    size //= 2
  return size


@jax.jit
def _take(rows, groups, members):
  """Return the rows of `groups` [B'] and, within each, `members` [B', K']."""
  def shared(kv):  # [.., B, Hkv, P, d]
    return jnp.take(kv, groups, axis=-4)

  def own(kv):  # [.., B, K, Hkv, S, d]
    kv = jnp.take(kv, groups, axis=-5)
    index = members.reshape((1,) * (kv.ndim - 5) + members.shape + (1, 1, 1))
    return jnp.take_along_axis(kv, index, axis=-4)

  def each(x):  # [B, K]
    return x[groups[:, None], members]

  return _Rows(
    policies.Prompt(jax.tree.map(shared, rows.prompt.layers), rows.prompt.mask[groups]),
    policies.Cache(jax.tree.map(own, rows.cache.layers), rows.cache.length),
    each(rows.keys), each(rows.token), each(rows.done))


@functools.partial(jax.jit, static_argnames=('capacity',))
def _grow(rows, *, capacity):
  """Return the rows with room for `capacity` tokens."""
  def pad(kv):
    short = capacity - kv.shape[-2]
    return jnp.pad(kv, [(0, 0)] * (kv.ndim - 2) + [(0, short), (0, 0)])

  layers = jax.tree.map(pad, rows.cache.layers)
  return rows._replace(cache=policies.Cache(layers, rows.cache.length))


def _check(prompt, samples_per_prompt, max_new_tokens, temperature, top_k, top_p,
           chunk):
  """Raise a ValueError that names the first setting out of range."""
  if prompt.ndim != 2 or 0 in prompt.shape:
    raise ValueError(f'prompt has shape {prompt.shape}: give tokens [B, P], P >= 1')
  for name, value in (('samples_per_prompt', samples_per_prompt),
                      ('max_new_tokens', max_new_tokens), ('chunk', chunk)):
    if value < 1:
      raise ValueError(f'{name}={value}: must be at least 1')
  if temperature < 0 or top_k < 0 or not 0 < top_p <= 1:
    raise ValueError(f'temperature={temperature}, top_k={top_k}, top_p={top_p}: need '
                     'temperature >= 0, top_k >= 0 and 0 < top_p <= 1')
