"""Is one run better than another? Numbers over seeds, and differences seed by seed.

Runs of one seed share problems and keys, so their difference is less noisy than either
number. Intervals are percentiles of the bootstrap over seeds (Efron 1979): with three
seeds they can take ten values and are narrower than they should be; signs are counted
beside them, over pairs and seeds as arXiv:2605.06139 counts its settings.
"""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence

import numpy as np

from lpo_jax import page

DRAWS, LEVEL = 10_000, 0.95
Found = Mapping[str, Mapping[int, Mapping[str, float]]]  # group -> seed -> number
Pair = tuple[str, str]


def interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float]:
  """Return the bootstrap interval of a mean; NaN for fewer than two values.

  Args:
    values: one per seed.
    level: share of the resampled means that it holds.
  """
  if len(values) < 2:
    return math.nan, math.nan
  rng = np.random.default_rng(0)
  drawn = rng.choice(np.asarray(values, float), (DRAWS, len(values))).mean(axis=1)
  low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
  return float(low), float(high)


@dataclasses.dataclass(frozen=True)
class Cell:
  """One number of one group: a value per seed that has it."""

  values: tuple[float, ...]

  @property
  def mean(self) -> float:
    """Return the mean over seeds; NaN without one."""
    return statistics.fmean(self.values) if self.values else math.nan

  @property
  def deviation(self) -> float:
    """Return the sample standard deviation; NaN for fewer than two seeds."""
    return statistics.stdev(self.values) if len(self.values) > 1 else math.nan

  def shown(self, seeds: int, bounds: bool = False) -> str:
    """Return mean ± deviation, and the interval if asked for.

    Args:
      seeds: of the group; where fewer have the number, theirs are counted in brackets.
      bounds: whether to add the interval.
    """
    if not self.values:
      return ''
    text = f'{self.mean:.3f}'
    if len(self.values) > 1:
      text += f' ± {self.deviation:.3f}'
      if bounds:
        text += ' [{:.3f}, {:.3f}]'.format(*interval(self.values))
    return text if len(self.values) == seeds else f'{text} ({len(self.values)})'


@dataclasses.dataclass(frozen=True)
class Difference:
  """How much more one group has of a number than another, on the seeds of both."""

  first: str
  second: str
  number: str
  values: tuple[float, ...]  # first - second, a seed each

  @property
  def mean(self) -> float:
    """Return the mean difference; NaN without a common seed."""
    return float(np.mean(self.values)) if self.values else math.nan

  @property
  def wins(self) -> int:
    """Return on how many seeds the first is strictly ahead."""
    return sum(value > 0 for value in self.values)

  def shown(self) -> str:
    """Return the mean, its interval and the wins; nothing without a common seed."""
    if not self.values:
      return ''
    text = f'{self.mean:+.3f}'
    if len(self.values) > 1:
      text += ' [{:+.3f}, {:+.3f}]'.format(*interval(self.values))
    return f'{text}, {self.wins} of {len(self.values)}'


def difference(first: str, second: str, number: str, found: Found) -> Difference:
  """Return the paired difference of two groups in one number.

  Args:
    first: a group's name.
    second: another's.
    number: its name.
    found: group -> seed -> number -> value.
  """
  common = sorted(found[first].keys() & found[second].keys())
  return Difference(first, second, number, tuple(
    found[first][seed][number] - found[second][seed][number] for seed in common
    if number in found[first][seed] and number in found[second][seed]))


def section(title: str, differences: Sequence[Difference],
            families: Mapping[Pair, str]) -> page.Section:
  """Return a table, a pair a row and a number a column, and the wins below.

  Args:
    title: of the section.
    differences: every pair with the same numbers.
    families: pair -> by what name its wins are summed with those of others.
  """
  numbers = list(dict.fromkeys(item.number for item in differences))
  pairs = list(dict.fromkeys((item.first, item.second) for item in differences))
  found = {(item.first, item.second, item.number): item for item in differences}
  rows = [(f'{pair[0]} - {pair[1]}',
           *(found[(*pair, number)].shown() for number in numbers)) for pair in pairs]
  counted = [wins([item for item in differences if item.number == number], families)
             for number in numbers]
  names = dict.fromkeys(name for column in counted for name in column)
  rows += [(name, *(column.get(name, '') for column in counted)) for name in names]
  return page.Section(title, ('first - second', *numbers), tuple(rows), (
    f'Mean difference over seeds, {LEVEL:.0%} bootstrap interval, seeds on which the '
    'first is ahead.', WINS))


WINS = ('Wins of the first, over pairs and seeds; in brackets over pairs, by their '
        'means over seeds. A tie is no win.')


def wins(differences: Sequence[Difference],
         families: Mapping[Pair, str]) -> dict[str, str]:
  """Return how often the first of a pair is ahead in one number, by family and in all.
  """
  named = {}
  for item in filter(lambda item: item.values, differences):
    named.setdefault(f'wins: {families[item.first, item.second]}', []).append(item)
  if len(named) > 1:
    named['wins: all'] = [item for items in named.values() for item in items]
  return {name: _counts(items) for name, items in named.items()}


def _counts(items: Sequence[Difference]) -> str:
  seeds = sum(len(item.values) for item in items)
  return (f'{sum(item.wins for item in items)} of {seeds} '
          f'({sum(item.mean > 0 for item in items)} of {len(items)})')
