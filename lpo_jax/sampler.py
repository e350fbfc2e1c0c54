"""Sample K responses to each prompt, with the log-probability of every token.

A prompt is prefilled once and its K responses attend to that one copy. Decoding is a
`lax.while_loop` that ends when every row has met a stop token. It runs in chunks, which
end at fixed lengths, the levels: there rows that finished leave, and `refill` says who
goes on, in few places. Where they may (`parked`), rows too few for a load wait at their
level for others, while the next prompts are decoded. Programs are compiled per (rows,
cache size); there are few of either.

A row's randomness depends only on (key, row id, response, position): the result does
not depend on what else is in the batch, on padding, or on the mesh.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from lpo_jax import choices, compaction, hosts, refill, sharding
from lpo_jax import policy as policies
from lpo_jax.types import Array, Images, Rollouts

ENCODED_AT_ONCE = 8  # prompts whose images are encoded at once, on each shard


def sample(policy: policies.Policy, prompt: Array, prompt_mask: Array, key: Array, *,
           samples_per_prompt: int, max_new_tokens: int, temperature: float = 1.0,
           stop_tokens: tuple[int, ...] = (), top_k: int = 0, top_p: float = 1.0,
           pad_token: int = 0, chunk: int = 128, prompts_at_once: int = 0,
           parked: float = 0.0,
           row_ids: Array | None = None, limits: Array | None = None,
           unroll: bool = True, images: Images | None = None,
           finished: Callable = lambda prompts, response, mask: None) -> Rollouts:
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
    chunk: tokens between two levels, where finished rows leave.
    prompts_at_once: prompts of a load, decoded at once; divides B; 0 for all.
    parked: room for rows that wait for others, in loads of full length; 0: the next
      prompts begin when the ones before have all their responses.
    row_ids: i32[B] names of the rows' random streams; default 0..B-1.
    limits: i32[B] or [B, K], tokens that responses may have, from 1; default N.
    unroll: run layers unrolled (faster, a second copy of the weights) or scanned.
    images: of the prompts; encoded here, once for the K responses, if they are not.
    finished: called at a chunk's end with the prompts i[n] that have now got all their
      responses, and response and mask [B, K, N] so far, which are gone once it returns;
      not at the very last, when all have.

  Returns:
    Rollouts, whose images are encoded where the tower is frozen; `logprobs` are under
    the distribution sampled from, after temperature, top_k and top_p (so 0 everywhere
    when temperature is 0).

  Raises:
    ValueError: if a size or a setting is out of range.
  """
  _check(prompt, samples_per_prompt, max_new_tokens, temperature, top_k, top_p, chunk,
         prompts_at_once, parked)
  if row_ids is None:
    row_ids = np.arange(prompt.shape[0], dtype=np.int32)
  if limits is None:
    limits = np.full(prompt.shape[0], max_new_tokens, np.int32)
  encoded = None if images is None else encode(policy, images)
  if images is not None and policy.config.vision_is_frozen:
    images = encoded
  count = prompt.shape[0] // (prompts_at_once or prompt.shape[0])
  inputs = (prompt, prompt_mask, row_ids, limits, encoded)
  parts = [inputs] if count == 1 else _split(inputs, count=count)
  shape = (prompt.shape[0], samples_per_prompt, max_new_tokens)
  choice, settings = choices.settings(temperature, stop_tokens, top_k, top_p)
  settings |= dict(pad_token=pad_token, unroll=unroll)
  return Rollouts(prompt, prompt_mask, *_responses(
    turn(policy) if turns(policy, unroll) else policy, prompt, parts, key, choice,
    shape, chunk, parked, settings, finished), images)


def places(rows: np.ndarray, samples: int, size: int) -> tuple[np.ndarray, np.ndarray]:
  """Return prompts and members [B', K'] of rows [S, b, K']; B for nobody.

  Args:
    rows: numbers as in `refill`.
    samples: K.
    size: B.
  """
  rows = np.where(rows == refill.NOBODY, size * samples, rows).astype(np.int32)
  return np.divmod(rows.reshape(-1, rows.shape[-1]), np.int32(samples))


def _responses(policy, prompt, parts, key, choice, shape, chunk, parked, settings,
               finished):
  """Return response, mask and log-probabilities [B, K, N].

  Args:
    policy: pi_b.
    prompt: i32[B, P].
    parts: prompt, prompt_mask, row_ids, limits and images of each load of prompts.
    key: a PRNG key.
    choice: how tokens are chosen.
    shape: (B, K, N).
    chunk: tokens between two levels.
    parked: see `sample`, as for `finished`.
    settings: what the programs are compiled for.
    finished: callback.
  """
  size, samples, width = shape
  loads = refill.fresh(size, samples, len(parts), sharding.batch_shards())
  chunks = list(capacities(width, chunk))
  left = np.full(size, samples)
  out = empty(prompt, samples=samples, width=width, pad_token=settings['pad_token'])

  def first(load):
    nonlocal out
    rows, out = begin(policy, *parts[load], key, choice, out,
                      places(loads[load], samples, size),
                      capacity=min(chunk, width), **settings)
    return rows

  def further(rows, numbers, index):
    nonlocal out
    steps, room = chunks[index]
    if room > rows.cache.slots:
      rows = compaction.grow(rows, capacity=room)
    where = places(numbers, samples, size)
    rows, out = decode(policy, rows, out, where, choice, steps=steps, **settings)
    if index + 1 == len(chunks):
      done = np.ones(numbers.shape, bool)
    else:  # the host looks at who is left
      done = np.array(hosts.fetch(rows.done)).reshape(numbers.shape)
    ended = numbers[done & (numbers != refill.NOBODY)] // samples
    left[:] -= np.bincount(ended, minlength=size)
    if left.any():
      finished(np.array([i for i in np.unique(ended) if not left[i]], int), *out[:2])
    return rows, done

  refill.run(loads, [prompt.shape[1] + room for _, room in chunks], parked,
             begin=first, decode=further, move=compaction.move)
  return out


def turns(policy: policies.Policy, unroll: bool) -> bool:
  """Return whether a policy, of arrays or what describes them, is turned to decode."""
  where = getattr(jax.tree.leaves(policy)[0], 'sharding', None)
  devices = jax.devices() if where is None else where.device_set  # of NumPy's
  return unroll and all(device.platform == 'cpu' for device in devices)


@jax.jit
def turn(policy: policies.Policy) -> policies.Policy:
  """Return the copy of the weights that unrolled layers read on a CPU."""
  return policy.turn()


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


def capacities(max_new_tokens: int, chunk: int):
  """Yield (steps, room in the cache) of each chunk.

  Room grows by half when full, and on to the end of a chunk: whole chunks fill it, and
  its rows stay aligned, without which a CPU takes half as long again for the scores.
  """
  start, capacity = 1, min(chunk, max_new_tokens)
  while start < max_new_tokens:
    if start > 1 and start + chunk - 1 > capacity:
      capacity += chunk * max(1, -(-capacity // (2 * chunk)))
      capacity = min(capacity, max_new_tokens)
    steps = min(chunk, max_new_tokens - start, capacity - start + 1)
    yield steps, capacity
    start += steps


@functools.partial(jax.jit, static_argnames=('samples', 'width', 'pad_token'))
def empty(prompt, *, samples, width, pad_token):
  """Return responses, masks and log-probabilities [B, K, N] of no token."""
  shape = (prompt.shape[0], samples, width)
  return tuple(sharding.constrain(x, 'batch', None, None) for x in (
    jnp.full(shape, pad_token, jnp.int32), jnp.zeros(shape, bool), jnp.zeros(shape)))


@functools.partial(jax.jit, donate_argnames='out', static_argnames=(
  'capacity', 'pad_token', 'unroll', 'greedy', 'top_k', 'use_top_p'))
def begin(policy, prompt, prompt_mask, row_ids, limits, images, key, choice, out,
          places, *, capacity, pad_token, unroll, **statics):
  """Prefill prompts; sample every response's first token and write it into `out`."""
  samples, width = out[0].shape[1:]
  policy = policy.unstack() if unroll else policy
  last, prompts = policy.prefill(prompt, prompt_mask, images)
  keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(row_ids)
  keys = jax.vmap(lambda k: jax.vmap(lambda j: jax.random.fold_in(k, j))(
    jnp.arange(samples)))(keys)
  logits = policy.logits(last)[:, None]
  logits = jnp.broadcast_to(logits, (*keys.shape, logits.shape[-1]))
  token, logprob = choices.choose(keys, jnp.int32(0), logits, choice, **statics)

  cache = policies.Cache.empty(prompts, samples, capacity, policy.config.cache_dtype)
  limit = jnp.broadcast_to(jnp.minimum(limits, width).reshape(len(limits), -1),
                           token.shape)
  done = jnp.isin(token, choice.stop_tokens) | (limit <= 1)
  out = _written(out, (token, jnp.ones_like(done), logprob), (*places, 0))
  rows = compaction.Rows(prompts, cache, keys, limit, token, done)
  return compaction.placed(rows, sharding.constrain), out


def _written(out, columns, index):
  """Return `out` with new columns at the rows' places; nobody's are not written."""
  return tuple(
    sharding.constrain(whole.at[index].set(part, mode='drop'), 'batch', None, None)
    for whole, part in zip(out, columns, strict=True))


@functools.partial(jax.jit, donate_argnames=('rows', 'out'), static_argnames=(
  'steps', 'pad_token', 'unroll', 'greedy', 'top_k', 'use_top_p'))
def decode(policy, rows, out, places, choice, *, steps, pad_token, unroll, **statics):
  """Decode up to `steps` tokens and write them into `out` at the rows' places."""
  policy = policy.unstack() if unroll else policy
  start = rows.cache.length + 1  # index in the response of the next token
  nobody = places[0] >= out[0].shape[0]
  whole, batch = sharding.spec(start), sharding.spec(nobody, 'batch', None)
  where = compaction.placed(rows, sharding.spec)
  loop = sharding.by_shard(
    functools.partial(_loop, steps=steps, pad_token=pad_token, **statics),
    (whole, where, batch, whole), (where, batch))
  rows, chunk = loop(policy, rows, nobody, choice)
  columns = (start + jnp.arange(steps))[None, None]
  return rows, _written(out, chunk, (*(x[..., None] for x in places), columns))


def _loop(policy, rows, nobody, choice, *, steps, pad_token, **statics):
  """Return rows `steps` tokens longer, and these tokens, mask and log-probabilities.

  It ends sooner where all rows are done; no one looks at what they would have had.
  """
  start = rows.cache.length + 1
  shape = (*rows.token.shape, steps)
  chunk = (jnp.full(shape, pad_token), jnp.zeros(shape, bool), jnp.zeros(shape))

  def unfinished(carry):
    step, _, _, done, _ = carry
    return (step < steps) & ~jnp.all(done)

  def one_token(carry):
    step, cache, token, done, (tokens, mask, logprobs) = carry
    hidden, cache = policy.extend(token[..., None], rows.prompt, cache)
    logits = policy.logits(hidden[:, :, 0])
    token, logprob = choices.choose(rows.keys, start + step, logits, choice, **statics)
    token = jnp.where(done, pad_token, token)

    def write(buffer, column):
      return jax.lax.dynamic_update_index_in_dim(buffer, column, step, -1)

    chunk = (write(tokens, token), write(mask, ~done),
             write(logprobs, jnp.where(done, 0.0, logprob)))
    done |= jnp.isin(token, choice.stop_tokens) | (rows.limit <= start + step + 1)
    return step + 1, cache, token, done, chunk

  carry = (jnp.int32(0), rows.cache, rows.token, rows.done | nobody, chunk)
  _, cache, token, done, chunk = jax.lax.while_loop(unfinished, one_token, carry)
  cache = cache._replace(length=rows.cache.length + steps)
  return rows._replace(cache=cache, token=token, done=done), chunk


def _check(prompt, samples_per_prompt, max_new_tokens, temperature, top_k, top_p,
           chunk, prompts_at_once, parked):
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
  if parked < 0:
    raise ValueError(f'parked={parked}: must be at least 0')
  if temperature < 0 or top_k < 0 or not 0 < top_p <= 1:
    raise ValueError(f'temperature={temperature}, top_k={top_k}, top_p={top_p}: need '
                     'temperature >= 0, top_k >= 0 and 0 < top_p <= 1')
