"""Seconds of sampling and of the update where a few responses are long.

python -m benchmarks.tail [--shape=W1] [--chunk=16,32] [--pack=4,6] [--reps=5]
    [--json=FILE]

Four times a shape's prompts, as many at once as it has, K responses each whose lengths
are drawn from a log-normal law cut at N, twice the shape's; their mean is N / 4. Ideal
are the tokens over the peak, the tokens per second of one load whose responses all
have N: sampled tokens, and for the update those of the prompts, too.

Sampling, per chunk: in `waiting` rows may wait for others (`parked=1`); in `one by
one`, the default, a load ends before the next begins. The update, a group to a
microbatch: `padded` to N, or up to `pack` times as many `packed` into as many places.
"""

import dataclasses
import itertools
import statistics

from benchmarks import processes, shapes, timing, update

_LOADS, _LONGER = 4, 2  # of a shape's prompts, and than its responses
_PEAK = 'peak'
_PARKED = {_PEAK: 0.0, 'waiting': 1.0, 'one by one': 0.0}


def main() -> None:
  """Time what the command line asks for."""
  args = timing.parser(__doc__, {
    'chunk': ('16,32', 'tokens between two levels; \'\' for no sampling'),
    'pack': ('4,6', 'times as many groups to a microbatch; \'\' for no update')},
    shape='W1').parse_args()
  rows = []
  for name in timing.names_of(args):
    for chunk in map(int, filter(None, args.chunk.split(','))):
      rows += _rows(name, args, f'sampling, chunk {chunk}', {
        way: (sampling, (chunk, way)) for way in _PARKED})
    if args.pack:
      packed = {f'packed {n}': (updating, (int(n), '')) for n in args.pack.split(',')}
      rows += _rows(name, args, 'update', {
        _PEAK: (updating, (1, _PEAK)), 'padded': (updating, (1, ''))} | packed)
  print(table(rows), timing.footer(args, rows), sep='\n')
  timing.write(args, 'tail', rows)


def _rows(name: str, args, job: str, ways: dict) -> list[dict]:
  """Return what each way to do a job takes; repetitions alternate."""
  fields = dataclasses.asdict(shapes.policy_config(name))
  shape = shapes.SHAPES[name]
  runners = {way: processes.Runner(processes.Entry(
    processes.OURS, way, build, (shape, fields, *more), 0.0, platform=args.platform))
    for way, (build, more) in ways.items()}
  for rep in range(args.reps):
    for runner in [*runners.values()][::-1 if rep % 2 else 1]:
      runner.repeat(args.quiet_s)
  seconds = {way: statistics.median(one.seconds for one in runner.repetitions)
             for way, runner in runners.items()}
  tokens, padding = zip(*(runner.repetitions[0].found for runner in runners.values()),
                        strict=True)
  tokens, padding = (dict(zip(runners, x, strict=True)) for x in (tokens, padding))
  peak = tokens[_PEAK] / seconds[_PEAK]
  rows = []
  for way, runner in runners.items():
    rows.append({
      'shape': name, 'job': job, 'way': way, 'tokens': tokens[way],
      'padding': padding[way], 'seconds': seconds[way],
      'tokens_per_s': tokens[way] / seconds[way],
      'over_ideal': seconds[way] / (tokens[way] / peak),
      'peak_memory_mib': max(one.peak_mib for one in runner.repetitions),
      'others_cores': max(one.others for one in runner.repetitions),
      'runs_s': [one.seconds for one in runner.repetitions]})
    runner.close()
  return rows


def lengths(shape: shapes.Shape, way: str):
  """Return the lengths i32[B, K] of the responses."""
  import numpy as np

  longest = _LONGER * shape.new_tokens
  if way == _PEAK:
    return np.full((shape.prompts, shape.samples), longest, np.int32)
  return shapes.heavy_tailed(_LOADS * shape.prompts, shape.samples, longest)


def sampling(shape: shapes.Shape, fields: dict, chunk: int, way: str):
  """Build our sampler, with responses of known lengths."""
  import jax
  import numpy as np

  from lpo_jax import sampler, sharding

  limits, seeds = lengths(shape, way), itertools.count()
  longest = _LONGER * shape.new_tokens
  policy, mesh = shapes.to_sample(fields, longest, shape.prompts, shape.samples)
  prompt, _ = shapes.batch(shape._replace(prompts=len(limits)),
                           policy.config.vocab_size)
  prompt, mask, most = sharding.shard_batch(
    (prompt, np.ones(prompt.shape, bool), limits), mesh)

  def once():
    with jax.set_mesh(mesh):
      return jax.block_until_ready(sampler.sample(
        policy, prompt, mask, jax.random.key(next(seeds)), limits=most,
        samples_per_prompt=shape.samples, max_new_tokens=longest, chunk=chunk,
        prompts_at_once=shape.prompts, parked=_PARKED[way],
        unroll=policy.config.unroll))

  def check(rollouts):
    mask = np.asarray(rollouts.response_mask)
    np.testing.assert_array_equal(mask.sum(-1), limits)
    return int(limits.sum()), None

  return once, check


def updating(shape: shapes.Shape, fields: dict, pack: int, way: str):
  """Build our update, of responses of known lengths."""
  sizes = lengths(shape, way)
  shape = shape._replace(prompts=len(sizes), new_tokens=_LONGER * shape.new_tokens)
  batch = update.groups(shape, fields['vocab_size'], sizes)
  once = update.repeated(*update.program(shape, fields, 1, pack), batch)

  def check(metrics):
    update.check_taken(metrics)
    tokens = int(sizes.sum()) + len(sizes) * shape.prompt_width
    return tokens, float(metrics['perf/pad_frac'])

  return once, check


def table(rows: list[dict]) -> str:
  """Return the rows as Markdown."""
  lines = ['| shape | job | way | tokens | padding | seconds | tokens/s | over ideal | '
           'peak memory, MiB |', '|---|---|---|---:|---:|---:|---:|---:|---:|']
  for row in rows:
    padding = '' if row['padding'] is None else f'{row["padding"]:.1%}'
    lines.append(
      f'| {row["shape"]} | {row["job"]} | {row["way"]} | {row["tokens"]} | {padding} | '
      f'{row["seconds"]:.3f} | {row["tokens_per_s"]:.0f} | {row["over_ideal"]:.2f} | '
      f'{row["peak_memory_mib"]:.0f} |')
  return '\n'.join(lines)


if __name__ == '__main__':
  main()
