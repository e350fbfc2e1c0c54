"""Scores at equal pass@1 and equal budgets, against loops over straight lines."""

import math

import numpy as np
import pytest

from lpo_jax import finished, matched


def path(pass_1, pass_k, tokens=None, seconds=None):
  steps = 10.0 * np.arange(len(pass_1))
  return finished.Path(
    {'iterations': steps, 'tokens': 1e6 * (steps if tokens is None else tokens),
     'seconds': 2 * steps if seconds is None else np.array(seconds)},
    np.array(pass_1, float), np.array(pass_k, float))


def _on_a_fine_line(path, level):
  """Walk along the path in small steps until pass@1 reaches the level."""
  for at in np.linspace(0, len(path.pass_1) - 1, 20_001):
    low = min(int(at), len(path.pass_1) - 2)
    share = at - low
    first = (1 - share) * path.pass_1[low] + share * path.pass_1[low + 1]
    if first >= level:
      return (1 - share) * path.pass_k[low] + share * path.pass_k[low + 1]
  return math.nan


def test_pass_k_is_taken_where_a_run_first_climbs_to_the_level():
  rng = np.random.default_rng(3)
  for _ in range(3):
    run = path(0.2 + np.concatenate([[0], rng.random(5)]), rng.random(6))
    for level in (0.3, 0.55, 0.8):
      expected = _on_a_fine_line(run, level)
      assert matched.at_pass_1(run, level) == pytest.approx(
        expected, abs=1e-3, nan_ok=True)


def test_a_level_never_reached_or_held_from_the_start_has_no_pass_k():
  run = path([0.2, 0.6, 0.4], [0.9, 0.7, 0.8])
  assert math.isnan(matched.at_pass_1(run, 0.61))
  assert math.isnan(matched.at_pass_1(run, 0.2))
  assert matched.at_pass_1(run, 0.6) == pytest.approx(0.7)  # where it gets first
  assert matched.at_pass_1(run, 0.5) == pytest.approx(0.9 - 0.75 * 0.2)


def test_scores_at_a_budget_lie_on_the_line_between_evaluations():
  run = path([0.2, 0.4, 0.5], [0.9, 0.8, 0.6], seconds=[0, 10, 40])
  assert matched.at_budget(run, 'seconds', 25) == pytest.approx((0.45, 0.7))
  assert matched.at_budget(run, 'iterations', 20) == pytest.approx((0.5, 0.6))
  assert all(map(math.isnan, matched.at_budget(run, 'seconds', 41)))


def test_round_levels_lie_above_every_start_and_below_a_shared_peak():
  pairs = [(path([0.21, 0.62], [1, 1]), path([0.24, 0.55], [1, 1]))]
  assert matched.round_levels(pairs) == [0.3, 0.4, 0.5]
  assert matched.shared_level(pairs) == 0.55
  narrow = [(path([0.21, 0.262], [1, 1]), path([0.21, 0.3], [1, 1]))]
  assert matched.round_levels(narrow) == [0.22, 0.24, 0.26]
  flat = [(path([0.3, 0.1], [1, 1]), path([0.3, 0.2], [1, 1]))]
  assert matched.round_levels(flat) == []


PATHS = {
  'fwd': {0: path([0.2, 0.6], [0.9, 0.8]), 1: path([0.2, 0.5], [0.9, 0.8]),
          2: path([0.2, 0.4], [0.9, 0.8])},
  'grpo': {0: path([0.2, 0.6], [0.9, 0.6]), 1: path([0.2, 0.6], [0.9, 0.6])},
}
PAIRS = [('fwd', 'grpo')]
FAMILIES = {('fwd', 'grpo'): 'lpo_fwd'}
NAMES = ('mean@4', 'pass@4')


def test_the_table_at_equal_pass_1_compares_the_seeds_of_both_that_get_there():
  section = matched.pass_1_section(PATHS, PAIRS, FAMILIES, NAMES)
  rows = {row[1]: row for row in section.rows}
  assert list(rows) == ['0.300', '0.400', '0.500 *', '0.600', '*']
  # fwd loses 0.1 in pass@k over 0.4 and 0.3 of pass@1, grpo 0.3 over 0.4.
  fwd, grpo = [0.9 - 0.1 * 0.3 / 0.4, 0.9 - 0.1], [0.9 - 0.3 * 0.3 / 0.4] * 2
  name, _, seeds, first, second, difference = rows['0.500 *']
  assert name == 'fwd - grpo' and seeds == '2 of 2'
  assert first == f'{np.mean(fwd):.3f} ± {np.std(fwd, ddof=1):.3f}'
  assert second == f'{np.mean(grpo):.3f} ± 0.000'
  gaps = np.subtract(fwd, grpo)
  assert difference == (f'{gaps.mean():+.3f} [{gaps.min():+.3f}, {gaps.max():+.3f}], '
                        '2 of 2')
  assert rows['0.600'][2:] == ('1 of 2', '0.800', '0.600', '+0.200, 1 of 1')
  assert rows['*'][0] == 'wins: lpo_fwd' and rows['*'][-1] == '2 of 2 (1 of 1)'


def test_too_few_evaluations_are_said_and_enough_are_not():
  section = matched.pass_1_section(PATHS, PAIRS, FAMILIES, NAMES)
  assert 'only 2 evaluations' in section.notes[-1]
  many = {name: {0: path(np.linspace(0.2, 0.6, 6), np.linspace(0.9, 0.8, 6))}
          for name in PATHS}
  section = matched.pass_1_section(many, PAIRS, FAMILIES, NAMES)
  assert not any('evaluations: what lies' in note for note in section.notes)


def test_runs_that_do_not_climb_are_not_compared():
  falling = {name: {0: path([0.6, 0.5], [0.9, 0.8])} for name in PATHS}
  section = matched.pass_1_section(falling, PAIRS, FAMILIES, NAMES)
  assert not section.rows and 'nothing to compare' in section.notes[0]


def test_budgets_are_what_every_run_has_reached():
  paths = {'a': {0: path([0.2, 0.4, 0.6], [0.9, 0.8, 0.7], seconds=[0, 10, 20])},
           'b': {0: path([0.2, 0.6], [0.9, 0.5], tokens=np.array([0, 40.0]))}}
  assert matched.budgets(p for seeds in paths.values() for p in seeds.values()) == {
    'iterations': 10, 'tokens': 20e6, 'seconds': 20}
  means, differences = matched.budget_sections(
    paths, [('a', 'b')], {('a', 'b'): 'a'}, NAMES)
  assert means.head == (
    'runs', 'mean@4, 10 iterations', 'pass@4, 10 iterations', 'mean@4, 20 M tokens',
    'pass@4, 20 M tokens', 'mean@4, 20 s', 'pass@4, 20 s')
  assert means.rows == (
    ('a', '0.400', '0.800', '0.600', '0.700', '0.600', '0.700'),
    ('b', '0.600', '0.500', '0.400', '0.700', '0.600', '0.500'))
  assert differences.rows[0] == (
    'a - b', '-0.200, 0 of 1', '+0.300, 1 of 1', '+0.200, 1 of 1', '+0.000, 0 of 1',
    '+0.000, 0 of 1', '+0.200, 1 of 1')
