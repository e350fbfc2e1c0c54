"""Solvable Countdown problems: drawn on demand, or read from a place (`sources`).

A problem is drawn by combining its numbers pairwise, larger operand first, until
one value is left; a draw with an inexact division or a value out of range is
thrown away. Held out: a problem whose md5 of (sorted numbers, target) starts with
a byte below 26 belongs to 'test', every other one to 'train', whatever the seed.
"""

import dataclasses
import hashlib
import random
from collections.abc import Iterator, Sequence

from lpo_jax.problem import Problem
from lpo_jax.tasks import sources

MAX_DRAWS = 200_000


@dataclasses.dataclass(frozen=True)
class Puzzle:
  """Numbers, what they shall make, and one way to make it."""

  numbers: tuple[int, ...]
  target: int
  witness: str | None  # e.g. '((14 + 4) * 2)'; None where a file states none
  id: str

  @property
  def key(self) -> tuple:
    """What puzzles share that differ in the numbers' order alone."""
    return tuple(sorted(self.numbers)), self.target


@dataclasses.dataclass(frozen=True)
class Ranges:
  """What puzzles look like; all bounds inclusive."""

  min_numbers: int
  max_numbers: int
  max_number: int  # numbers lie in 1..max_number
  max_target: int  # targets lie in 1..max_target
  max_intermediate: int  # every step's value lies in 0..max_intermediate

  def __post_init__(self):
    """Raise ValueError, with both values, on ranges that cannot be drawn from."""
    if not 2 <= self.min_numbers <= self.max_numbers:
      raise ValueError(
        f'need 2 <= min_numbers <= max_numbers; got min_numbers={self.min_numbers}, '
        f'max_numbers={self.max_numbers}')
    if self.max_number < 1:
      raise ValueError(f'max_number={self.max_number} is below 1')
    if not 1 <= self.max_target <= self.max_intermediate:
      raise ValueError(
        f'need 1 <= max_target <= max_intermediate; got max_target={self.max_target},'
        f' max_intermediate={self.max_intermediate}')


def is_held_out(numbers: Sequence[int], target: int) -> bool:
  """Return whether (numbers in any order, target) belongs to the test split."""
  key = repr((sorted(numbers), target)).encode()
  return hashlib.md5(key, usedforsecurity=False).digest()[0] < 26


class Drawn(Sequence):
  """`size` puzzles of one split; puzzle i is a pure function of (seed, split, i)."""

  def __init__(self, ranges: Ranges, split: str, size: int, seed: int):
    if size < 1:
      raise ValueError(f'{split} size {size} is below 1')
    self._ranges, self._split, self._size, self._seed = ranges, split, size, seed

  def __len__(self) -> int:
    return self._size

  def __getitem__(self, index: int) -> Puzzle:
    if not -self._size <= index < self._size:
      raise IndexError(f'problem {index} of {self._size}')
    return self.draw(int(index) % self._size)

  def draw(self, index: int) -> Puzzle:
    """Return puzzle `index`, which may lie beyond the size.

    Raises:
      ValueError: no valid puzzle in MAX_DRAWS draws.
    """
    uniform = random.Random(f'countdown/{self._seed}/{self._split}/{index}').random
    held_out = self._split != 'train'
    for _ in range(MAX_DRAWS):
      drawn = _draw(self._ranges, uniform)
      if drawn is not None and is_held_out(drawn[0], drawn[1]) == held_out:
        return Puzzle(*drawn, id=f'countdown-{self._split}-{index}')
    raise ValueError(
      f'no {self._split} puzzle in {MAX_DRAWS} draws from {self._ranges}')


def distinct(ranges: Ranges, split: str, size: int, seed: int) -> list[Puzzle]:
  """Return `size` puzzles of one split, no two alike up to the numbers' order.

  Raises:
    ValueError: the ranges do not hold that many.
  """
  source, found = Drawn(ranges, split, size, seed), {}
  for index in range(100 * size + 1000):
    puzzle = source.draw(index)
    found.setdefault(puzzle.key, puzzle)
    if len(found) == size:
      return list(found.values())
  raise ValueError(f'found {len(found)} distinct {split} puzzles of the {size} asked '
                   f'for, in {ranges}')


def _draw(ranges: Ranges, uniform) -> tuple | None:
  """Return (numbers, target, witness) of one random tree; None if out of range."""
  spread = ranges.max_numbers - ranges.min_numbers + 1
  count = ranges.min_numbers + int(uniform() * spread)
  numbers = tuple(1 + int(uniform() * ranges.max_number) for _ in range(count))
  pool = [(number, str(number)) for number in numbers]
  while len(pool) > 1:
    left = pool.pop(int(uniform() * len(pool)))
    right = pool.pop(int(uniform() * len(pool)))
    if left[0] < right[0]:
      left, right = right, left
    operator = '+-*/'[int(uniform() * 4)]
    value = _combine(left[0], operator, right[0])
    if value is None or value > ranges.max_intermediate:
      return None
    pool.append((value, f'({left[1]} {operator} {right[1]})'))
  target, witness = pool[0]
  return (numbers, target, witness) if 1 <= target <= ranges.max_target else None


def _combine(left: int, operator: str, right: int) -> int | None:
  if operator == '+':
    return left + right
  if operator == '-':
    return left - right
  if operator == '*':
    return left * right
  return left // right if right and left % right == 0 else None


def read(path: str, split: str, size: int | None,
         counts: tuple[int, int] | None = None) -> list[Puzzle]:
  """Read puzzles: objects or rows with nums, target, [id, witness].

  Args:
    path: a place (`sources`) with files of the splits; or one file, or a place with a
      training set alone (as on the hub), whose rows fall into 'train' or are held out
      (`is_held_out`).
    split: 'train', or the name of a held-out set; where the place has no file of that
      name, its test file.
    size: how many rows to take from the top; None for all.
    counts: fewest and most numbers of the rows taken; None for any.

  Raises:
    ValueError: a row lacks a field, there are fewer rows than asked for, or the place
      cannot be read (`sources.rows`).
  """
  rows, whole = _rows(path, split)
  puzzles, held_out = [], split != 'train'
  for number, row in enumerate(rows):
    if 'nums' not in row or 'target' not in row:
      raise ValueError(f'{path} line {number + 1}: needs nums and target, has '
                       f'{sorted(row)}')
    numbers, target = tuple(map(int, row['nums'])), int(row['target'])
    if whole and is_held_out(numbers, target) != held_out:
      continue
    if counts is not None and not counts[0] <= len(numbers) <= counts[1]:
      continue
    puzzles.append(Puzzle(numbers, target, row.get('witness'),
                          str(row.get('id', f'countdown-{split}-{number}'))))
    if len(puzzles) == size:
      break
  if not puzzles or (size is not None and len(puzzles) < size):
    of = '' if counts is None else f' of {counts[0]} to {counts[1]} numbers'
    raise ValueError(f'{path} holds {len(puzzles)} rows{of}; asked for '
                     f'{size or "some"}')
  return puzzles


def _rows(path: str, split: str) -> tuple[Iterator[dict], bool]:
  """Return the rows that hold a split, and whether they hold every other one too."""
  held_out = ('test',) if split == 'train' else (split, 'test')
  found = next((name for name in held_out if sources.has(path, name)), None)
  if found is None or sources.is_one(path):
    return sources.rows(path, 'train'), True
  return sources.rows(path, 'train' if split == 'train' else found), False

class Made(Sequence):
  """Problems made from puzzles at the moment they are looked at."""

  def __init__(self, puzzles: Sequence[Puzzle], make):
    self._puzzles, self._make = puzzles, make

  def __len__(self) -> int:
    return len(self._puzzles)

  def __getitem__(self, index: int | slice) -> Problem | list[Problem]:
    if isinstance(index, slice):
      return [self[i] for i in range(*index.indices(len(self)))]
    return self._make(self._puzzles[index])
