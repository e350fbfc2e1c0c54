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


def test_the_table_counts_wins_over_seeds_and_over_pairs():
  found = {'x': {s: {'p': 0.5 + 0.1 * s} for s in range(3)},
           'y': {s: {'p': 0.5} for s in range(3)},
           'z': {0: {'p': 0.9}}}
  text = contrast.markdown([contrast.difference(*pair, 'p', found)
                            for pair in (('x', 'y'), ('y', 'z'), ('y', 'x'))])
  assert '| x - y | +0.100 [+0.000, +0.200], 2 of 3 |' in text
  assert '| y - z | -0.400, 0 of 1 |' in text
  assert 'the first of a pair wins 1 of 3' in text
