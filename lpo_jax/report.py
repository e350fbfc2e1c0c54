"""Compare runs by their folders alone: one table, one figure.

python -m lpo_jax.report DIR [DIR ...] --out=OUT

Runs whose configs agree in all but the seed are one group, named by the fields in
which the groups differ. A cell is the mean over a group's seeds and their sample
standard deviation: validation numbers at the last evaluation, training numbers
averaged over the last tenth of each run. Writes OUT/report.md, report.csv and
curves.png; reads config.json, metrics.jsonl and, where that is absent, summary.json.
"""

import argparse
import csv
import dataclasses
import io
import json
import math
import pathlib
import re
import statistics
import sys

from lpo_jax import curves, metrics

# Fields that name a run or its machine and do not change what is learned.
NOT_COMPARED = ('seed', 'workdir', 'mode', 'export_dir', 'override_workdir')
TRAINING = ('actor/entropy', 'actor/grad_norm', 'group/flat_frac')
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
class Cell:
  """One number of one group: a value per seed that has it."""

  values: tuple[float, ...]

  @property
  def mean(self) -> float:
    return statistics.fmean(self.values) if self.values else math.nan

  @property
  def deviation(self) -> float:
    """Sample standard deviation; NaN for fewer than two seeds."""
    return statistics.stdev(self.values) if len(self.values) > 1 else math.nan


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
  config['init_from'] = re.sub(seed, '{seed}', str(config.get('init_from', '')))
  return Run(
    path=path,
    config=config,
    rows=rows,
    summary=_flat(_read_object(summary), '/') if summary.exists() else {},
  )


def group(runs: list[Run]) -> dict[str, list[Run]]:
  """Return the runs by the config fields in which they differ, seeds together."""
  fields = sorted({field for run in runs for field in run.config})
  fields = [f for f in fields if f.split('.')[-1] not in NOT_COMPARED]
  differing = [
    field
    for field in fields
    if len({_text(run.config.get(field, 'absent')) for run in runs}) > 1
  ]
  groups = {}
  for run in runs:
    name = ', '.join(f'{f}={_text(run.config.get(f, "absent"))}' for f in differing)
    groups.setdefault(name or 'all runs', []).append(run)
  return dict(sorted(groups.items()))


def final(run: Run) -> dict[str, float]:
  """Return the numbers a run is judged by, name -> value."""
  numbers = {}
  for row in run.rows:
    numbers |= {n: v for n, v in row.items() if _is_score(n) and v is not None}
  if not run.rows:
    numbers = {n: v for n, v in run.summary.items() if _is_score(n) and _is_number(v)}
  for name in TRAINING:
    steps, values = curves.series(run.rows, name)
    tail = values[steps > run.last_step * (1 - TAIL)]
    if len(tail):
      numbers[name] = float(tail.mean())
  return numbers


def table(groups: dict[str, list[Run]]) -> dict[str, dict[str, Cell]]:
  """Return group -> number -> Cell, every group with the same numbers in order."""
  finals = {name: [final(run) for run in runs] for name, runs in groups.items()}
  columns = sorted({c for rows in finals.values() for r in rows for c in r}, key=_order)
  return {
    name: {c: Cell(tuple(row[c] for row in rows if c in row)) for c in columns}
    for name, rows in finals.items()
  }


def markdown(groups: dict[str, list[Run]], cells: dict[str, dict[str, Cell]]) -> str:
  """Return the table as Markdown, with what a reader should be wary of below it."""
  columns = list(next(iter(cells.values())))
  lines = [
    '| ' + ' | '.join(['runs', 'seeds', *columns]) + ' |',
    '| ' + ' | '.join(['---', *['---:'] * (len(columns) + 1)]) + ' |',
  ]
  for name, row in cells.items():
    shown = [name, str(len(groups[name])), *(_shown(row[c]) for c in columns)]
    lines.append('| ' + ' | '.join(text.replace('|', r'\|') for text in shown) + ' |')
  lines += [
    '',
    'Mean ± sample standard deviation over seeds. Validation numbers (`val/`): last '
    f'evaluation; the others: mean over the last {TAIL:.0%} of iterations.',
  ]
  lines += [f'- {note}' for note in warnings(groups)]
  return '\n'.join(lines) + '\n'


def table_csv(groups: dict[str, list[Run]], cells: dict[str, dict[str, Cell]]) -> str:
  """Return the table as CSV at full precision: mean, sd and seed count per number."""
  out = io.StringIO()
  writer = csv.writer(out, lineterminator='\n')
  columns = list(next(iter(cells.values())))
  parts = ('mean', 'sd', 'seeds')
  writer.writerow(
    ['runs', 'seeds', *(f'{c} {part}' for c in columns for part in parts)]
  )
  for name, row in cells.items():
    numbers = []
    for cell in (row[c] for c in columns):
      pair = [repr(x) if math.isfinite(x) else '' for x in (cell.mean, cell.deviation)]
      numbers += [*pair, len(cell.values)]
    writer.writerow([name, len(groups[name]), *numbers])
  return out.getvalue()


def warnings(groups: dict[str, list[Run]]) -> list[str]:
  """Return what makes a comparison unfair: unfinished runs, seeds counted twice."""
  notes = []
  for name, runs in groups.items():
    seeds = [run.config.get('seed') for run in runs]
    doubled = sorted({str(seed) for seed in seeds if seeds.count(seed) > 1})
    if doubled:
      notes.append(f'{name}: seed {", ".join(doubled)} appears more than once')
    for run in runs:
      planned = run.config.get('num_steps')
      if run.rows and planned is not None and run.last_step < planned:
        notes.append(f'{run.path.name}: stopped at step {run.last_step} of {planned}')
  return notes


def write(paths: list[str], out: str) -> str:
  """Write the report on the runs under `paths` into the folder `out`.

  Returns:
    The Markdown table.

  Raises:
    ValueError: a path holds no run, a file is malformed, or `out` is not writable.
  """
  groups = group([load(path) for path in find(paths)])
  cells = table(groups)
  metrics.check_writable(out)
  folder = pathlib.Path(out)
  text = markdown(groups, cells)
  rows = {name: [run.rows for run in runs] for name, runs in groups.items()}
  if curves.draw(rows, str(folder / 'curves.png')):
    (folder / 'report.md').write_text(f'{text}\n![Learning curves](curves.png)\n')
  else:
    (folder / 'report.md').write_text(text)
  (folder / 'report.csv').write_text(table_csv(groups, cells))
  return text


def main(argv: list[str] | None = None) -> int:
  """Write the report the command line asks for; return the exit status."""
  parser = argparse.ArgumentParser(prog='lpo_jax.report', description=__doc__)
  parser.add_argument(
    'runs', nargs='+', metavar='DIR', help='a run, or a folder of runs'
  )
  parser.add_argument('--out', required=True, help='folder for the table and figure')
  options = parser.parse_args(argv)
  try:
    text = write(options.runs, options.out)
  except ValueError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  print(f'{text}\nreport.md, report.csv and curves.png are in {options.out}')
  return 0


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


def _text(value) -> str:
  return value if isinstance(value, str) else json.dumps(value)


def _is_number(value) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)


def _is_score(name: str) -> bool:
  return re.fullmatch(r'val/.+/(mean|pass|maj)@(\d+|n)', name) is not None


def _order(name: str) -> tuple:
  if not _is_score(name):
    return (1, '', TRAINING.index(name), 0)
  part, kind, count = re.fullmatch(r'val/(.+)/(\w+)@(\w+)', name).groups()
  return (0, part, ('mean', 'pass', 'maj').index(kind),
          math.inf if count == 'n' else int(count))


def _shown(cell: Cell) -> str:
  if not cell.values:
    return ''
  if math.isnan(cell.deviation):
    return f'{cell.mean:.3f}'
  return f'{cell.mean:.3f} ± {cell.deviation:.3f}'


if __name__ == '__main__':
  sys.exit(main())
