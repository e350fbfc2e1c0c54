"""Methods at equal pass@1, and at equal iterations, tokens and seconds.

Both are read off each run's path of evaluations (`finished.Path`), linearly between
neighbouring ones: at equal pass@1, pass@k where the run first climbs to that level; at
equal cost, both scores at the largest budget that every run has reached.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from lpo_jax import contrast, finished, page

Paths = Mapping[str, Mapping[int, finished.Path]]  # group -> seed -> path
FEW = 5  # evaluations, below which a straight line between two is a guess
_SPACINGS = (0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)
_UNITS = {'iterations': '{:.0f} iterations', 'tokens': '{:.3g} M tokens',
          'seconds': '{:.0f} s'}


def at_budget(path: finished.Path, kind: str, budget: float) -> tuple[float, float]:
  """Return pass@1 and pass@k once so much was spent; NaN outside the evaluations.

  Args:
    path: a run's.
    kind: of budget, a name in `path.spent`.
    budget: in its unit.
  """
  spent = path.spent[kind]
  if not len(spent) or not spent[0] <= budget <= spent[-1]:
    return math.nan, math.nan
  return (float(np.interp(budget, spent, path.pass_1)),
          float(np.interp(budget, spent, path.pass_k)))


def at_pass_1(path: finished.Path, level: float) -> float:
  """Return pass@k where a run first climbs to a level of pass@1.

  NaN where it never does, or was there from the first evaluation on.
  """
  there = path.pass_1 >= level
  if not there.any() or there[0]:
    return math.nan
  after = int(np.argmax(there))
  low, high = path.pass_1[after - 1:after + 1]
  share = (level - low) / (high - low)
  return float((1 - share) * path.pass_k[after - 1] + share * path.pass_k[after])


def round_levels(pairs: Sequence[tuple[finished.Path, finished.Path]]) -> list[float]:
  """Return round levels of pass@1, above every start, that some pair climbs to.

  Args:
    pairs: of runs, a seed each.
  """
  start = max(path.pass_1[0] for pair in pairs for path in pair)
  peak = max(min(path.pass_1.max() for path in pair) for pair in pairs)
  for spacing in _SPACINGS:
    steps = range(math.floor(start / spacing), math.ceil(peak / spacing) + 1)
    found = [round(step * spacing, 3) for step in steps]
    found = [level for level in found if start < level <= peak]
    if len(found) >= 3:
      break
  return found


def shared_level(pairs: Sequence[tuple[finished.Path, finished.Path]]) -> float:
  """Return the highest pass@1 that all runs have reached, the least of their peaks."""
  return min(float(path.pass_1.max()) for pair in pairs for path in pair)


def pass_1_section(paths: Paths, pairs: Sequence[contrast.Pair],
                   families: Mapping[contrast.Pair, str],
                   names: tuple[str, str]) -> page.Section:
  """Return pass@k at equal pass@1, a pair and level a row, and the wins over pairs.

  Args:
    paths: with two evaluations or more each.
    pairs: compared seed by seed.
    families: see `contrast.section`.
    names: what to call pass@1 and pass@k.
  """
  first, kth = names
  runs = {pair: [(paths[pair[0]][seed], paths[pair[1]][seed]) for seed in
                 sorted(paths[pair[0]].keys() & paths[pair[1]].keys())]
          for pair in pairs}
  every = [both for found in runs.values() for both in found]
  levels = round_levels(every) if every else []
  rows, at_shared = [], []
  for pair, both in runs.items():
    if not both:
      continue
    shared = shared_level(both)
    for level in sorted({*levels, shared}):
      found = [(at_pass_1(one, level), at_pass_1(two, level)) for one, two in both]
      found = [values for values in found if not any(map(math.isnan, values))]
      if not found:
        continue
      item = contrast.Difference(*pair, kth, tuple(one - two for one, two in found))
      at_shared += [item] * (level == shared)
      cells = [contrast.Cell(values).shown(len(found))
               for values in zip(*found, strict=True)]
      rows.append((f'{pair[0]} - {pair[1]}', f'{level:.3f}' + ' *' * (level == shared),
                   f'{len(found)} of {len(both)}', *cells, item.shown()))
  title = f'{kth} at equal {first}'
  if not rows:
    return page.Section(title, notes=(
      f'No two runs of a pair climb in {first}: nothing to compare.', *few(paths)))
  rows += [(name, '*', '', '', '', counts)
           for name, counts in contrast.wins(at_shared, families).items()]
  return page.Section(
    title, ('first - second', first, 'seeds', 'first', 'second', 'difference'),
    tuple(rows),
    (f'{kth} where a run first climbs to a level of {first}, linear between its '
     'evaluations; seeds: those on which both climb to it from below. Mean ± standard '
     f'deviation; difference with {contrast.LEVEL:.0%} bootstrap interval, and seeds '
     'on which the first has more.',
     f'* the highest level that both reach on every seed. {contrast.WINS}',
     *few(paths)))


def budgets(paths: Iterable[finished.Path]) -> dict[str, float]:
  """Return kind -> the largest budget that every run has an evaluation at or after."""
  paths = list(paths)
  return {kind: min(float(path.spent[kind][-1]) for path in paths)
          for kind in paths[0].spent}


def budget_sections(paths: Paths, pairs: Sequence[contrast.Pair],
                    families: Mapping[contrast.Pair, str],
                    names: tuple[str, str]) -> list[page.Section]:
  """Return the scores of all groups at equal budgets, and their differences.

  Args:
    paths: with an evaluation or more each.
    pairs: compared seed by seed.
    families: see `contrast.section`.
    names: what to call pass@1 and pass@k.
  """
  largest = budgets(path for seeds in paths.values() for path in seeds.values())
  found = {group: {seed: {} for seed in seeds} for group, seeds in paths.items()}
  for kind, budget in largest.items():
    label = _UNITS[kind].format(budget / 1e6 if kind == 'tokens' else budget)
    for group, seeds in paths.items():
      for seed, path in seeds.items():
        for name, value in zip(names, at_budget(path, kind, budget), strict=True):
          if not math.isnan(value):
            found[group][seed][f'{name}, {label}'] = value
  numbers = list(dict.fromkeys(
    name for seeds in found.values() for row in seeds.values() for name in row))
  rows = tuple(
    (group, *(contrast.Cell(tuple(row[name] for row in seeds.values() if name in row))
              .shown(len(seeds)) for name in numbers))
    for group, seeds in found.items())
  notes = (
    'The largest budgets that every run reaches, scores linear between evaluations; '
    'mean ± standard deviation over seeds. Tokens: sampled for training. Seconds: '
    'sampling, verdicts and update, without compilation, on a machine as busy as it '
    'was.', *few(paths))
  sections = [page.Section('At equal iterations, tokens and seconds',
                           ('runs', *numbers), rows, notes)]
  if pairs:
    differences = [contrast.difference(*pair, number, found)
                   for pair in pairs for number in numbers]
    sections.append(contrast.section('Differences at equal budgets', differences,
                                     families))
  return sections


def few(paths: Paths) -> list[str]:
  """Return a warning if some run has too few evaluations to interpolate between."""
  least = min(len(path.pass_1) for seeds in paths.values() for path in seeds.values())
  if least >= FEW:
    return []
  return [f'Some run has only {least} evaluations: what lies between them is a guess. '
          'Lower eval.every to look more often.']
