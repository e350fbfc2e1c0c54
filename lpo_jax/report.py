"""Compare runs by their folders alone: tables, learning curves, who leads at what cost.

python -m lpo_jax.report DIR [DIR ...] --out=OUT [--against=NAME]

Runs whose configs agree in all but the seed are one group, named by the fields in
which the groups differ, or by their folder where it is NAME/seed_N. Differences are
taken seed by seed, of every group to NAME, or between all where there are few. Writes
OUT/report.md, report.html (whole in itself), report.csv, and curves and frontier as
PNG and SVG; reads config.json, metrics.jsonl and, where that is absent, summary.json.
"""

import argparse
import csv
import dataclasses
import io
import itertools
import math
import pathlib
import sys
from collections.abc import Mapping, Sequence

from lpo_jax import (
  contrast,
  curves,
  finished,
  frontier,
  grouping,
  matched,
  metrics,
  page,
)
from lpo_jax.grouping import Groups, Pairs, Table

FEW_GROUPS = 3  # up to which all are paired without being told
ROUGH = 10  # seeds, below which an interval is said to be rough
_BOUNDS = f' [{contrast.LEVEL:.0%} bootstrap interval of the mean]'
NO_WAY = ('There are too few evaluations: no run has two, so that there is no way from '
          'start to end to compare along. Set eval.every below num_steps.')


def final_section(groups: Groups, cells: Table, columns: Sequence[str], title: str,
                  bounds: bool) -> page.Section:
  """Return a table of final numbers, and what a reader should be wary of below it.

  Args:
    groups: the runs.
    cells: their `table`.
    columns: the numbers shown.
    title: of the section.
    bounds: whether to give intervals.
  """
  rows = tuple(
    (name, str(len(groups[name])),
     *(row[column].shown(len(groups[name]), bounds) for column in columns))
    for name, row in cells.items())
  notes = [
    f'Mean ± sample standard deviation over seeds{_BOUNDS if bounds else ""}. '
    'Validation scores (mean@, the pass@1; pass@, maj@): last evaluation; the others: '
    f'mean over the last {finished.TAIL:.0%} of iterations.']
  least = min(len(runs) for runs in groups.values())
  if bounds and least < 2:
    notes.append('A group of a single seed has no deviation and no interval: no claim '
                 'can rest on it.')
  elif bounds and least < ROUGH:
    notes.append(f'With {least} seeds an interval is rough: resampling sees few values '
                 'and makes it too narrow. Look at the signs, too.')
  head = ('runs', 'seeds', *map(finished.label, columns))
  return page.Section(title, head, rows, tuple(notes))


def table_csv(groups: Groups, cells: Table) -> str:
  """Return the table as CSV at full precision: mean, sd, interval, seeds each."""
  out = io.StringIO()
  writer = csv.writer(out, lineterminator='\n')
  columns = list(next(iter(cells.values())))
  parts = ('mean', 'sd', 'low', 'high', 'seeds')
  writer.writerow(
    ['runs', 'seeds', *(f'{c} {part}' for c in columns for part in parts)]
  )
  for name, row in cells.items():
    numbers = []
    for cell in (row[c] for c in columns):
      found = [cell.mean, cell.deviation, *contrast.interval(cell.values)]
      numbers += [*(repr(x) if math.isfinite(x) else '' for x in found),
                  len(cell.values)]
    writer.writerow([name, len(groups[name]), *numbers])
  return out.getvalue()


def sections(groups: Groups, pairs: Pairs,
             notes: Sequence[str] = ()) -> list[page.Section]:
  """Return the report on groups of runs, pairs of them compared seed by seed.

  Args:
    groups: runs that have numbers.
    pairs: (first, second), groups.
    notes: what a reader should know beforehand.
  """
  cells, scores = grouping.table(groups), grouping.headline(groups)
  trained = [name for name in next(iter(cells.values())) if not finished.is_score(name)]
  found = [final_section(groups, cells, [*scores, *trained], 'Final numbers', True)]
  if notes := (*notes, *grouping.warnings(groups)):
    found.append(page.Section('To be wary of', notes=notes))
  named = grouping.families(groups, pairs)
  if pairs and scores:
    found.append(contrast.section('Differences, seed by seed',
                                  grouping.differences(groups, pairs), named))
  if curves.panels([row for runs in groups.values() for run in runs
                    for row in run.rows]):
    found.append(page.Section('Learning curves', notes=(
      'Mean over seeds, band: one standard deviation.',), figure='curves'))
  for index, (of_set, names) in enumerate(grouping.paths(groups).values()):
    found.append(frontier.section(of_set, names, '' if index else 'frontier'))
    found += _matched(of_set, pairs, named, names)
  return [*found, final_section(groups, cells, list(next(iter(cells.values()))),
                                'Every number', False)]


def _matched(of_set: matched.Paths, pairs: Pairs, named: Mapping[contrast.Pair, str],
             names: tuple[str, str]) -> list[page.Section]:
  """Return one set's scores at equal pass@1 and at equal budgets."""
  long = {group: {seed: path for seed, path in seeds.items() if len(path.pass_1) > 1}
          for group, seeds in of_set.items()}
  short = [f'{group}, seed {seed}: one evaluation alone, left out.'
           for group, seeds in of_set.items() for seed in seeds
           if seed not in long[group]]
  long = {group: seeds for group, seeds in long.items() if seeds}
  if not long:
    return [page.Section(f'{names[1]} at equal {names[0]} and at equal budgets',
                         notes=(NO_WAY,))]
  pairs = [pair for pair in pairs if set(pair) <= long.keys()]
  found = [matched.pass_1_section(long, pairs, named, names)] if pairs else []
  found += matched.budget_sections(long, pairs, named, names)
  return [dataclasses.replace(section, notes=(*section.notes, *short))
          for section in found]


def write(folders: Sequence[str], out: str, against: str = '') -> str:
  """Write the report on the runs under `folders` into the folder `out`.

  Args:
    folders: of runs.
    out: folder to write.
    against: the group to which all others are compared; '' for all pairs of a few.

  Returns:
    Its first tables, as Markdown.

  Raises:
    ValueError: a path holds no run, a file is malformed, `out` is not writable, or no
      group is called `against`.
  """
  groups = grouping.group([finished.load(path) for path in finished.find(folders)])
  if against:
    if against not in groups:
      raise ValueError(f'--against={against}: the groups are {", ".join(groups)}')
    pairs = [(name, against) for name in groups if name != against]
  else:
    pairs = list(itertools.combinations(groups, 2)) * (len(groups) <= FEW_GROUPS)
  return _write(groups, pairs, out)


def write_study(folders: Mapping[str, Sequence[pathlib.Path]], pairs: Pairs,
                out: str) -> str:
  """Write the report on runs that are grouped and paired already.

  Args:
    folders: group -> its runs, a seed each.
    pairs: (first, second), groups to be compared seed by seed.
    out: folder to write.

  Returns:
    Its first tables, as Markdown.
  """
  groups = {name: [finished.load(path) for path in paths]
            for name, paths in folders.items()}
  return _write(groups, pairs, out)


def _write(groups: Groups, pairs: Pairs, out: str) -> str:
  metrics.check_writable(out)
  groups, notes = grouping.measured(groups)
  pairs = [pair for pair in pairs if set(pair) <= groups.keys()]
  folder, found = pathlib.Path(out), sections(groups, pairs, notes)
  figures = {section.figure for section in found if section.figure}
  for name in figures:
    images = [str(folder / f'{name}.{kind}') for kind in ('png', 'svg')]
    if name == 'curves':
      curves.draw({name: [run.rows for run in runs] for name, runs in groups.items()},
                  *images)
    else:
      frontier.draw(grouping.paths(groups), *images)
  inside = {name: (folder / f'{name}.svg').read_bytes() for name in figures}
  (folder / 'report.md').write_text(page.markdown(found))
  (folder / 'report.html').write_text(page.page('Report', found, inside))
  (folder / 'report.csv').write_text(table_csv(groups, grouping.table(groups)))
  first = [section for section in found[:3] if section.rows or section.notes]
  return page.markdown([section for section in first if not section.figure], False)


def main(argv: list[str] | None = None) -> int:
  """Write the report the command line asks for; return the exit status."""
  parser = argparse.ArgumentParser(prog='lpo_jax.report', description=__doc__,
                                   formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument(
    'runs', nargs='+', metavar='DIR', help='a run, or a folder of runs'
  )
  parser.add_argument('--out', required=True, help='folder for the report')
  parser.add_argument('--against', default='', metavar='NAME',
                      help='the group to which the others are compared')
  options = parser.parse_args(argv)
  try:
    text = write(options.runs, options.out, options.against)
  except ValueError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  print(f'{text}\nreport.html, report.md, report.csv and figures are in {options.out}')
  return 0


if __name__ == '__main__':
  sys.exit(main())
