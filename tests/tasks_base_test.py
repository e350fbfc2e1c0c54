"""The task table and the order in which problems are visited."""

import numpy as np
import pytest

from lpo_jax import tasks
from lpo_jax.tasks import base


@pytest.mark.parametrize('size,count', [(10, 3), (7, 7), (5, 12), (1, 4), (64, 16)])
def test_every_problem_is_visited_once_per_epoch(size, count):
  steps = size * 3  # size * 3 * count positions: whole epochs
  visited = np.concatenate(
    [base.problem_indices(size, 0, step, count) for step in range(steps)])
  for epoch in visited.reshape(-1, size):
    assert sorted(epoch) == list(range(size))


def test_problem_indices_are_a_pure_function_of_seed_and_step():
  later = base.problem_indices(100, 3, 41, 16)
  base.problem_indices(100, 3, 7, 16)
  np.testing.assert_array_equal(later, base.problem_indices(100, 3, 41, 16))
  base._permutation.cache_clear()
  np.testing.assert_array_equal(later, base.problem_indices(100, 3, 41, 16))


def test_steps_cross_an_epoch_boundary_in_the_permutations_order():
  sequence = np.concatenate(
    [np.random.default_rng([9, epoch]).permutation(5) for epoch in range(3)])
  for step in range(5):
    np.testing.assert_array_equal(
      base.problem_indices(5, 9, step, 3), sequence[3 * step:3 * step + 3])


def test_epochs_and_seeds_have_their_own_order():
  first, second = (base.problem_indices(50, 0, step, 50) for step in range(2))
  other = base.problem_indices(50, 1, 0, 50)
  assert not np.array_equal(first, second)
  assert not np.array_equal(first, other)


@pytest.mark.parametrize('arguments', [
  (0, 0, 0, 1), (5, -1, 0, 1), (5, 0, -1, 1), (5, 0, 0, 0)])
def test_impossible_problem_indices_are_refused(arguments):
  with pytest.raises(ValueError, match='size='):
    base.problem_indices(*arguments)


def test_a_misspelt_task_is_refused_with_the_nearest_name():
  with pytest.raises(ValueError, match="did you mean 'countdown'"):
    tasks.get('coutdown')


def test_a_misspelt_option_is_refused_with_the_nearest_name():
  with pytest.raises(ValueError, match="no option 'max_nmber'.*'max_number'"):
    tasks.get('countdown', max_nmber=9)


def test_a_task_module_is_reached_through_the_package():
  assert tasks.countdown.verify([1, 2], 3, '<answer>1+2</answer>') == 1.0
  with pytest.raises(AttributeError, match='nosuch'):
    tasks.nosuch  # noqa: B018


def test_a_task_without_demonstrations_says_so():
  class Silent(base.Task):
    name = 'silent'

  with pytest.raises(NotImplementedError, match="'silent' has no demonstrations"):
    Silent().demonstration(None)
  assert Silent().diagnostics(None, '', 1.0) == {}
