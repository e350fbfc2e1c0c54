"""Is one run better than another? Differences seed by seed, with intervals.

Runs of one seed share problems and keys, so their difference is less noisy than either
number. Intervals are percentiles of the bootstrap over seeds (Efron 1979): with three
seeds they can take ten values and are narrower than they should be; signs are counted
beside them.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

DRAWS, LEVEL = 10_000, 0.95


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


def difference(first: str, second: str, number: str,
               found: Mapping[str, Mapping[int, Mapping[str, float]]]) -> Difference:
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


def markdown(differences: Sequence[Difference]) -> str:
  """Return a table, a pair a row and a number a column, and the wins below it."""
  numbers = list(dict.fromkeys(item.number for item in differences))
  pairs = list(dict.fromkeys((item.first, item.second) for item in differences))
  found = {(item.first, item.second, item.number): item for item in differences}
  lines = ['| first - second | ' + ' | '.join(numbers) + ' |',
           '|---|' + '---:|' * len(numbers)]
  for pair in pairs:
    cells = [_shown(found[(*pair, number)]) for number in numbers]
    lines.append(f'| {pair[0]} - {pair[1]} | ' + ' | '.join(cells) + ' |')
  lines += ['', f'Mean over seeds, {LEVEL:.0%} bootstrap interval, seeds on which the '
            'first is ahead.']
  for number in numbers:
    means = [found[(*pair, number)].mean for pair in pairs]
    known = [mean for mean in means if not math.isnan(mean)]
    lines.append(f'- {number}: the first of a pair wins {sum(m > 0 for m in known)} of '
                 f'{len(known)}')
  return '\n'.join(lines) + '\n'


def _shown(item: Difference) -> str:
  if not item.values:
    return ''
  low, high = interval(item.values)
  shown = f'{item.mean:+.3f}'
  if not math.isnan(low):
    shown += f' [{low:+.3f}, {high:+.3f}]'
  return f'{shown}, {item.wins} of {len(item.values)}'
