"""Paired differences by hand, and intervals against an exact enumeration."""

import itertools
import math

import numpy as np
import pytest

from lpo_jax import contrast

FOUND = {
  'lpo': {0: {'a': 0.5, 'b': 1.0}, 1: {'a': 0.7, 'b': 0.0}, 2: {'a': 0.6}},
  'grpo': {0: {'a': 0.4, 'b': 1.0}, 2: {'a': 0.8}, 3: {'a': 0.0}},
}


def test_only_common_seeds_with_the_number_are_compared():
  found = contrast.difference('lpo', 'grpo', 'a', FOUND)
  assert found.values == pytest.approx((0.1, -0.2)) and found.wins == 1
  assert found.mean == pytest.approx(-0.05)
  assert contrast.difference('lpo', 'grpo', 'b', FOUND).values == (0.0,)
  assert contrast.difference('lpo', 'grpo', 'b', FOUND).wins == 0


def test_the_interval_is_that_of_every_resample():
  values = [0.1, 0.4, 0.2, 0.9]
  means = np.sort([np.mean(drawn) for drawn in itertools.product(values, repeat=4)])
  low, high = contrast.interval(values)
  assert low == pytest.approx(np.quantile(means, 0.025), abs=0.02)
  assert high == pytest.approx(np.quantile(means, 0.975), abs=0.02)
  assert contrast.interval(values, 0.5)[0] > low
  assert all(map(math.isnan, contrast.interval([0.3])))


def test_cells_say_mean_deviation_interval_and_missing_seeds():
  values = (0.25, 0.5, 0.9)
  cell = contrast.Cell(values)
  assert cell.mean == pytest.approx(np.mean(values))
  assert cell.deviation == pytest.approx(np.std(values, ddof=1))
  low, high = contrast.interval(values)
  assert cell.shown(3, bounds=True) == f'0.550 ± 0.328 [{low:.3f}, {high:.3f}]'
  assert cell.shown(4) == '0.550 ± 0.328 (3)'
  assert contrast.Cell((0.5,)).shown(1, bounds=True) == '0.500'
  assert contrast.Cell(()).shown(3) == ''


def _section(*pairs, families):
  found = {'x': {s: {'p': 0.5 + 0.1 * s} for s in range(3)},
           'y': {s: {'p': 0.5} for s in range(3)},
           'z': {0: {'p': 0.9}}, 'w': {7: {'p': 0.1}}}
  return contrast.section('Differences', [contrast.difference(*pair, 'p', found)
                                          for pair in pairs], families)


def test_the_table_has_a_pair_a_row_and_wins_over_seeds_and_pairs():
  pairs = ('x', 'y'), ('y', 'z'), ('y', 'x'), ('x', 'w')
  families = dict(zip(pairs, ('fwd', 'rev', 'rev', 'fwd'), strict=True))
  section = _section(*pairs, families=families)
  assert section.head == ('first - second', 'p')
  assert section.rows == (
    ('x - y', '+0.100 [+0.000, +0.200], 2 of 3'),  # a tie on seed 0
    ('y - z', '-0.400, 0 of 1'),
    ('y - x', '-0.100 [-0.200, +0.000], 0 of 3'),
    ('x - w', ''),
    ('wins: fwd', '2 of 3 (1 of 1)'),
    ('wins: rev', '0 of 4 (0 of 2)'),
    ('wins: all', '2 of 7 (1 of 3)'))


def test_one_family_is_not_summed_twice():
  section = _section(('x', 'y'), ('y', 'z'), families={('x', 'y'): 'fwd',
                                                       ('y', 'z'): 'fwd'})
  assert [row for row in section.rows if row[0].startswith('wins')] == [
    ('wins: fwd', '2 of 4 (1 of 2)')]
