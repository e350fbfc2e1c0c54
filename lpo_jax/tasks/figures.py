r"""Drawn figures: the sum of two lengths, or the other angle at a line.

  segment   two parts of a line with their lengths a, b in 1..9: find the whole, a + b
  angle     a ray on a line, the angle a on one side, 30 to 150 in tens: find 180 - a

Every problem asks 'Find x.'; what x is, and of which numbers, stands in the figure
alone. Places and tilt vary, angles are to scale. A figure is a PNG that follows from
(seed, split, index). Answers are judged as Geometry3K's are.
"""

import io
import math
import random
from collections.abc import Sequence

from lpo_jax.problem import Problem
from lpo_jax.tasks import base, geometry3k

KINDS = ('segment', 'angle')
WIDTH, HEIGHT = 96, 72  # pixels
_GREY = (123, 117, 104)  # what normalisation takes to 0
_SEGMENT, _ANGLES = range(1, 10), range(30, 151, 10)


class Figures(base.Task):
  """The task."""

  name = 'figures'

  def __init__(self, *, train_size: int = 2048, test_size: int = 128, seed: int = 0):
    """Fix the sets; a figure is drawn when it is first asked for.

    Args:
      train_size: training problems.
      test_size: held-out ones.
      seed: of all.
    """
    for name, size in (('train_size', train_size), ('test_size', test_size)):
      if size < 1:
        raise ValueError(f'{name}={size}: must be at least 1')
    self._sizes = {'train': train_size, 'test': test_size}
    self._seed, self._drawn = seed, {}

  def problems(self, split: str) -> Sequence[Problem]:
    """Return the problems of 'train' or 'test'."""
    if split not in self._sizes:
      raise ValueError(f'unknown split {split!r}: known: train, test')
    if split not in self._drawn:
      self._drawn[split] = [self._problem(split, i) for i in range(self._sizes[split])]
    return self._drawn[split]

  def verify(self, problem: Problem, response_text: str) -> float:
    """Return 1.0 for the right answer, else 0.0."""
    return geometry3k.judge(_gold(problem.answer), response_text)[0]

  def answer(self, problem: Problem, response_text: str) -> str | None:
    """Return the boxed answer behind closed <think> tags, else None."""
    return geometry3k.key(response_text)

  def demonstration(self, problem: Problem) -> str:
    """Return the one step that leads to the answer."""
    kind, numbers = problem.answer['kind'], problem.answer['numbers']
    step = (f'{numbers[0]} + {numbers[1]}' if kind == 'segment'
            else f'180 - {numbers[0]}')
    x = problem.answer['x']
    return f'<think> {step} = {x} </think> \\boxed{{ {x} }}'

  def diagnostics(self, problem: Problem, response_text: str, reward: float,
                  ) -> dict[str, tuple[float, float]]:
    """Return the share that is right, kind by kind."""
    return {f'right_{problem.answer["kind"]}': (float(reward == 1.0), 1.0)}

  def _problem(self, split: str, index: int) -> Problem:
    rng = random.Random(f'{self._seed} {split} {index}')
    kind = rng.choice(KINDS)
    if kind == 'segment':
      numbers = [rng.choice(_SEGMENT), rng.choice(_SEGMENT)]
      x = sum(numbers)
    else:
      numbers = [rng.choice(_ANGLES)]
      x = 180 - numbers[0]
    return Problem(
      geometry3k.prompt('<image>Find x.'), {'kind': kind, 'numbers': numbers, 'x': x},
      f'{split}-{index}', (draw(kind, numbers, rng),))


def draw(kind: str, numbers: Sequence[int], rng: random.Random) -> bytes:
  """Return a figure as a PNG.

  Args:
    kind: of KINDS.
    numbers: a and b of a segment, a of an angle.
    rng: decides place, tilt and size.
  """
  from PIL import Image, ImageDraw, ImageFont
  image = Image.new('RGB', (WIDTH, HEIGHT), _GREY)
  pen = ImageDraw.Draw(image)
  font = ImageFont.load_default(size=24)

  def write(text, x, y):
    place = x + rng.uniform(-1, 1), y + rng.uniform(-1, 1)
    pen.text(place, text, fill='black', font=font, anchor='mm')

  tilt, left, right = rng.uniform(-4, 4), rng.uniform(4, 10), rng.uniform(86, 92)
  if kind == 'segment':
    low, cut = rng.uniform(40, 46), rng.uniform(44, 52)

    def at(x):
      return low + tilt * (x - WIDTH / 2) / WIDTH

    pen.line((left, at(left), right, at(right)), fill='black', width=2)
    for x in (left, cut, right):
      pen.line((x, at(x) - 4, x, at(x) + 4), fill='black', width=2)
    for number, x in zip(numbers, (27, 69), strict=True):
      write(str(number), x, 22)
    write('x', 48, 60)
  else:  # to scale: the side that is named is as wide as it says
    low, foot, side = rng.uniform(40, 44), rng.uniform(45, 51), rng.choice((1, -1))
    along, up = math.cos(math.radians(numbers[0])), math.sin(math.radians(numbers[0]))
    length = rng.uniform(34, 38)
    pen.line((left, low, right, low + tilt / 4), fill='black', width=2)
    pen.line((foot, low, foot + side * length * along, low - length * up),
             fill='black', width=2)
    for text, where in ((str(numbers[0]), side), ('x', -side)):
      write(text, 48 + where * 25, 58)
  file = io.BytesIO()
  image.save(file, 'PNG')
  return file.getvalue()


def _gold(answer: dict) -> dict:
  return {'answer': str(answer['x']), 'letter': None, 'choices': {}}
