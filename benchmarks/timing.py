"""Two sides of one job on one machine: who does what, when, and how fast.

Every entry lives in processes of its own (`processes`). Repetitions alternate, each
begins when the machine is quiet, and the median counts. Speeds stand beside the
device's matmul peak in the shape's type, measured between the same repetitions.
"""

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable

from benchmarks import shapes
from benchmarks.processes import Entry, Runner

DISTURBED_CORES = 0.25  # cores used by others above which a table says so
MATMULS, MATMUL_SIZE = 8, {'cpu': 2048, 'cuda': 8192, 'tpu': 8192}


def matmuls(dtype: str, platform: str):
  """Build the peak: square matmuls in JAX."""
  import jax
  import jax.numpy as jnp

  x = jnp.ones((MATMUL_SIZE[platform], MATMUL_SIZE[platform]), dtype)
  multiply = jax.jit(jnp.matmul)
  return (lambda: jax.block_until_ready([multiply(x, x) for _ in range(MATMULS)]),
          lambda results: None)


def matmul_flops(platform: str) -> float:
  """Return the operations of doing `matmuls` once."""
  return 2.0 * MATMULS * MATMUL_SIZE[platform]**3


def parser(description: str, settings: dict,
           shape: str = 'W1,W2') -> argparse.ArgumentParser:
  """Return the flags of every benchmark, and of `settings`: name -> default, help."""
  found = argparse.ArgumentParser(
    description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
  found.add_argument('--shape', default=shape,
                     help=f'some of {", ".join(shapes.SHAPES)}')
  found.add_argument('--reps', type=int, default=5, help='timed repetitions')
  found.add_argument('--quiet_s', type=float, default=60.0,
                     help='longest wait for a quiet machine before a repetition')
  found.add_argument('--platform', default='cpu', choices=list(MATMUL_SIZE),
                     help='of JAX')
  found.add_argument('--json', default='', help='file for every number')
  for name, (default, meaning) in settings.items():
    found.add_argument(f'--{name}', default=default,
                       help=f'{meaning}; the fastest of them counts')
  return found


def run(job: str, args, contest: Callable[[str], tuple[int, list[Entry]]],
        **more) -> None:
  """Time a job at every shape asked for; print the table, write the JSON.

  Args:
    job: its name.
    args: from `parser`.
    contest: name of a shape -> tokens that doing it once counts for, and the entries.
      Of each side the fastest entry, in two trial runs, is timed.
    **more: what else belongs into the JSON.
  """
  names = names_of(args)
  with_torch = importlib.util.find_spec('torch') is not None
  if not with_torch:
    print('torch is not installed, so only lpo_jax is timed; to compare, '
          'pip install torch', file=sys.stderr)
  rows = []
  for name in names:
    tokens, entries = contest(name)
    entries = [dataclasses.replace(entry, platform=args.platform) for entry in entries
               if with_torch or entry.ours or entry.python]
    rows += _time(name, tokens, entries, args.reps, args.quiet_s)
  print(table(job, rows), footer(args, rows), sep='\n')
  write(args, job, rows, **more)


def write(args, job: str, rows: list[dict], **more) -> None:
  """Write every number to the file of --json, with what it was measured on."""
  if not args.json:
    return
  versions = {package: importlib.metadata.version(package)
              for package in ('jax', 'transformers', 'torch')
              if importlib.util.find_spec(package)}
  found = {
    'job': job, 'cores': os.cpu_count(), 'machine': platform.machine(),
    'processor': processor(), 'platform': args.platform, 'versions': versions,
    'measured': time.strftime('%Y-%m-%d', time.gmtime()), 'reps': args.reps,
    'quiet_s': args.quiet_s, **more, 'rows': rows}
  with open(args.json, 'w') as file:
    json.dump(found, file, indent=2)
    file.write('\n')


def processor() -> str:
  """Return what Linux calls the processor; '' where it does not say."""
  path = pathlib.Path('/proc/cpuinfo')
  lines = path.read_text().splitlines() if path.exists() else []
  return next((line.split(':', 1)[1].strip() for line in lines
               if line.startswith('model name')), '')


def names_of(args) -> list[str]:
  """Return the shapes asked for; end the program where the flags make no sense."""
  names = args.shape.split(',')
  if unknown := set(names) - set(shapes.SHAPES):
    raise SystemExit(f'--shape={",".join(sorted(unknown))}: choose from '
                     f'{", ".join(shapes.SHAPES)}')
  if args.reps < 1:
    raise SystemExit(f'--reps={args.reps}: must be at least 1')
  return names


def _time(shape: str, tokens: int, entries: list[Entry], reps: int, quiet_s: float):
  """Return one row of numbers for each side, ours first."""
  sides = {}
  for entry in entries:
    sides.setdefault(entry.side, []).append(entry)
  runners = [_fastest(side, quiet_s) for side in sides.values()]
  dtype, platform = shapes.policy_config(shape).dtype, runners[0].entry.platform
  flops = matmul_flops(platform)
  peak = Runner(Entry('matmul', dtype, matmuls, (dtype, platform), flops,
                      platform=platform))
  for rep in range(reps):
    for runner in [*runners, peak][::-1 if rep % 2 else 1]:
      runner.repeat(quiet_s)
  peak_flops = flops / min(r.seconds for r in peak.repetitions)
  rows = []
  for runner in runners:
    found = runner.repetitions
    seconds = statistics.median(r.seconds for r in found)
    rows.append({
      'shape': shape, 'side': runner.entry.side, 'setting': runner.entry.setting,
      'tokens': tokens, 'seconds': seconds, 'tokens_per_s': tokens / seconds,
      'gflops_per_s': runner.entry.flops / seconds / 1e9,
      'matmul_peak_gflops_per_s': peak_flops / 1e9,
      'share_of_peak': runner.entry.flops / seconds / peak_flops,
      'peak_memory_mib': max(r.peak_mib for r in found),
      'others_cores': max(r.others for r in [*found, *peak.repetitions]),
      'runs_s': [r.seconds for r in found]})
  mine = [row for row, runner in zip(rows, runners, strict=True) if runner.entry.ours]
  for own in mine:
    own |= {f'over {row["side"]}': own['tokens_per_s'] / row['tokens_per_s']
            for row in rows if row not in mine}
  for runner in [*runners, peak]:
    runner.close()
  return rows


def _fastest(entries: list[Entry], quiet_s: float) -> Runner:
  """Return the runner of the fastest of a side's entries; end the others."""
  runners = [Runner(entry) for entry in entries]
  if len(runners) > 1:
    trials = [[runner.repeat(quiet_s) for runner in runners] for _ in range(2)]
    best = min(range(len(runners)), key=lambda i: min(t[i] for t in trials))
    runners[0], runners[best] = runners[best], runners[0]
  for runner in runners[1:]:
    runner.close()
  runners[0].repetitions.clear()
  return runners[0]


def table(job: str, rows: list[dict]) -> str:
  """Return the rows of `run` as Markdown."""
  lines = [f'| shape | {job} by | setting | seconds | tokens/s | ours / theirs | share '
           'of matmul peak | peak memory, MiB |',
           '|---|---|---|---:|---:|---:|---:|---:|']
  for row in rows:
    ratio = [f'{key.removeprefix("over ")}: {value:.2f}' for key, value in row.items()
             if key.startswith('over ')]
    lines.append(
      f'| {row["shape"]} | {row["side"]} | {row["setting"]} | {row["seconds"]:.3f} | '
      f'{row["tokens_per_s"]:.0f} | {", ".join(ratio)} | {row["share_of_peak"]:.0%} of '
      f'{row["matmul_peak_gflops_per_s"]:.0f} GFLOP/s | {row["peak_memory_mib"]:.0f} |')
  return '\n'.join(lines)


def footer(args, rows: list[dict]) -> str:
  """Return how it was measured, and whether other processes disturbed it."""
  text = f'\nMedian of {args.reps} alternating repetitions, {os.cpu_count()} cores.'
  others = max(row['others_cores'] for row in rows)
  if others > DISTURBED_CORES:
    text += (f'\nDisturbed: other processes used up to {others:.1f} cores during a '
             'repetition; measure again on an idle machine.')
  return text
