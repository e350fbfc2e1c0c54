"""The sampler's programs compiled before they are called, from shapes alone.

`largest` is for `--mode=compile`, which asks what fits (unrolled layers are copies in
its programs, as large as those of `sampler.turn`); `compile_first` is for a run,
which calls the very programs soon after: what is lowered here must equal what
`sampler.sample` calls, placements included, or it is compiled a second time there.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lpo_jax import choices, compaction, refill, sampler, sharding
from lpo_jax.types import Images


def largest(policy, prompt, prompt_mask, row_ids, mesh, *, samples_per_prompt: int,
            max_new_tokens: int, chunk: int, unroll: bool,
            prompts: int = 0, apart: bool = False, images: Images | None = None):
  """Return the programs of `sample` at their largest, to be compiled ahead of time.

  Args:
    policy: shapes, dtypes and placements (jax.ShapeDtypeStruct) instead of arrays.
    prompt: likewise, of the prompts decoded at once, as are the next two; see `sample`.
    prompt_mask: bool[B, P].
    row_ids: i32[B].
    mesh: where; in context.
    samples_per_prompt: K.
    max_new_tokens: N.
    chunk: tokens between two levels.
    unroll: see `sample`.
    prompts: B; 0 if these are all.
    apart: responses wait for others, and then each has its own copy of its prompt.
    images: likewise shapes.

  Returns:
    {'prefill', 'decode'}, functions without arguments that lower the program; and
    what decoding carries in its longest cache: prompt and cache layers, as shapes.
  """
  whole = sharding.replicated(mesh)

  def scalar(dtype, shape=()):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=whole)

  def place(x, *logical):
    where = sharding.placement(x.shape, logical, mesh)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

  at_once = prompt.shape[0]
  shape = (prompts or at_once, samples_per_prompt, max_new_tokens)
  settings = dict(pad_token=0, unroll=unroll, greedy=False, top_k=0, use_top_p=False)
  choice = choices.Choice(scalar(jnp.float32), scalar(jnp.int32, (1,)),
                          scalar(jnp.float32))
  key = scalar(jax.eval_shape(jax.random.key, 0).dtype)
  out = tuple(place(jax.ShapeDtypeStruct(shape, dtype), 'batch', None, None)
              for dtype in (jnp.int32, bool, jnp.float32))
  load = refill.fresh(*shape[:2], shape[0] // at_once, 1)[0]
  given = (policy, prompt, prompt_mask, row_ids, row_ids, images, key, choice, out,
           sampler.places(load, *shape[1::-1]))

  rows, _ = jax.eval_shape(functools.partial(
    sampler.begin, capacity=max_new_tokens, **settings), *given)
  if apart and shape[0] > at_once:
    load = load.reshape(1, -1, 1)
    apart = refill.Move(*np.zeros((2, *load.shape[:2]), np.int32), 0 * load, load)
    rows = jax.eval_shape(lambda rows: compaction.move([rows], apart), rows)
  rows = compaction.placed(rows, place)
  return {
    'prefill': lambda: sampler.begin.lower(
      *given, capacity=min(chunk, max_new_tokens), **settings),
    'decode': lambda: sampler.decode.lower(
      policy, rows, out, sampler.places(load, *shape[1::-1]), choice,
      steps=min(chunk, max_new_tokens - 1), **settings),
  }, (rows.prompt.layers, rows.cache.layers)


def compile_first(policy, prompt, prompt_mask, key, row_ids, limits, *,
                  samples_per_prompt: int, max_new_tokens: int, temperature: float,
                  stop_tokens: tuple[int, ...], top_k: int, top_p: float,
                  pad_token: int, chunk: int, unroll: bool):
  """Compile what `sampler.sample` calls first: the prefill and the first chunk.

  Later chunks, in a grown cache or of fewer rows, are compiled when they are reached.
  Images and parts (`prompts_at_once`) are not looked after.

  Args:
    policy: shapes, dtypes and placements (jax.ShapeDtypeStruct) of pi_b.
    prompt: i32[B, P], as `sample` gets it; so are the rest.
    prompt_mask: bool[B, P].
    key: a PRNG key, of any value.
    row_ids: i32[B].
    limits: i32[B].
    samples_per_prompt: K.
    max_new_tokens: N.
    temperature: see `sampler.sample`, as for what follows.
    stop_tokens: end a response.
    top_k: most likely tokens kept.
    top_p: probability kept.
    pad_token: fills responses.
    chunk: tokens between two levels.
    unroll: layers.

  Returns:
    response, mask and log-probabilities [B, K, N], as shapes with the placement that
    the compiler chose.
  """
  shape = (prompt.shape[0], samples_per_prompt, max_new_tokens)
  choice, settings = choices.settings(temperature, stop_tokens, top_k, top_p)
  settings |= dict(pad_token=pad_token, unroll=unroll)
  empty = sampler.empty.lower(prompt, samples=shape[1], width=shape[2],
                              pad_token=pad_token)
  out = _placed(empty.out_info, empty.compile())
  if sampler.turns(policy, unroll):
    turn = sampler.turn.lower(policy)
    policy = _placed(turn.out_info, turn.compile())
  load, = refill.fresh(*shape[:2], 1, sharding.batch_shards())
  places = sampler.places(load, *shape[1::-1])
  begin = sampler.begin.lower(
    policy, prompt, prompt_mask, row_ids, limits, None, key, choice, out, places,
    capacity=min(chunk, max_new_tokens), **settings)
  rows, out = _placed(begin.out_info, begin.compile())
  for steps, _ in sampler.capacities(max_new_tokens, chunk):
    decode = sampler.decode.lower(policy, rows, out, places, choice, steps=steps,
                                  **settings)
    return _placed(decode.out_info, decode.compile())[1]
  return out


def _placed(info, compiled):
  """Return what a program returns, as shapes with the compiler's placements."""
  return jax.tree.map(
    lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), info,
    compiled.output_shardings)
