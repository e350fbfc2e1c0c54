"""What every task offers, and which problems a step trains on.

A task lives on the host: it hands out `Problem`s, judges response texts, and knows
nothing of models, tokens or devices. Step i's problems are a pure function of
(seed, i), so a resumed run needs no iterator state beyond the step.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from lpo_jax.problem import Problem
from lpo_jax.tasks import grading

if TYPE_CHECKING:
  import numpy as np


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

  def described(self) -> dict[str, dict]:
    """Return the sets that were read by name: counts, rows dropped and why, a hash.

    Empty where problems are drawn, not read.
    """
    return {}

  def restrict(self, fits: Callable[[Problem], bool]) -> None:
    """Drop and count the training problems that do not fit, where they were read."""

  def verify(self, problem: Problem, response_text: str) -> float:
    """Return the reward in [0, 1]; never raises on a response's content."""
    ...

  def start(self, workers: int, deadline_s: float) -> None:
    """Start what `submit` needs, before anything is compiled.

    Args:
      workers: processes that judge, where verdicts are costly.
      deadline_s: wall clock of one verdict there.

    Raises:
      ValueError: verdicts cannot be given on this machine; says the remedy.
    """

  def stop(self) -> None:
    """End what `start` started."""

  def submit(self, problems: Sequence[Problem], texts: Sequence[Sequence[str]],
             ) -> Callable[[], grading.Verdicts]:
    """Begin to judge texts [B][K]; return what waits for the verdicts.

    Here they are given in this process, when they are waited for; a task whose
    verdicts are costly gives them in a pool, while the caller goes on.
    """
    return lambda: grading.Verdicts(
      [[self.verify(problem, text) for text in row]
       for problem, row in zip(problems, texts, strict=True)], {}, [])

  def answer(self, problem: Problem, response_text: str) -> str | None:
    """Return the key under which equal answers vote together; None without answer."""
    ...

  def demonstration(self, problem: Problem) -> str:
    """Return a response that earns reward 1, for the warm start.

    Raises:
      NotImplementedError: the task has none.
    """
    raise NotImplementedError(
      f'task {self.name!r} has no demonstrations: start from a pretrained policy and '
      'set warmstart.steps=0')

  def step_ends(self, problem: Problem, response_text: str) -> Sequence[int]:
    """Return where written steps end: characters of the text before each place.

    Raises:
      NotImplementedError: the task does not say what a step is.
    """
    raise NotImplementedError(
      f'task {self.name!r} has no steps: set step_level.fraction=0')

  def diagnostics(
      self, problem: Problem, response_text: str, reward: float,
  ) -> dict[str, tuple[float, float]]:
    """Return (total, count) per metric for one graded response; they add up."""
    return {}


def problem_indices(size: int, seed: int, step: int, count: int) -> 'np.ndarray':
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
  import numpy as np  # here, so that a process that grades starts without it
  positions = np.arange(step * count, (step + 1) * count)
  epochs = positions // size
  parts = [
    _permutation(size, seed, int(epoch))[positions[epochs == epoch] % size]
    for epoch in np.unique(epochs)
  ]
  return np.concatenate(parts)


@functools.lru_cache(maxsize=4)
def _permutation(size: int, seed: int, epoch: int) -> 'np.ndarray':
  import numpy as np
  return np.random.default_rng([seed, epoch]).permutation(size)
