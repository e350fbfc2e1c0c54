"""Seconds of sampling where most responses are short and a few are long.

python -m benchmarks.tail [--shape=W1] [--chunk=16,32] [--reps=5] [--json=FILE]

Four times a shape's prompts, as many at once as it has, K responses each whose lengths
are drawn from a log-normal law cut at N, twice the shape's; their mean is N / 4. Ideal
are the sampled tokens over the peak, the tokens per second of one load whose responses
all have N. In `waiting` rows may wait for others (`parked=1`); in `one by one`, the
default, a load ends before the next begins.
"""

import dataclasses
import itertools
import statistics

from benchmarks import shapes, timing

_LOADS, _LONGER = 4, 2  # of a shape's prompts, and than its responses
_ONE_LOAD = 'peak'
_PARKED = {_ONE_LOAD: 0.0, 'waiting': 1.0, 'one by one': 0.0}


def main() -> None:
  """Time what the command line asks for."""
  args = timing.parser(__doc__, {'chunk': ('16,32', 'tokens between two levels')},
                       shape='W1').parse_args()
  rows = []
  for name in timing.names_of(args):
    for chunk in map(int, args.chunk.split(',')):
      rows += _rows(name, chunk, args)
  print(table(rows), timing.footer(args, rows), sep='\n')
  timing.write(args, 'tail', rows)


def _rows(name: str, chunk: int, args) -> list[dict]:
  """Return what each way of sampling takes; repetitions alternate."""
  fields = dataclasses.asdict(shapes.policy_config(name))
  shape = shapes.SHAPES[name]
  runners = {way: timing.Runner(timing.Entry(
    timing.OURS, way, ours, (shape, fields, chunk, way), 0.0, platform=args.platform))
    for way in _PARKED}
  for rep in range(args.reps):
    for runner in [*runners.values()][::-1 if rep % 2 else 1]:
      runner.repeat(args.quiet_s)
  seconds = {way: statistics.median(one.seconds for one in runner.repetitions)
             for way, runner in runners.items()}
  peak = int(lengths(shape, _ONE_LOAD).sum()) / seconds[_ONE_LOAD]
  rows = []
  for way, runner in runners.items():
    tokens = int(lengths(shape, way).sum())
    rows.append({
      'shape': name, 'chunk': chunk, 'way': way, 'tokens': tokens,
      'seconds': seconds[way], 'tokens_per_s': tokens / seconds[way],
      'over_ideal': seconds[way] / (tokens / peak),
      'peak_memory_mib': max(one.peak_mib for one in runner.repetitions),
      'others_cores': max(one.others for one in runner.repetitions),
      'runs_s': [one.seconds for one in runner.repetitions]})
    runner.close()
  return rows


def lengths(shape: shapes.Shape, way: str):
  """Return the lengths i32[B, K] of the responses."""
  import numpy as np

  longest = _LONGER * shape.new_tokens
  if way == _ONE_LOAD:
    return np.full((shape.prompts, shape.samples), longest, np.int32)
  return shapes.heavy_tailed(_LOADS * shape.prompts, shape.samples, longest)


def ours(shape: shapes.Shape, fields: dict, chunk: int, way: str):
  """Build our sampler, with responses of known lengths."""
  import jax
  import numpy as np

  from lpo_jax import policy as policies
  from lpo_jax import sampler

  limits = lengths(shape, way)
  longest = _LONGER * shape.new_tokens
  config = shapes.our_config(fields, longest)
  policy = jax.jit(lambda key: policies.Policy(config, key))(jax.random.key(0))
  prompt, _ = shapes.batch(shape._replace(prompts=len(limits)), config.vocab_size)
  mask, seeds = np.ones(prompt.shape, bool), itertools.count()

  def once():
    return jax.block_until_ready(sampler.sample(
      policy, prompt, mask, jax.random.key(next(seeds)), limits=limits,
      samples_per_prompt=shape.samples, max_new_tokens=longest, chunk=chunk,
      prompts_at_once=shape.prompts, parked=_PARKED[way], unroll=config.unroll))

  def check(rollouts):
    np.testing.assert_array_equal(rollouts.response_mask.sum(-1), limits)

  return once, check


def table(rows: list[dict]) -> str:
  """Return the rows as Markdown."""
  lines = ['| shape | chunk | rows | tokens | seconds | tokens/s | over ideal | '
           'peak memory, MiB |', '|---|---:|---|---:|---:|---:|---:|---:|']
  lines += [f'| {row["shape"]} | {row["chunk"]} | {row["way"]} | {row["tokens"]} | '
            f'{row["seconds"]:.3f} | {row["tokens_per_s"]:.0f} | '
            f'{row["over_ideal"]:.2f} | {row["peak_memory_mib"]:.0f} |' for row in rows]
  return '\n'.join(lines)


if __name__ == '__main__':
  main()
