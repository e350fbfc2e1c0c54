"""A reward is a weighed sum that cannot leave [0, 1]."""

import itertools

import numpy as np
import pytest

from lpo_jax import rewards


def test_the_total_is_the_weighed_sum_and_stays_in_0_to_1():
  grid = np.array(list(itertools.product([0.0, 0.4, 1.0], repeat=3)), np.float32).T
  parts = dict(zip(rewards.PARTS, grid, strict=True))
  for weights in [(1, 0, 0), (0.9, 0.1, 0), (0.8, 0.1, 0.1), (1 / 3, 1 / 3, 1 / 3),
                  (0, 0.5, 0)]:
    found = rewards.total(parts, rewards.Weights(*weights))
    np.testing.assert_allclose(found, np.array(weights) @ grid, atol=1e-7)
    assert found.dtype == np.float32 and found.min() >= 0 and found.max() <= 1


def test_the_verdict_alone_is_unchanged():
  verdicts = np.array([[0.0, 0.1, 1.0, 1 / 3]], np.float32)
  parts = {'correct': verdicts, 'format': np.ones((1, 4), np.float32),
           'length': np.ones((1, 4), np.float32)}
  np.testing.assert_array_equal(rewards.total(parts, rewards.Weights()), verdicts)


def test_length_earns_all_up_to_a_share_and_nothing_where_responses_are_cut():
  found = rewards.length_part(np.array([0, 50, 60, 75, 99, 100]), 100, 0.5)
  np.testing.assert_allclose(found, [1, 1, 0.8, 0.5, 0.02, 0], atol=1e-6)
  np.testing.assert_allclose(rewards.length_part(np.array([0, 25, 100]), 100, 0.0),
                             [1, 0.75, 0], atol=1e-6)


@pytest.mark.parametrize(('weights', 'message'), [
  ({'format': 0.1}, r'task.reward.correct=1.0, task.reward.format=0.1.*at most 1'),
  ({'correct': -0.5}, 'correct=-0.5'), ({'correct': 0.0}, 'not all be 0'),
  ({'correct': float('nan')}, 'correct=nan'),
  ({'full_length': 1.0}, 'full_length=1.0')])
def test_weights_that_could_leave_0_to_1_are_named(weights, message):
  with pytest.raises(ValueError, match=message):
    rewards.Weights(**weights)
