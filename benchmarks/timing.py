"""Two sides of one job on one machine: who does what, when, and how fast.

Every entry lives in a process of its own, loaded once, so that its peak memory is its
own and nothing is shared but the cores. Repetitions alternate, each begins when the
machine is quiet, and the median counts. Speeds stand beside the machine's float32
matmul peak, measured between the same repetitions.
"""

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

from benchmarks import shapes

QUIET_CORES = 0.15  # busy cores below which the machine is quiet
DISTURBED_CORES = 0.25  # cores used by others above which a table says so
MATMUL_SIZE, MATMULS = 2048, 8
OURS = 'lpo_jax'


@dataclasses.dataclass(frozen=True)
class Entry:
  """One way to do the job."""

  side: str  # OURS or a peer's name
  setting: str  # what distinguishes it from the side's other entries
  build: Callable  # a module's function: args -> (do it once, check what it returned)
  args: tuple
  flops: float  # of doing it once


class Repetition(NamedTuple):
  """One timed repetition."""

  seconds: float
  others: float  # cores that other processes used meanwhile
  peak_mib: float  # largest resident size of the entry's process so far


class Runner:
  """An entry in its process, waiting to be told to run."""

  def __init__(self, entry: Entry):
    """Start the process, load the entry and run it once, so that all is compiled."""
    self.entry, self.repetitions = entry, []
    context = multiprocessing.get_context('spawn')
    self._pipe, theirs = context.Pipe()
    self._process = context.Process(
      target=_serve, args=(theirs, entry.side, entry.build, entry.args), daemon=True)
    self._process.start()
    theirs.close()
    self._run()

  def repeat(self, quiet_s: float) -> float:
    """Wait for a quiet machine, run once and keep the Repetition; return seconds."""
    wait_until_quiet(quiet_s)
    self.repetitions.append(self._run())
    return self.repetitions[-1].seconds

  def close(self) -> None:
    """End the process."""
    self._pipe.close()
    self._process.join()

  def _run(self) -> Repetition:
    before = _busy_seconds()
    try:
      self._pipe.send('run')
      seconds, own, busy, peak_mib = self._pipe.recv()
    except (EOFError, OSError):
      side = f'{self.entry.side} ({self.entry.setting})'
      raise SystemExit(f'{side} failed: see above') from None
    return Repetition(seconds, max(0.0, (busy - before - own) / seconds), peak_mib)


def _serve(pipe, side, build, args) -> None:
  """Do the job once for every message, until the pipe closes."""
  os.environ['JAX_PLATFORMS'] = 'cpu'  # both sides on the same cores
  if side == OURS:
    from lpo_jax import allocator

    allocator.keep_freed_memory()  # as `lpo_jax.main` does
  once, check = build(*args)
  while True:
    try:
      pipe.recv()
    except EOFError:
      return
    own, start = time.process_time(), time.perf_counter()
    result = once()
    seconds, own = time.perf_counter() - start, time.process_time() - own
    busy = _busy_seconds()
    check(result)
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pipe.send((seconds, own, busy, kib / 1024))


def _busy_seconds() -> float:
  """Return the CPU seconds all processes have used; 0 where Linux does not say."""
  if not os.path.exists('/proc/stat'):
    return 0.0
  with open('/proc/stat') as file:
    user, nice, system, _, _, *interrupts = map(int, file.readline().split()[1:8])
  return (user + nice + system + sum(interrupts)) / os.sysconf('SC_CLK_TCK')


def wait_until_quiet(limit_s: float) -> None:
  """Return after 0.4 s in which hardly anything ran, or after `limit_s`."""
  deadline, calm = time.perf_counter() + limit_s, 0
  while calm < 2 and time.perf_counter() < deadline:
    busy, start = _busy_seconds(), time.perf_counter()
    time.sleep(0.2)
    cores = (_busy_seconds() - busy) / (time.perf_counter() - start)
    calm = calm + 1 if cores < QUIET_CORES else 0


def _matmul():
  """Build the peak: square float32 matmuls in JAX."""
  import jax
  import jax.numpy as jnp

  x = jnp.ones((MATMUL_SIZE, MATMUL_SIZE), jnp.float32)
  multiply = jax.jit(jnp.matmul)
  return (lambda: jax.block_until_ready([multiply(x, x) for _ in range(MATMULS)]),
          lambda results: None)


def parser(description: str, settings: dict) -> argparse.ArgumentParser:
  """Return the flags of every benchmark, and of `settings`: name -> default, help."""
  found = argparse.ArgumentParser(
    description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
  found.add_argument('--shape', default='W1,W2',
                     help=f'some of {", ".join(shapes.SHAPES)}')
  found.add_argument('--reps', type=int, default=5, help='timed repetitions')
  found.add_argument('--quiet_s', type=float, default=60.0,
                     help='longest wait for a quiet machine before a repetition')
  found.add_argument('--json', default='', help='file for every number')
  for name, (default, meaning) in settings.items():
    found.add_argument(f'--{name}', default=default,
                       help=f'{meaning}; the fastest of them counts')
  return found


def run(job: str, args,
        contest: Callable[[shapes.Shape], tuple[int, list[Entry]]]) -> None:
  """Time a job at every shape asked for; print the table, write the JSON.

  Args:
    job: its name.
    args: from `parser`.
    contest: shape -> tokens that doing it once counts for, and the entries. Of each
      side the fastest entry, in two trial runs, is timed.
  """
  names = args.shape.split(',')
  if unknown := set(names) - set(shapes.SHAPES):
    raise SystemExit(f'--shape={",".join(sorted(unknown))}: choose from '
                     f'{", ".join(shapes.SHAPES)}')
  if args.reps < 1:
    raise SystemExit(f'--reps={args.reps}: must be at least 1')
  with_torch = importlib.util.find_spec('torch') is not None
  if not with_torch:
    print('torch is not installed, so only lpo_jax is timed; to compare, '
          'pip install torch', file=sys.stderr)
  rows = []
  for name in names:
    tokens, entries = contest(shapes.SHAPES[name])
    entries = [entry for entry in entries if with_torch or entry.side == OURS]
    rows += _time(name, tokens, entries, args.reps, args.quiet_s)
  print(_table(job, rows))
  if args.json:
    packages = ('jax', 'transformers', *(('torch',) if with_torch else ()))
    versions = {package: importlib.metadata.version(package) for package in packages}
    with open(args.json, 'w') as file:
      json.dump({'job': job, 'cores': os.cpu_count(), 'machine': platform.machine(),
                 'versions': versions, 'rows': rows}, file, indent=2)


def _time(shape: str, tokens: int, entries: list[Entry], reps: int, quiet_s: float):
  """Return one row of numbers for each side, ours first."""
  sides = {}
  for entry in entries:
    sides.setdefault(entry.side, []).append(entry)
  runners = [_fastest(side, quiet_s) for side in sides.values()]
  flops = 2 * MATMULS * MATMUL_SIZE**3
  peak = Runner(Entry('matmul', 'float32', _matmul, (), flops))
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
  for row in rows[1:]:
    rows[0][f'over {row["side"]}'] = rows[0]['tokens_per_s'] / row['tokens_per_s']
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


def _table(job: str, rows: list[dict]) -> str:
  """Return the rows as Markdown."""
  lines = [f'| shape | {job} by | setting | tokens/s | ours / theirs | share of matmul '
           'peak | peak memory, MiB |', '|---|---|---|---:|---:|---:|---:|']
  for row in rows:
    ratio = [f'{value:.2f}' for key, value in row.items() if key.startswith('over ')]
    lines.append(
      f'| {row["shape"]} | {row["side"]} | {row["setting"]} | '
      f'{row["tokens_per_s"]:.0f} | {"".join(ratio)} | {row["share_of_peak"]:.0%} of '
      f'{row["matmul_peak_gflops_per_s"]:.0f} GFLOP/s | {row["peak_memory_mib"]:.0f} |')
  lines += ['', f'Median of {len(rows[0]["runs_s"])} alternating repetitions, '
            f'{os.cpu_count()} cores, float32.']
  others = max(row['others_cores'] for row in rows)
  if others > DISTURBED_CORES:
    lines.append(f'Disturbed: other processes used up to {others:.1f} cores during a '
                 'repetition; measure again on an idle machine.')
  return '\n'.join(lines)
