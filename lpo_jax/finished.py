"""What finished runs say, read from their folders alone.

config.json, metrics.jsonl and, where that is absent, summary.json. A run is judged by
its last validation and by its training numbers over the last tenth of its steps; its
evaluations in order, with what was spent until each, are its path.
"""

import dataclasses
import json
import math
import pathlib
import re

import numpy as np

from lpo_jax import curves, metrics

TRAINING = ('actor/entropy', 'actor/grad_norm', 'response_length/mean',
            'group/flat_frac', 'reward/trace_valid_frac')
KINDS = ('mean', 'pass', 'maj')
TAIL = 0.1  # the share of a run over which training numbers are averaged


@dataclasses.dataclass(frozen=True)
class Run:
  """What one run folder says."""

  path: pathlib.Path
  config: dict  # flat: 'objective.name' -> value
  rows: list  # the lines of metrics.jsonl
  summary: dict

  @property
  def last_step(self) -> int:
    return self.rows[-1]['step'] if self.rows else 0


@dataclasses.dataclass(frozen=True)
class Path:
  """One run's evaluations of one set, in order: what was spent, what was reached."""

  spent: dict[str, np.ndarray]  # 'iterations', 'tokens', 'seconds' -> f64[n], rising
  pass_1: np.ndarray  # f64[n], the mean over the samples
  pass_k: np.ndarray  # f64[n]


def path(run: Run, mean: str, passed: str) -> Path:
  """Return where a run's evaluations found it.

  Tokens are those sampled for training. Seconds are those of its iterations: sampling,
  verdicts and update. An iteration in which something was compiled counts as the run's
  median iteration, since who compiles depends on what is cached.

  Args:
    run: whose.
    mean: the number that is its pass@1.
    passed: the number that is its pass@k.
  """
  seconds, tokens, found = np.cumsum(_seconds(run.rows)), 0.0, []
  for index, row in enumerate(run.rows):
    tokens = row.get('perf/total_tokens') or tokens
    if row.get(mean) is not None and row.get(passed) is not None:
      found.append((row['step'], tokens, seconds[index], row[mean], row[passed]))
  columns = np.array(found, float).reshape(-1, 5).T
  spent = dict(zip(('iterations', 'tokens', 'seconds'), columns, strict=False))
  return Path(spent, *columns[3:])


def _seconds(rows: list[dict]) -> np.ndarray:
  """Return f64[rows]: of each iteration, without compilation where others tell."""
  taken = np.array([row.get('timing_s/step') or 0.0 for row in rows], float)
  counts = [row.get('perf/compile_count') for row in rows]
  compiled = np.array([now is not None and now != before for now, before in
                       zip(counts, [None, *counts], strict=False)], bool)
  steady = taken[~compiled & (taken > 0)]
  return np.where(compiled, np.median(steady), taken) if len(steady) else taken


def find(paths: list[str]) -> list[pathlib.Path]:
  """Return the run folders at or under the paths, sorted, each once.

  Raises:
    ValueError: a path holds no run.
  """
  found = set()
  for path in map(pathlib.Path, paths):
    runs = {file.parent for file in path.rglob('config.json') if _is_run(file.parent)}
    if not runs:
      raise ValueError(
        f'{path} holds no run: expected config.json beside metrics.jsonl or '
        'summary.json, there or in a folder below'
      )
    found |= {run.resolve() for run in runs}
  return sorted(found)


def load(path: pathlib.Path) -> Run:
  """Return one run read from its folder.

  Raises:
    ValueError: config.json or summary.json is not a JSON object.
  """
  rows = metrics.read(str(path)) if (path / metrics.FILE).exists() else []
  summary = path / 'summary.json'
  config = _flat(_read_object(path / 'config.json'))
  # Seeds that start from base_0, base_1, ... start from the same thing.
  seed = rf'(?<!\d){config.get("seed")}(?!\d)'
  config['init_from'] = re.sub(rf'{seed}(?!.*{seed})', '{seed}',
                               str(config.get('init_from', '')))
  return Run(
    path=path,
    config=config,
    rows=rows,
    summary=_flat(_read_object(summary), '/') if summary.exists() else {},
  )


def final(run: Run) -> dict[str, float]:
  """Return the numbers a run is judged by, name -> value."""
  numbers = {}
  for row in run.rows:
    numbers = {n: v for n, v in row.items() if is_score(n) and v is not None} or numbers
  if not run.rows:
    numbers = {n: v for n, v in run.summary.items() if is_score(n) and _is_number(v)}
  for name in TRAINING:
    steps, values = curves.series(run.rows, name)
    tail = values[steps > run.last_step * (1 - TAIL)]
    if len(tail):
      numbers[name] = float(tail.mean())
  return numbers


def _is_number(value) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)


def is_score(name: str) -> bool:
  """Return whether a number is a validation score, mean@, pass@ or maj@."""
  return re.fullmatch(r'val/.+/(mean|pass|maj)@(\d+|n)', name) is not None


def label(name: str) -> str:
  """Return what a table calls a number: val/countdown/mean@16 is countdown mean@16."""
  return name.removeprefix('val/').replace('/', ' ') if is_score(name) else name


def order(name: str) -> tuple:
  """Return where a number stands: sets by name, means first, then the training's."""
  if not is_score(name):
    return (1, '', TRAINING.index(name), 0)
  part, kind, count = re.fullmatch(r'val/(.+)/(\w+)@(\w+)', name).groups()
  return (0, part, KINDS.index(kind), math.inf if count == 'n' else int(count))


def _is_run(path: pathlib.Path) -> bool:
  return (path / metrics.FILE).exists() or (path / 'summary.json').exists()


def _read_object(path: pathlib.Path) -> dict:
  try:
    value = json.loads(path.read_text(encoding='utf-8'))
  except ValueError as error:
    raise ValueError(f'{path} is not JSON: {error}') from error
  if not isinstance(value, dict):
    raise ValueError(f'{path} holds a {type(value).__name__}, expected an object')
  return value


def _flat(tree: dict, separator: str = '.', prefix: str = '') -> dict:
  flat = {}
  for name, value in tree.items():
    if isinstance(value, dict):
      flat |= _flat(value, separator, f'{prefix}{name}{separator}')
    else:
      flat[prefix + name] = value
  return flat
