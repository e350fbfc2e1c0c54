r"""Mathematics with a checkable answer, given in \boxed{}.

`verify(gold, response)` is the verdict, from `math_verdict`: safe on any text and
from any thread, within 10 s. The sets are those of `math_problems`; runs judge in a
pool of processes.
"""

import importlib.util
from collections.abc import Sequence

from lpo_jax.problem import Problem
from lpo_jax.tasks import math_problems, math_verdict, problem_sets

verify = math_verdict.verify
judge = math_verdict.judge


class Math(problem_sets.Task):
  """The task."""

  name = 'math'

  def __init__(self, *, train: str = 'math',
               evals: Sequence[str] = tuple(math_problems.PAPER),
               train_size: int | None = None, overlap: str = 'drop'):
    """Name the sets; none is loaded before it is asked for.

    Args:
      train: a set of `math_problems.SETS`, or a place (`sources`): a file, a folder,
        a hub id, tfds:NAME/SPLIT.
      evals: sets to evaluate on: names, places, or NAME=PLACE.
      train_size: problems to train on, from the top; None for all.
      overlap: 'drop' training questions that are also asked in an evaluation set, or
        'error'.

    Raises:
      ValueError: an unknown set or choice.
    """
    super().__init__(math_problems.SETS, math_problems.read, train, evals, overlap,
                     train_size)

  def verify(self, problem: Problem, response_text: str) -> float:
    """Return 1.0 for the right answer, else 0.0; `problem.answer` is the gold."""
    return verify(problem.answer, response_text)

  def pooled(self) -> tuple[str, dict]:
    """Return the verdict; see `problem_sets.Task.pooled`."""
    if importlib.util.find_spec('math_verify') is None:
      raise ValueError('task math needs math-verify to compare answers: pip install '
                       "math-verify, or '.[code]'")
    return 'lpo_jax.tasks.math_verdict:judge', {}

  def answer(self, problem: Problem, response_text: str) -> str | None:
    """Return the boxed answer, decoration and form of a number aside."""
    return math_verdict.key(response_text)

  def demonstration(self, problem: Problem) -> str:
    r"""Return the gold answer in \boxed{}."""
    return f'\\boxed{{{problem.answer}}}'
