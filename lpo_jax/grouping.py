"""Runs that differ in the seed alone are one group; what groups are compared by.

Groups are named by the config fields in which they differ, or by their folder where
it is NAME/seed_N, as a study's are. Whatever makes a comparison unfair is noted here.
"""

import json
from collections.abc import Sequence

from lpo_jax import contrast, curves, finished

# Fields that name a run or its machine and do not change what is learned.
NOT_COMPARED = ('seed', 'workdir', 'mode', 'export_dir', 'override_workdir')

Groups = dict[str, list[finished.Run]]  # name -> runs, a seed each
Table = dict[str, dict[str, contrast.Cell]]  # group -> number -> values
Pairs = Sequence[contrast.Pair]
Paths = dict[str, dict[int, finished.Path]]  # group -> seed -> path


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
  folders = [_folder(runs) for runs in groups.values()]
  if None not in folders and len(set(folders)) == len(folders):
    groups = dict(zip(folders, groups.values(), strict=True))
  return dict(sorted(groups.items()))


def _folder(runs: list[finished.Run]) -> str | None:
  """Return NAME where all runs of a group lie in NAME/seed_N, as a study's do."""
  named = all(run.path.name == f'seed_{run.config.get("seed")}' for run in runs)
  parents = {run.path.parent for run in runs}
  return parents.pop().name if named and len(parents) == 1 else None


def measured(groups: Groups) -> tuple[Groups, list[str]]:
  """Return the runs that have numbers to be judged by, and which have none yet.

  Raises:
    ValueError: none has.
  """
  found = {name: [run for run in runs if finished.final(run)]
           for name, runs in groups.items()}
  notes = [f'{name}, {run.path.name}: has no numbers yet, left out'
           for name, runs in groups.items() for run in runs if run not in found[name]]
  if not any(found.values()):
    raise ValueError('no run has numbers yet: ' + '; '.join(notes))
  return {name: runs for name, runs in found.items() if runs}, notes


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
        notes.append(f'{name}, {run.path.name}: stopped at step {run.last_step} of '
                     f'{planned}')
  return notes


def table(groups: Groups) -> Table:
  """Return group -> number -> Cell, every group with the same numbers in order."""
  finals = {name: list(map(finished.final, runs)) for name, runs in groups.items()}
  columns = sorted({c for rows in finals.values() for row in rows for c in row},
                   key=finished.order)
  return {
    name: {c: contrast.Cell(tuple(row[c] for row in rows if c in row))
           for c in columns}
    for name, rows in finals.items()
  }


def headline(groups: Groups) -> list[str]:
  """Return the scores to judge by: each set's mean@n and pass@k of the largest n and k.

  The mean over the samples is pass@1. Scores are those that all runs have.
  """
  found = [set(finished.final(run)) for runs in groups.values() for run in runs]
  largest = {}
  for number in sorted(filter(finished.is_score, set.intersection(*found)),
                       key=finished.order):
    _, part, kind, _ = finished.order(number)
    if kind != finished.KINDS.index('maj'):
      largest[part, kind] = number
  return list(largest.values())


def differences(groups: Groups, pairs: Pairs) -> list[contrast.Difference]:
  """Return each pair's differences in the headline scores."""
  found = {name: {run.config.get('seed'): {finished.label(number): value for number,
                                           value in finished.final(run).items()}
                  for run in runs} for name, runs in groups.items()}
  return [contrast.difference(*pair, finished.label(number), found)
          for pair in pairs for number in headline(groups)]


def families(groups: Groups, pairs: Pairs) -> dict[contrast.Pair, str]:
  """Return pair -> whose wins are summed: the first's objective, if the second's is
  another, or else the first itself."""
  def objective(name: str) -> str:
    return str(groups[name][0].config.get('objective.name'))

  return {(one, two): objective(one) if objective(one) != objective(two) else one
          for one, two in pairs}


def paths(groups: Groups) -> dict[str, tuple[Paths, tuple[str, str]]]:
  """Return set -> the runs' paths through it, and the names of its pass@1 and pass@k.

  A set is there if every run has evaluated it.
  """
  rows = [row for runs in groups.values() for run in runs for row in run.rows]
  found = {}
  for part, kinds in curves.followed(rows).items():
    if len(kinds) == 2:
      names = (kinds['mean'], kinds['pass'])
      of_set = {name: {run.config.get('seed'): finished.path(run, *names)
                       for run in runs} for name, runs in groups.items()}
      if all(len(path.pass_1) for seeds in of_set.values() for path in seeds.values()):
        found[part] = of_set, tuple(map(finished.label, names))
  return found


def _text(value) -> str:
  return value if isinstance(value, str) else json.dumps(value)
