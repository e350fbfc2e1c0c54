"""What every task offers, and which problems a step trains on.

A task lives on the host: it hands out `Problem`s, judges response texts, and knows
nothing of models, tokens or devices. Step i's problems are a pure function of
(seed, i), so a resumed run needs no iterator state beyond the step.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from lpo_jax.types import Problem


@dataclasses.dataclass(frozen=True)
class EvalSet:
  """Held-out problems, and how they are asked where a set has its own way."""

  problems: Sequence[Problem]
  samples: int | None = None  # n of mean@n; None: the run's eval.samples
  temperature: float | None = None  # None: the run's eval.temperature


class Task(Protocol):
  """Problems and their verifier; classes may inherit the optional methods."""

  name: str

  def problems(self, split: str) -> Sequence[Problem]:
    """Return the problems of 'train' or 'test'.

    Raises:
      ValueError: any other split.
    """
    ...

  def eval_sets(self) -> dict[str, EvalSet]:
    """Return the held-out sets by name; one, called like the task, unless it says."""
    return {self.name: EvalSet(self.problems('test'))}

  def verify(self, problem: Problem, response_text: str) -> float:
    """Return the reward in [0, 1]; never raises on a response's content."""
    ...

  def answer(self, problem: Problem, response_text: str) -> str | None:
    """Return the key under which equal answers vote together; None without answer."""
    ...

  def demonstration(self, problem: Problem) -> str:
    """Return a response that earns reward 1, for the warm start.

    Raises:
      NotImplementedError: the task has none.
    """
    raise NotImplementedError(
      f'task {self.name!r} has no demonstrations: start from a pretrained policy, '
      'without warm start')

  def diagnostics(
      self, problem: Problem, response_text: str, reward: float,
  ) -> dict[str, tuple[float, float]]:
    """Return (total, count) per metric for one graded response; they add up."""
    return {}


def problem_indices(size: int, seed: int, step: int, count: int) -> np.ndarray:
  """Return the problems of one step, each problem exactly once per epoch.

  Steps are consecutive slices of one endless sequence: the permutation of epoch 0,
  then of epoch 1, and so on. Example, size 5, count 3: step 1 takes the last two
  of epoch 0 and the first of epoch 1.

  Args:
    size: number of problems.
    seed: non-negative; together with `step` it decides everything.
    step: from 0.
    count: problems per step; may exceed `size`.

  Returns:
    i64[count] indices in [0, size).

  Raises:
    ValueError: size or count below 1, seed or step below 0.
  """
  if size < 1 or count < 1 or seed < 0 or step < 0:
    raise ValueError(
      f'need size >= 1, count >= 1, seed >= 0, step >= 0; got size={size}, '
      f'count={count}, seed={seed}, step={step}')
  positions = np.arange(step * count, (step + 1) * count)
  epochs = positions // size
  parts = [
    _permutation(size, seed, int(epoch))[positions[epochs == epoch] % size]
    for epoch in np.unique(epochs)
  ]
  return np.concatenate(parts)


@functools.lru_cache(maxsize=4)
def _permutation(size: int, seed: int, epoch: int) -> np.ndarray:
  return np.random.default_rng([seed, epoch]).permutation(size)
