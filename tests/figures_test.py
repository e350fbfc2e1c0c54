"""Drawn figures are right, repeatable, and say nothing outside the picture."""

import io
import random

import numpy as np
import pytest
from PIL import Image

from lpo_jax import tasks
from lpo_jax.tasks import figures


@pytest.fixture(scope='module')
def task():
  return tasks.get('figures', train_size=200, test_size=50)


def pixels(encoded: bytes) -> np.ndarray:
  return np.asarray(Image.open(io.BytesIO(encoded)))


@pytest.mark.parametrize('split', ['train', 'test'])
def test_demonstrations_are_right_and_other_answers_are_not(split, task):
  for problem in task.problems(split):
    shown = task.demonstration(problem)
    assert task.verify(problem, shown) == 1.0
    x = problem.answer['x']
    assert task.answer(problem, shown) == f'{x:x}/1'
    wrong = f'<think> </think> \\boxed{{ {x + 1} }}'
    assert task.verify(problem, wrong) == 0.0 and task.answer(problem, wrong)
    bare = f'\\boxed{{ {x} }}'
    assert task.verify(problem, bare) == 1.0 and task.answer(problem, bare) is None


def test_x_follows_from_the_numbers(task):
  kinds = set()
  for problem in task.problems('train'):
    numbers, x = problem.answer['numbers'], problem.answer['x']
    kinds.add(problem.answer['kind'])
    assert (sum(numbers) == x if problem.answer['kind'] == 'segment'
            else numbers[0] + x == 180)
  assert kinds == set(figures.KINDS)


def test_all_prompts_are_the_same_text(task):
  assert len({str(problem.prompt) for problem in task.problems('train')}) == 1


def test_figures_follow_from_seed_split_and_index(task):
  again = tasks.get('figures', train_size=3, test_size=3)
  other = tasks.get('figures', train_size=3, test_size=3, seed=1)
  for i in range(3):
    mine = task.problems('train')[i]
    assert again.problems('train')[i] == mine
    assert other.problems('train')[i].images != mine.images
    assert again.problems('test')[i].images != mine.images


def test_a_figure_shows_its_numbers():
  """The same drawing with other numbers differs, where the numbers stand."""
  for kind, one, two, rows in (('segment', (1, 2), (1, 8), slice(8, 36)),
                               ('angle', (30,), (130,), slice(0, 72))):
    a, b = (pixels(figures.draw(kind, numbers, random.Random(0))).astype(int)
            for numbers in (one, two))
    assert a.shape == (figures.HEIGHT, figures.WIDTH, 3)
    changed = np.abs(a - b).max(axis=(1, 2)) > 0
    assert changed[rows].sum() > 8 and not np.delete(changed, np.r_[rows]).any()


def test_diagnostics_say_which_kind_is_right(task):
  problem = task.problems('train')[0]
  name = f'right_{problem.answer["kind"]}'
  assert task.diagnostics(problem, '', 1.0) == {name: (1.0, 1.0)}
  assert task.diagnostics(problem, '', 0.1) == {name: (0.0, 1.0)}


def test_bad_sizes_and_splits_are_refused(task):
  with pytest.raises(ValueError, match='test_size=0'):
    tasks.get('figures', test_size=0)
  with pytest.raises(ValueError, match="unknown split 'dev'"):
    task.problems('dev')
