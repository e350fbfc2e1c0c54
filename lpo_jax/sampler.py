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

from lpo_jax import compaction, hosts, sharding
from lpo_jax import policy as policies
from lpo_jax.types import Array, Images, Rollouts

ENCODED_AT_ONCE = 8  # prompts whose images are encoded at once, on each shard


class Choice(NamedTuple):
  """How a token is chosen from logits."""

  temperature: Array  # f32[]
  stop_tokens: Array  # i32[n]
  top_p: Array  # f32[]


def sample(policy: policies.Policy, prompt: Array, prompt_mask: Array, key: Array, *,
           samples_per_prompt: int, max_new_tokens: int, temperature: float = 1.0,
           stop_tokens: tuple[int, ...] = (), top_k: int = 0, top_p: float = 1.0,
           pad_token: int = 0, chunk: int = 128, prompts_at_once: int = 0,
           row_ids: Array | None = None, unroll: bool = True,
           images: Images | None = None) -> Rollouts:
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
    prompts_at_once: prompts whose responses are decoded, and whose keys and values
      are held, at once; divides B; 0 for all.
    row_ids: i32[B] names of the rows' random streams; default 0..B-1.
    unroll: run layers unrolled (faster, a second copy of the weights) or scanned.
    images: of the prompts; encoded here, once for the K responses, if they are not.

  Returns:
    Rollouts, whose images are encoded where the tower is frozen; `logprobs` are under
    the distribution sampled from, after temperature, top_k and top_p (so 0 everywhere
    when temperature is 0).

  Raises:
    ValueError: if a size or a setting is out of range.
  """
  _check(prompt, samples_per_prompt, max_new_tokens, temperature, top_k, top_p, chunk,
         prompts_at_once)
  if row_ids is None:
    row_ids = np.arange(prompt.shape[0], dtype=np.int32)
  encoded = None if images is None else encode(policy, images)
  if images is not None and policy.config.vision_is_frozen:
    images = encoded
  inputs = (prompt, prompt_mask, row_ids, encoded)
  count = prompt.shape[0] // (prompts_at_once or prompt.shape[0])
  shape = (prompt.shape[0] // count, samples_per_prompt, max_new_tokens)
  choice, settings = choosing(temperature, stop_tokens, top_k, top_p)
  settings |= dict(pad_token=pad_token, unroll=unroll)
  if count == 1:
    return Rollouts(prompt, prompt_mask, *_responses(
      policy, inputs, key, choice, shape, chunk, settings), images)
  found = [_responses(policy, part, key, choice, shape, chunk, settings)
           for part in _split(inputs, count=count)]
  return Rollouts(prompt, prompt_mask, *_join(found), images)


def choosing(temperature: float, stop_tokens: tuple[int, ...], top_k: int,
             top_p: float) -> tuple[Choice, dict]:
  """Return how tokens are chosen, and what of that programs are compiled for."""
  choice = Choice(jnp.float32(temperature or 1.0),
                  jnp.asarray(stop_tokens, jnp.int32).reshape(-1), jnp.float32(top_p))
  return choice, dict(greedy=temperature == 0, top_k=top_k, use_top_p=top_p < 1)


def places(prompts: int, samples: int) -> tuple[np.ndarray, np.ndarray]:
  """Return where rows lie in the batch before any is compacted: [B, 1] and [1, K]."""
  return np.arange(prompts)[:, None], np.arange(samples)[None]


def _responses(policy, inputs, key, choice, shape, chunk, settings):
  """Return response, mask and log-probabilities [B, K, N] of prompts decoded at once.

  Args:
    policy: pi_b.
    inputs: prompt, prompt_mask, row_ids and images of `sample`.
    key: a PRNG key.
    choice: how tokens are chosen.
    shape: (B, K, N).
    chunk: tokens between two compactions.
    settings: what the programs are compiled for.
  """
  prompt, prompt_mask, row_ids, images = inputs
  capacity = min(chunk, shape[2])
  rows, out = begin(policy, prompt, prompt_mask, key, row_ids, choice, images,
                     shape=shape, capacity=capacity, **settings)
  where = places(*shape[:2])
  start = 1
  for steps, room in capacities(shape[2], chunk):
    if start > 1:  # between chunks the host looks at who is left
      done = np.asarray(hosts.fetch(rows.done))
      if done.all():
        break
      rows, where = compaction.compact_if_worth(rows, where, done)
      if room > capacity:
        rows, capacity = compaction.grow(rows, capacity=room), room
    rows, out = decode(policy, rows, out, where, choice, steps=steps, **settings)
    start += steps
  return out


@jax.jit
def encode(policy: policies.Policy, images: Images) -> Images:
  """Return images with their tokens' vectors instead of patches, some rows at a time.

  As they are if they have been encoded.
  """
  size = ENCODED_AT_ONCE * sharding.batch_shards()
  rows = images.grid.shape[0]
  if images.features is not None or rows <= size or rows % size:
    found = policy.encode(images)
  else:
    found = sharding.joined(jax.lax.map(policy.encode,
                                        sharding.split(images, rows // size)))
  return jax.tree.map(sharding.constrain_batch, found)


@functools.partial(jax.jit, static_argnames='count')
def _split(inputs, *, count):
  """Return `count` parts of the prompts, each spread over the devices as the whole."""
  parts = sharding.split(inputs, count)
  return [jax.tree.map(lambda x, i=i: sharding.constrain_batch(x[i]), parts)
          for i in range(count)]


@jax.jit
def _join(parts):
  """Return the responses of all parts, in the order of the prompts."""
  return jax.tree.map(sharding.constrain_batch, sharding.join(parts))


def capacities(max_new_tokens: int, chunk: int):
  """Yield (steps, room in the cache) of each chunk: it grows by half when full."""
  start, capacity = 1, min(chunk, max_new_tokens)
  while start < max_new_tokens:
    if start > 1 and start + chunk - 1 > capacity:
      capacity = min(capacity + max(chunk, capacity // 2), max_new_tokens)
    steps = min(chunk, max_new_tokens - start, capacity - start + 1)
    yield steps, capacity
    start += steps


@functools.partial(jax.jit, static_argnames=(
  'shape', 'capacity', 'pad_token', 'unroll', 'greedy', 'top_k', 'use_top_p'))
def begin(policy, prompt, prompt_mask, key, row_ids, choice, images=None, *, shape,
           capacity, pad_token, unroll, **statics):
  """Prefill the prompts and sample every response's first token."""
  batch, samples, width = shape
  policy = policy.unstack() if unroll else policy
  last, prompts = policy.prefill(prompt, prompt_mask, images)
  keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(row_ids)
  keys = jax.vmap(lambda k: jax.vmap(lambda j: jax.random.fold_in(k, j))(
    jnp.arange(samples)))(keys)
  logits = policy.logits(last)[:, None]
  logits = jnp.broadcast_to(logits, (batch, samples, logits.shape[-1]))
  token, logprob = _choose(keys, jnp.int32(0), logits, choice, **statics)

  cache = policies.Cache.empty(prompts, samples, capacity, policy.config.cache_dtype)
  done = jnp.isin(token, choice.stop_tokens)
  first = jax.lax.broadcasted_iota(jnp.int32, shape, 2) == 0
  out = (jnp.where(first, token[..., None], pad_token),
         first, jnp.where(first, logprob[..., None], 0.0))
  rows = compaction.Rows(prompts, cache, keys, token, done)
  return compaction.placed(rows, sharding.constrain), out


@functools.partial(jax.jit, donate_argnames=('rows', 'out'), static_argnames=(
  'steps', 'pad_token', 'unroll', 'greedy', 'top_k', 'use_top_p'))
def decode(policy, rows, out, places, choice, *, steps, pad_token, unroll, **statics):
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


def _check(prompt, samples_per_prompt, max_new_tokens, temperature, top_k, top_p,
           chunk, prompts_at_once):
  """Raise a ValueError that names the first setting out of range."""
  if prompt.ndim != 2 or 0 in prompt.shape:
    raise ValueError(f'prompt has shape {prompt.shape}: give tokens [B, P], P >= 1')
  for name, value in (('samples_per_prompt', samples_per_prompt),
                      ('max_new_tokens', max_new_tokens), ('chunk', chunk)):
    if value < 1:
      raise ValueError(f'{name}={value}: must be at least 1')
  if prompts_at_once and (prompts_at_once < 0 or prompt.shape[0] % prompts_at_once):
    raise ValueError(f'prompts_at_once={prompts_at_once} does not divide the '
                     f'{prompt.shape[0]} prompts')
  if temperature < 0 or top_k < 0 or not 0 < top_p <= 1:
    raise ValueError(f'temperature={temperature}, top_k={top_k}, top_p={top_p}: need '
                     'temperature >= 0, top_k >= 0 and 0 < top_p <= 1')
