"""Tokens per second of a whole step against K, prompt length, batch and devices.

python -m benchmarks.scaling [--shape=W1] [--vary=samples,prompts,...] [--json=FILE]

One size of the shape is varied at a time, the others stay; each point runs in a process
of its own (`benchmarks.step`'s own side). On CPUs `devices` are forced ones, which
share the same cores: there the rate shows what splitting costs, not what devices give.
For pods, tokens/s are predicted at the paper's Countdown batch: the least seconds of
docs/scale.md, compiled where it has been compiled. B K N sampled tokens count.
"""

import dataclasses
import json
import os
import pathlib
import statistics

from benchmarks import processes, shapes, step, timing

VARIED = {'samples': '2,4,8,16', 'prompt_width': '16,32,64,128',
          'prompts': '4,8,16,32', 'devices': '1,2,4,8'}
PREDICTED = ('qwen3_1.7b', 'qwen3_4b', 'qwen3_14b')
SCALE = pathlib.Path(__file__).parents[1] / 'docs' / 'scale.json'


def main() -> None:
  """Time and predict what the command line asks for."""
  parser = timing.parser(__doc__, {}, shape='W1')
  parser.add_argument('--vary', default=','.join(VARIED), help='sizes to vary')
  for size, values in VARIED.items():
    parser.add_argument(f'--{size}', default=values, help=f'values of {size}')
  parser.add_argument('--chunk', type=int, default=128,
                      help='tokens between two growths of the cache')
  args = parser.parse_args()
  varied = [name for name in args.vary.split(',') if name]
  if unknown := set(varied) - set(VARIED):
    raise SystemExit(f'--vary={",".join(sorted(unknown))}: choose from '
                     f'{", ".join(VARIED)}')
  rows = [measure(name, size, int(value), args) for name in timing.names_of(args)
          for size in varied for value in getattr(args, size).split(',')]
  foretold = predicted()
  print(table(rows), timing.footer(args, rows), prediction_table(foretold), sep='\n\n')
  timing.write(args, 'scaling', rows, predicted=foretold)


def measure(name: str, size: str, value: int, args) -> dict:
  """Return the row of one point."""
  shape, policy = shapes.SHAPES[name], shapes.policy_config(name)
  devices = value if size == 'devices' else 1
  if size != 'devices':
    shape = shape._replace(**{size: value})
  if shape.prompts % devices:
    raise SystemExit(f'--devices={devices} must divide the {shape.prompts} prompts of '
                     f'{name}')
  runner = processes.Runner(processes.Entry(
    processes.OURS, f'{size}={value}', forced if devices > 1 else step.ours,
    (shape, dataclasses.asdict(policy), devices, min(args.chunk, shape.new_tokens),
     devices), step.flops(policy, shape), platform=args.platform))
  for _ in range(args.reps):
    runner.repeat(args.quiet_s)
  runner.close()
  seconds = statistics.median(r.seconds for r in runner.repetitions)
  tokens = shape.prompts * shape.samples * shape.new_tokens
  return {'shape': name, 'size': size, 'value': value, 'tokens': tokens,
          'seconds': seconds, 'tokens_per_s': tokens / seconds,
          'gflops_per_s': runner.entry.flops / seconds / 1e9,
          'others_cores': max(r.others for r in runner.repetitions),
          'runs_s': [r.seconds for r in runner.repetitions]}


def forced(shape: shapes.Shape, fields: dict, micro_prompts: int, chunk: int,
           devices: int):
  """Build a step on several devices: forced ones where the platform is a CPU."""
  import jax

  if os.environ['JAX_PLATFORMS'] == 'cpu':
    jax.config.update('jax_num_cpu_devices', devices)
  return step.ours(shape, fields, micro_prompts, chunk, devices)


def predicted() -> list[dict]:
  """Return tokens/s of Qwen3 on the machines of docs/scale.md, at the least seconds."""
  from benchmarks import scale
  from configs import base, meshes

  cache = json.loads(SCALE.read_text()) if SCALE.exists() else {}
  task = 'countdown'
  batch, _, new = scale.TASKS[task]
  rollouts = batch * base.get_config().samples_per_prompt * new
  rows = []
  for machine in scale.MACHINES:
    for policy in PREDICTED:
      row = cache.get(f'{policy}/{machine}/{task}') or scale.estimate(
        policy, machine, task)
      shape, device, _ = meshes.MESHES[machine]
      if row['fits']:
        rows.append({
          'policy': policy, 'machine': machine, 'device': device,
          'devices': shape[0] * shape[1] * shape[2], 'how': row['how'],
          'trained': f'LoRA {row["rank"]}' if row['rank'] else 'all',
          'seconds': row['seconds']['step'],
          'tokens_per_s': rollouts / row['seconds']['step']})
  return rows


def table(rows: list[dict]) -> str:
  """Return the measured points as Markdown."""
  lines = ['| shape | varied | value | seconds a step | tokens/s | GFLOP/s |',
           '|---|---|---:|---:|---:|---:|']
  lines += [f'| {row["shape"]} | {row["size"]} | {row["value"]} | '
            f'{row["seconds"]:.3f} | {row["tokens_per_s"]:.0f} | '
            f'{row["gflops_per_s"]:.0f} |' for row in rows]
  return '\n'.join(lines)


def prediction_table(rows: list[dict]) -> str:
  """Return the predicted points as Markdown."""
  lines = ['| machine | devices | policy | trained | least seconds a step | tokens/s '
           'at most | how |', '|---|---:|---|---|---:|---:|---|']
  lines += [f'| {row["machine"]} | {row["devices"]} x {row["device"]} | '
            f'{row["policy"]} | {row["trained"]} | {row["seconds"]:.1f} | '
            f'{row["tokens_per_s"]:.0f} | {row["how"]} |' for row in rows]
  return '\n'.join(lines)


if __name__ == '__main__':
  main()
