r"""Geometry problems about a figure: reasoning in <think>, the answer in \boxed{}.

Geometry3K (Lu et al. 2021, arXiv:2105.04165) as the hub has it in hiyouga/geometry3k:
columns `images`, `problem` (with <image> where the figure stands) and `answer`. A local
file may also have `image` (a path beside it) and `choices` with `answer_letter`: then
they are listed, and the letter counts as well as the value.
"""

import hashlib
import importlib.util
import re
from collections.abc import Sequence

from lpo_jax.problem import Problem
from lpo_jax.tasks import math_verdict, problem_sets
from lpo_jax.tasks.problem_sets import Dropped, ProblemSet, Question

PLACE = 'hiyouga/geometry3k'
SETS = {'geometry3k': ProblemSet(PLACE, 'train'),
        'geometry3k_test': ProblemSet(PLACE, 'test')}
REQUEST = ('Think first: write your reasoning between <think> and </think>. Then give '
           'the final answer in \\boxed{}.')
_IMAGE = '<image>'
_FORM = re.compile(r'\s*<think>.*</think>.*\\boxed\s*\{.*', re.DOTALL)


def read(row: dict) -> Question:
  """Return what a row asks.

  Raises:
    Dropped: it has no answer.
    ValueError: no figure, or not as many as the text has places for; or no question.
  """
  text, answer = row.get('problem', row.get('question')), row.get('answer')
  if text is None:
    raise ValueError(f'a question is in problem or question; the columns are '
                     f'{sorted(row)}')
  if answer in (None, ''):
    raise Dropped(problem_sets.NO_ANSWER)
  images = tuple(map(_file, row.get('images') or [row.get('image')]))
  text, choices = str(text).strip(), row.get('choices') or ()
  if _IMAGE not in text:
    text = _IMAGE * len(images) + text
  if text.count(_IMAGE) != len(images):
    raise ValueError(f'the problem has {len(images)} images, but its text has '
                     f'{text.count(_IMAGE)} places for them')
  letters = [chr(ord('A') + i) for i in range(len(choices))]
  gold = {'answer': str(answer), 'letter': row.get('answer_letter'),
          'choices': dict(zip(letters, map(str, choices), strict=True))}
  asked = text
  if choices:
    asked += '\n' + ' '.join(f'({letter}) {choice}' for letter, choice in
                             gold['choices'].items())
  figure = hashlib.sha256()
  for image in images:
    figure.update(image if isinstance(image, bytes) else image.encode())
  return Question(f'{text} {figure.hexdigest()}', prompt(f'{asked}\n\n{REQUEST}'), gold,
                  images=images)


def prompt(text: str) -> list[dict]:
  """Return one user message, text cut where images stand."""
  parts = []
  for i, piece in enumerate(text.split(_IMAGE)):
    parts += [{'type': 'image'}] * bool(i)
    parts += [{'type': 'text', 'text': piece}] * bool(piece)
  return [{'role': 'user', 'content': parts}]


def judge(gold: dict, response: str) -> tuple[float, str]:
  """Return 1.0 for the right value, or the letter of the right choice; and a note.

  Args:
    gold: `answer`, and `letter` and `choices` (letter -> value) where there are some.
    response: any text.
  """
  letter = math_verdict.boxed(response) if gold['choices'] else None
  letter = re.fullmatch(r'\s*(?:\\text\s*\{)?\s*\(?([A-Z])[).]?\s*\}?\s*', letter or '')
  if letter and letter[1] in gold['choices']:
    return float(letter[1] == gold['letter']), ''
  return math_verdict.judge(gold['answer'], response)


def key(response: str) -> str | None:
  """Return the answer's key, None where the response has not the form asked for."""
  return math_verdict.key(response) if _FORM.fullmatch(response) else None


class Geometry3k(problem_sets.Task):
  """The task."""

  name = 'geometry3k'

  def __init__(self, *, train: str = 'geometry3k',
               evals: Sequence[str] = ('geometry3k_test',),
               train_size: int | None = None, overlap: str = 'drop'):
    """Name the sets; see `problem_sets.Task`.

    Args:
      train: set to train on, or a place.
      evals: sets to evaluate on.
      train_size: problems to train on, from the top; None for all.
      overlap: of training problems with an evaluation set, figure and text: 'drop' them
        or 'error'.
    """
    super().__init__(SETS, read, train, evals, overlap, train_size)

  def verify(self, problem: Problem, response_text: str) -> float:
    """Return 1.0 for the right answer, else 0.0."""
    return judge(problem.answer, response_text)[0]

  def pooled(self) -> tuple[str, dict]:
    """Return the verdict; see `problem_sets.Task.pooled`."""
    if importlib.util.find_spec('math_verify') is None:
      raise ValueError('task geometry3k needs math-verify to compare answers: pip '
                       "install math-verify, or '.[code]'")
    return 'lpo_jax.tasks.geometry3k:judge', {}

  def answer(self, problem: Problem, response_text: str) -> str | None:
    """Return the boxed answer behind closed <think> tags, else None."""
    return key(response_text)

  def demonstration(self, problem: Problem) -> str:
    r"""Return the gold answer in \boxed{}, behind nothing thought."""
    return f'<think></think> \\boxed{{{problem.answer["answer"]}}}'


def _file(image) -> bytes | str:
  """Return an image as its file's content, or its path."""
  if isinstance(image, dict):
    image = image.get('bytes') or image.get('path')
  if not isinstance(image, bytes | str) or not image:
    raise ValueError('a figure is in images (a list) or image: a path, or an object '
                     'with bytes or path')
  return image
