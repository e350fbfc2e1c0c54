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
import statistics
import sys

from lpo_jax import contrast, curves, finished, metrics

# Fields that name a run or its machine and do not change what is learned.
NOT_COMPARED = ('seed', 'workdir', 'mode', 'export_dir', 'override_workdir')


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


Groups = dict[str, list[finished.Run]]  # name -> runs, a seed each
Table = dict[str, dict[str, Cell]]  # group -> number -> values


def group(runs: list[finished.Run]) -> Groups:
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


def table(groups: Groups) -> Table:
  """Return group -> number -> Cell, every group with the same numbers in order."""
  finals = {name: list(map(finished.final, runs)) for name, runs in groups.items()}
  columns = sorted({c for rows in finals.values() for row in rows for c in row},
                   key=finished.order)
  return {
    name: {c: Cell(tuple(row[c] for row in rows if c in row)) for c in columns}
    for name, rows in finals.items()
  }


def markdown(groups: Groups, cells: Table) -> str:
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
    f'evaluation; the others: mean over the last {finished.TAIL:.0%} of iterations.',
  ]
  lines += [f'- {note}' for note in warnings(groups)]
  return '\n'.join(lines) + '\n'


def table_csv(groups: Groups, cells: Table) -> str:
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


def warnings(groups: Groups) -> list[str]:
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
  return _write(group([finished.load(path) for path in finished.find(paths)]), (), out)


def write_study(folders: dict[str, list[pathlib.Path]], pairs, out: str) -> str:
  """Write the report on runs that are grouped and paired already.

  Args:
    folders: group -> its runs, a seed each.
    pairs: (first, second), groups to be compared seed by seed.
    out: folder to write.

  Returns:
    The Markdown tables.
  """
  groups = {name: [finished.load(path) for path in paths]
            for name, paths in folders.items()}
  return _write(groups, pairs, out)


def differences(groups: Groups, pairs) -> list[contrast.Difference]:
  """Return each pair's differences in pass@1 and in pass@k of the largest k.

  The mean over the samples is pass@1; sets are those that all runs have.
  """
  found = {name: {run.config.get('seed'): finished.final(run) for run in runs}
           for name, runs in groups.items()}
  shared = set.intersection(*(set(numbers) for seeds in found.values()
                              for numbers in seeds.values()))
  largest = {}
  for number in sorted(filter(finished.is_score, shared), key=finished.order):
    _, part, kind, _ = finished.order(number)
    if kind != finished.KINDS.index('maj'):
      largest[part, kind] = number
  return [contrast.difference(*pair, number, found)
          for pair in pairs for number in largest.values()]


def _write(groups: Groups, pairs, out: str) -> str:
  cells = table(groups)
  metrics.check_writable(out)
  folder = pathlib.Path(out)
  text = markdown(groups, cells)
  if pairs:
    text += '\n' + contrast.markdown(differences(groups, pairs))
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


def _text(value) -> str:
  return value if isinstance(value, str) else json.dumps(value)


def _shown(cell: Cell) -> str:
  if not cell.values:
    return ''
  if math.isnan(cell.deviation):
    return f'{cell.mean:.3f}'
  return f'{cell.mean:.3f} ± {cell.deviation:.3f}'


if __name__ == '__main__':
  sys.exit(main())
