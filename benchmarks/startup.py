"""Seconds until a run of the default experiment does something, cold and warm.

python -m benchmarks.startup [--reps=5] [--json=FILE]

From the start of `python -m lpo_jax.main` to
  help      the end of `--help`
  gradient  the first step of gradient descent, the warm start's
  step      the end of the first iteration of reinforcement learning, behind the whole
            warm start and the first evaluation; `of it waiting` leaves their seconds
            out, and so is what imports, checks and compiling take
each with compiled programs kept from a run before (`warm`) and without any (`cold`).
The two alternate; the median counts.
"""

import json
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks import processes, timing

CONFIG = 'experiments/countdown.py'
# What a run says when it has done it: see `train`.
GRADIENT, STEP = 'warm start: first loss', 'a response: '
WORK = ('timing_s/warmstart', 'timing_s/eval')
ROOT = pathlib.Path(__file__).parents[1]


def main() -> None:
  """Time what the command line asks for."""
  parser = timing.parser(__doc__, {})
  parser.add_argument('--config', default=CONFIG, help='experiment; has a warm start')
  args = parser.parse_args()
  if args.reps < 1:
    raise SystemExit(f'--reps={args.reps}: must be at least 1')
  with tempfile.TemporaryDirectory() as folder:
    rows = measure(args.config, args.reps, args.quiet_s, pathlib.Path(folder),
                   args.platform)
  print(table(rows), f'\nMedian of {args.reps}, {os.cpu_count()} cores, {args.config}.',
        sep='\n')
  timing.write(args, 'startup', rows, config=args.config)


def measure(config: str, reps: int, quiet_s: float, folder: pathlib.Path,
            platform: str) -> list[dict]:
  """Return a row for each moment, with programs kept from before and without."""
  environment = os.environ | {'JAX_PLATFORMS': platform}
  environment.pop('JAX_COMPILATION_CACHE_DIR', None)
  found = {}

  def add(what, kept, marks):
    found.setdefault((what, kept), []).append(marks)
  _run(config, folder / 'warm', environment)  # what the warm ones find
  for _ in range(reps):
    processes.wait_until_quiet(quiet_s)
    start = time.perf_counter()
    subprocess.run([sys.executable, '-m', 'lpo_jax.main', '--help'], cwd=ROOT,
                   env=environment, stdout=subprocess.DEVNULL, check=False)
    add('help', '', (time.perf_counter() - start, None))
    for kept in ('cold', 'warm'):
      if kept == 'cold':
        shutil.rmtree(folder / kept, ignore_errors=True)
      processes.wait_until_quiet(quiet_s)
      for what, marks in _run(config, folder / kept, environment).items():
        add(what, kept, marks)
  rows = []
  for (what, kept), marks in sorted(found.items()):
    seconds, waiting = zip(*marks, strict=True)
    rows.append({
      'what': what, 'kept': kept, 'seconds': statistics.median(seconds),
      'waiting_s': None if waiting[0] is None else statistics.median(waiting),
      'runs_s': list(seconds)})
  return rows


def _run(config: str, folder: pathlib.Path, environment: dict) -> dict:
  """Run one iteration in a new workdir; return moment -> seconds, those of waiting."""
  workdir = folder / 'run'  # programs are kept beside it
  shutil.rmtree(workdir, ignore_errors=True)
  start, marks, said = time.perf_counter(), {}, []
  process = subprocess.Popen(
    [sys.executable, '-m', 'lpo_jax.main', f'--config={config}',
     f'--workdir={workdir}'], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE, text=True)
  for line in process.stderr:
    said.append(line)
    for what, sign in (('gradient', GRADIENT), ('step', STEP)):
      if sign in line:
        marks.setdefault(what, time.perf_counter() - start)
    if STEP in line:
      process.send_signal(signal.SIGTERM)  # it writes this iteration's line and ends
  if process.wait() or set(marks) != {'gradient', 'step'}:
    raise SystemExit(f'{config} ended with {process.returncode} after '
                     f'{sorted(marks)}:\n{"".join(said[-20:])}')
  line = json.loads((workdir / 'metrics.jsonl').read_text().splitlines()[1])
  work = sum(line[name] for name in WORK if name in line)
  return {'gradient': (marks['gradient'], None),
          'step': (marks['step'], marks['step'] - work)}


def table(rows: list[dict]) -> str:
  """Return the rows as Markdown."""
  lines = ['| from process start to | programs kept | seconds | of it waiting | '
           'fastest |', '|---|---|---:|---:|---:|']
  for row in rows:
    waiting = '' if row['waiting_s'] is None else f'{row["waiting_s"]:.2f}'
    lines.append(f'| {row["what"]} | {row["kept"]} | {row["seconds"]:.2f} | '
                 f'{waiting} | {min(row["runs_s"]):.2f} |')
  return '\n'.join(lines)


if __name__ == '__main__':
  main()
