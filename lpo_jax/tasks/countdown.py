"""Countdown: combine the given numbers, each once, with + - * / to hit a target.

The reward reads the last <answer>...</answer> of a response alone and is exact:
rationals, no rounding, no `eval`. Prompts come in two forms: compact, one token per
word ('14 4 2 : 36 >', for the small policies trained from scratch), and TinyZero's
templates, for pretrained ones (github.com/Jiayi-Pan/TinyZero, Apache-2.0).
"""

import collections
import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction

from lpo_jax.problem import Problem
from lpo_jax.tasks import (
  base,
  countdown_problems,
  expression,
  problem_sets,
  sources,
)

_QUESTION = (
  'Using the numbers {numbers}, create an equation that equals {target}. You can use '
  'basic arithmetic operations (+, -, *, /) and each number can only be used once. '
  'Show your work in <think> </think> tags. And return the final answer in <answer> '
  '</answer> tags, for example <answer> (1 + 2) / 3 </answer>.')
_TINYZERO = (
  'A conversation between User and Assistant. The user asks a question, and the '
  'Assistant solves it. The assistant first thinks about the reasoning process in the '
  'mind and then provides the user with the answer.\n'
  f'User: {_QUESTION}\n'
  'Assistant: Let me solve this step by step.\n'
  '<think>')
_TINYZERO_INSTRUCT = (
  '<|im_start|>system\n'
  'You are a helpful assistant. You first thinks about the reasoning process in the '
  'mind and then provides the user with the answer.<|im_end|>\n'
  f'<|im_start|>user\n {_QUESTION}<|im_end|>\n'
  '<|im_start|>assistant\n'
  'Let me solve this step by step.\n'
  '<think>')

_OPEN, _CLOSE = '<answer>', '</answer>'
_MAX_TRACE = 4096  # characters of written steps that are looked at
_NUMBER = r'(-?[0-9]{1,12}(?:/[0-9]{1,12})?)'
_STEP = re.compile(rf'\s*{_NUMBER} ?([-+*/]) ?{_NUMBER} ?= ?{_NUMBER}\s*', re.ASCII)

_OPENED = re.compile(r'\s*(?:<think>)?')


def _compact_prompt(numbers: Sequence[int], target: int) -> str:
  return f'{" ".join(map(str, numbers))} : {target} >'


def _template_prompt(template: str, numbers: Sequence[int], target: int) -> str:
  return template.format(numbers=list(numbers), target=target)


_PROMPTS = {
  'compact': _compact_prompt,
  'tinyzero': functools.partial(_template_prompt, _TINYZERO),
  'tinyzero_instruct': functools.partial(_template_prompt, _TINYZERO_INSTRUCT),
}
_DEMONSTRATIONS = {  # the TinyZero prompts end inside an open <think>
  'compact': '{steps} <answer> {expression} </answer>',
  'tinyzero': ' {steps} </think>\n<answer> {expression} </answer>',
  'tinyzero_instruct': ' {steps} </think>\n<answer> {expression} </answer>',
}


def split_answer(response: str) -> tuple[str, str] | None:
  """Return (text before, content) of the last <answer>...</answer>; None without.

  The last opening tag that is closed counts, up to its first closing tag.
  """
  last_close = response.rfind(_CLOSE)
  start = response.rfind(_OPEN, 0, max(last_close, 0))
  if start < 0:
    return None
  end = response.find(_CLOSE, start)
  return response[:start], response[start + len(_OPEN):end]


def _parse_answer(response: str) -> expression.Postfix | None:
  parts = split_answer(response)
  return None if parts is None else expression.parse(parts[1])


def verify(
    numbers: Sequence[int], target: int, response: str, format_reward: float = 0.0,
) -> float:
  """Return the reward of a response: exact, and total over all strings.

  Args:
    numbers: the given numbers; each must be used exactly once.
    target: what the expression must equal.
    response: any text; its last <answer>...</answer> counts.
    format_reward: for a well-formed expression (`expression.parse`) with other
      numbers, another value, or a division by zero. TinyZero's is 0.1.

  Returns:
    1.0, `format_reward`, or 0.0 where no well-formed answer is found.
  """
  postfix = _parse_answer(response)
  if postfix is None:
    return 0.0
  # Only the given numbers are ever computed with, so no value can grow large.
  if sorted(expression.integers(postfix)) != sorted(map(int, numbers)):
    return float(format_reward)
  return 1.0 if expression.evaluate(postfix) == target else float(format_reward)


def trace_valid(numbers: Sequence[int], target: int, response: str) -> bool:
  """Return whether the steps written before the last answer are all right.

  Steps are 'a op b = c' separated by commas. Each must hold exactly and take its
  operands from the numbers at hand, which it replaces by c; the target must be what
  is left. The expression inside the answer plays no part.
  """
  parts = split_answer(response)
  if parts is None or len(parts[0]) > _MAX_TRACE:
    return False
  at_hand = collections.Counter(Fraction(int(number)) for number in numbers)
  for text in re.sub('</?think>', '', parts[0]).split(','):
    step = _STEP.fullmatch(text)
    if not step:
      return False
    try:
      left, right, value = (Fraction(step[group]) for group in (1, 3, 4))
      right_value = expression.apply(step[2], left, right)
    except ZeroDivisionError:
      return False
    at_hand.subtract((left, right))
    if right_value != value or at_hand[left] < 0 or at_hand[right] < 0:
      return False
    at_hand[value] += 1
  return list(at_hand.elements()) == [target]


class Countdown(base.Task):
  """The task: problems drawn from a seed, or read from a local folder."""

  name = 'countdown'

  def __init__(
      self, *, min_numbers: int = 3, max_numbers: int = 3, max_number: int = 20,
      max_target: int = 50, max_intermediate: int = 99, format: str = 'compact',
      format_reward: float = 0.0, path: str | None = None,
      train_size: int | None = None, test_size: int | None = None, seed: int = 0,
      sets: Mapping[str, Sequence[int]] | None = None,
  ):
    """Describe the problems; none is drawn or read before it is asked for.

    Args:
      min_numbers: fewest numbers of a problem.
      max_numbers: most numbers of a problem; the count is uniform between.
      max_number: numbers lie in 1..max_number.
      max_target: targets lie in 1..max_target.
      max_intermediate: every step of the witness lies in 0..max_intermediate.
      format: 'compact', 'tinyzero' or 'tinyzero_instruct'.
      format_reward: reward of a well-formed wrong answer.
      path: a file, a folder with train and test, a hub id or tfds:NAME/SPLIT
        (`sources`), with rows of nums, target, [id, witness]
        (`countdown_problems.read`); the ranges above then play no part.
      train_size: problems in 'train'; None: 131072 drawn, or all rows of the file.
      test_size: distinct problems in 'test'; None: 256 drawn, or all rows.
      seed: which problems are drawn.
      sets: evaluation sets by name: fewest and most numbers of their problems, e.g.
        {'cd34': (3, 4), 'cd4': (4, 4)}, each of `test_size`; None: the test split.

    Raises:
      ValueError: an unknown format, a reward outside [0, 1], or impossible ranges.
    """
    self._sets = {name: tuple(counts) for name, counts in (sets or {}).items()}
    for name, counts in self._sets.items():
      if len(counts) != 2 or not 2 <= counts[0] <= counts[1] or name in (
          'train', 'test', 'average'):
        raise ValueError(f'sets: {name}={counts}: give fewest and most numbers, at '
                         'least 2, and no name of train, test, average')
    if format not in _PROMPTS:
      raise ValueError(f'unknown format {format!r}: known: {", ".join(_PROMPTS)}')
    if not 0.0 <= format_reward <= 1.0:
      raise ValueError(f'format_reward={format_reward} is outside [0, 1]')
    self._ranges = countdown_problems.Ranges(
      min_numbers, max_numbers, max_number, max_target, max_intermediate)
    largest = max(max_number, max_intermediate)
    if format == 'compact' and path is None and largest > 99:
      raise ValueError(f"format='compact' has tokens for 0..99 only; the ranges reach "
                       f'{largest}')
    self._format, self._format_reward = format, format_reward
    self._path, self._seed = path, seed
    self._sizes = {'train': train_size, 'test': test_size,
                   **dict.fromkeys(self._sets, test_size)}
    self._splits, self._overlap = {}, 0

  def problems(self, split: str) -> Sequence[Problem]:
    """Return the problems of 'train' or 'test'; see `base.Task.problems`."""
    if split not in self._sizes:
      raise ValueError(f'unknown split {split!r}: known: train, test')
    if split not in self._splits:
      self._splits[split] = countdown_problems.Made(
        self._puzzles(split), self._problem)
    return self._splits[split]

  def eval_sets(self) -> dict[str, base.EvalSet]:
    """Return the sets asked for, or the test split; see `base.Task.eval_sets`."""
    if not self._sets:
      return super().eval_sets()
    return {name: base.EvalSet(self.problems(name)) for name in self._sets}

  def _puzzles(self, split: str) -> Sequence[countdown_problems.Puzzle]:
    size, counts = self._sizes[split], self._sets.get(split)
    if self._path is not None:
      puzzles = countdown_problems.read(self._path, split, size, counts)
      return self._kept_apart(puzzles) if split == 'train' else puzzles
    if split == 'train':
      size = 131072 if size is None else size
      return countdown_problems.Drawn(self._ranges, split, size, self._seed)
    size, ranges = 256 if size is None else size, self._ranges
    if counts is not None:
      ranges = dataclasses.replace(ranges, min_numbers=counts[0],
                                   max_numbers=counts[1])
    return countdown_problems.distinct(ranges, split, size, self._seed)

  def _kept_apart(self, puzzles: Sequence[countdown_problems.Puzzle]):
    """Return training puzzles without those of held-out sets with rows of their own."""
    names = [name for name in self._sets or ('test',)
             if not sources.is_one(self._path) and any(
               sources.has(self._path, split) for split in (name, 'test'))]
    asked = {puzzle.key for name in names for puzzle in self._puzzles(name)}
    kept = [puzzle for puzzle in puzzles if puzzle.key not in asked]
    self._overlap = len(puzzles) - len(kept)
    if not kept:
      raise ValueError(f'every training row of {self._path} is also held out')
    return kept

  def described(self) -> dict[str, dict]:
    """Return the sets that were read from a path; see `base.Task.described`."""
    if self._path is None:
      return {}
    found = {'train': self.problems('train')} | {
      name: held_out.problems for name, held_out in self.eval_sets().items()}
    return {name: problem_sets.describe(
      self._path, name, problems,
      {problem_sets.OVERLAP: self._overlap if name == 'train' else 0})
            for name, problems in found.items()}

  def _problem(self, puzzle: countdown_problems.Puzzle) -> Problem:
    return Problem(
      prompt=_PROMPTS[self._format](puzzle.numbers, puzzle.target),
      answer={'numbers': list(puzzle.numbers), 'target': puzzle.target,
              'witness': puzzle.witness},
      id=puzzle.id)

  def verify(self, problem: Problem, response_text: str) -> float:
    """Return the module's `verify` of this problem."""
    answer = problem.answer
    return verify(
      answer['numbers'], answer['target'], response_text, self._format_reward)

  def answer(self, problem: Problem, response_text: str) -> str | None:
    """Return the answer's expression, spaces and operand order aside."""
    postfix = _parse_answer(response_text)
    return None if postfix is None else expression.canonical(postfix)

  def demonstration(self, problem: Problem) -> str:
    """Return the witness written as steps and answer, e.g. for 14 4 2 : 36

    '14 + 4 = 18 , 18 * 2 = 36 <answer> ( 14 + 4 ) * 2 </answer>'.

    Raises:
      ValueError: the problem carries no witness.
    """
    witness = problem.answer['witness']
    postfix = None if witness is None else expression.parse(witness)
    if postfix is None:
      raise ValueError(f'problem {problem.id!r} has no usable witness: {witness!r}')
    rows = expression.steps(postfix)
    steps = ' , '.join(f'{a} {operator} {b} = {c}' for a, operator, b, c in rows)
    return _DEMONSTRATIONS[self._format].format(
      steps=steps, expression=expression.infix(postfix))

  def step_ends(self, problem: Problem, response_text: str) -> list[int]:
    """Return the ends of the written steps, right or wrong, before the last answer.

    '14 + 4 = 18 , 18 * 2 = 36 <answer> ...' has them after 18 and after 36. What
    follows a text that is no step counts no more.
    """
    parts = split_answer(response_text)
    text = response_text if parts is None else parts[0]
    found, start = [], 0
    for written in text[:_MAX_TRACE].split(','):
      opened = _OPENED.match(written).end()
      if not (step := _STEP.match(written, opened)):
        break
      found.append(start + step.end(4))
      start += len(written) + 1
    return found

  def diagnostics(
      self, problem: Problem, response_text: str, reward: float,
  ) -> dict[str, tuple[float, float]]:
    """Count, among responses with reward 1, those whose written steps are right."""
    if reward != 1.0:
      return {'trace_valid_frac': (0.0, 0.0)}
    answer = problem.answer
    valid = trace_valid(answer['numbers'], answer['target'], response_text)
    return {'trace_valid_frac': (float(valid), 1.0)}
