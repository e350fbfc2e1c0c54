"""Programming problems, answered by a fenced program that is run on tests.

`verify(tests, response)` is the verdict, from `code_verdict`, inside the sandbox. The
sets are those of `code_problems`; runs judge in a pool of processes.
"""

from collections.abc import Sequence

from lpo_jax.problem import Problem
from lpo_jax.tasks import code_problems, code_verdict, problem_sets
from lpo_jax.tasks import sandbox as sandboxes

verify = code_verdict.verify
judge = code_verdict.judge
extract = code_verdict.extract


class Code(problem_sets.Task):
  """The task."""

  name = 'code'

  def __init__(self, *, train: str = 'eurus_code',
               evals: Sequence[str] = ('eurus_code_validation',),
               train_size: int | None = None, overlap: str = 'drop',
               sandbox: str = 'bubblewrap', all_or_nothing: bool = False,
               test_s: float = 5.0, total_s: float = 20.0, memory_mib: int = 1024):
    """Name the sets; none is loaded before it is asked for.

    Args:
      train: a set of `code_problems.SETS`, or a place (`sources`): a file, a folder,
        a hub id, tfds:NAME/SPLIT.
      evals: sets to evaluate on: names, places, or NAME=PLACE.
      train_size: problems to train on, from the top; None for all.
      overlap: 'drop' training questions that are also asked in an evaluation set, or
        'error'.
      sandbox: 'bubblewrap', or 'rlimits', which isolates nothing; see `sandbox`.
      all_or_nothing: reward 1 if all tests pass, else 0; not the share that passed.
      test_s: seconds that one test may take.
      total_s: seconds that all tests of one program may take.
      memory_mib: memory of one test.

    Raises:
      ValueError: an unknown set or choice, or limits that are none.
    """
    if sandbox not in sandboxes.KINDS:
      raise ValueError(f'unknown sandbox {sandbox!r}: known: '
                       f'{", ".join(sandboxes.KINDS)}')
    limits = sandboxes.Limits(test_s=test_s, total_s=total_s, memory_mib=memory_mib)
    self._options = dict(sandbox=sandbox, limits=limits, all_or_nothing=all_or_nothing)
    super().__init__(code_problems.SETS, code_problems.read, train, evals, overlap,
                     train_size)

  def verify(self, problem: Problem, response_text: str) -> float:
    """Return the share of tests passed, in [0, 1]; `problem.answer` is the tests."""
    return verify(problem.answer, response_text, **self._options)

  def pooled(self) -> tuple[str, dict]:
    """Return the verdict; see `problem_sets.Task.pooled`."""
    try:
      sandboxes.check(self._options['sandbox'])
    except RuntimeError as error:
      raise ValueError(str(error)) from error
    return 'lpo_jax.tasks.code_verdict:judge', self._options

  def answer(self, problem: Problem, response_text: str) -> str | None:
    """Return the fenced program without blank lines and trailing blanks."""
    program = code_verdict.fenced(response_text)
    if program is None or not program.strip():
      return None
    return '\n'.join(line.rstrip() for line in program.split('\n') if line.strip())

  def demonstration(self, problem: Problem) -> str:
    """Return the set's own solution, fenced.

    Raises:
      NotImplementedError: the problem came without one.
    """
    solution = self.solution(problem)
    if solution is None:
      return super().demonstration(problem)
    return f'```python\n{solution.strip()}\n```'
