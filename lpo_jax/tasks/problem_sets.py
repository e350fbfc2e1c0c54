"""From rows to problems: counted, hashed, and kept apart from the evaluation sets.

A task names its sets in a table; a place (`sources`) stands in for any of them. Every
row becomes a problem or is dropped for a reason that is counted: no answer, another
subject, too long, or its question is also asked in an evaluation set. What was found
is printed when a run opens and kept in its config.json.
"""

import collections
import dataclasses
import difflib
import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from lpo_jax.problem import Problem
from lpo_jax.tasks import base, grading, sources

NO_ANSWER, OVERLAP, TOO_LONG = 'no answer', 'in an evaluation set', 'too long'
OVERLAPS = ('drop', 'error')
_BLANKS = re.compile(r'\s|\\[,;:! ]|\\q?quad|[$~]')


class ProblemSet(NamedTuple):
  """Where a set lives, and how it is evaluated where it has its own way."""

  place: str  # see `sources`
  split: str = 'train'
  config: str = ''
  samples: int | None = None  # n of mean@n; None: the run's
  temperature: float | None = None  # None: the run's


class Question(NamedTuple):
  """What a row asks."""

  text: str  # the question alone, by which overlap is judged
  prompt: Any  # as `Problem.prompt`
  answer: Any  # what the verifier reads
  solution: str | None = None  # a response that earns reward 1, if the row has one
  images: tuple | None = None  # as `Problem.images`


class Dropped(Exception):
  """A row that is no problem; its message is the reason that is counted."""


@dataclasses.dataclass
class Loaded:
  """The problems of a set, and what became of its rows."""

  place: ProblemSet
  problems: list[Problem]
  texts: list[str]  # `key` of each problem's question
  dropped: collections.Counter  # reason -> rows
  solutions: dict[str, str]  # problem id -> a response that earns reward 1

  def keep(self, kept: Sequence[bool], reason: str) -> None:
    """Drop the problems that are not kept, and count them."""
    self.dropped[reason] += len(kept) - sum(kept)
    self.problems = [p for p, k in zip(self.problems, kept, strict=True) if k]
    self.texts = [t for t, k in zip(self.texts, kept, strict=True) if k]

  def described(self) -> dict:
    """Return what a run says of the set."""
    return describe(self.place.place, self.place.split, self.problems, self.dropped)


def describe(place: str, split: str, problems: Sequence[Problem],
             dropped: Mapping[str, int]) -> dict:
  """Return what a run says of a set: place, counts, and a hash of its content."""
  digest = hashlib.sha256()
  for problem in problems:
    line = json.dumps([problem.prompt, problem.answer], sort_keys=True)
    digest.update(line.encode() + b'\n')
    for image in problem.images or ():
      digest.update(image if isinstance(image, bytes) else image.encode())
  dropped = {reason: count for reason, count in sorted(dropped.items()) if count}
  return {'place': place, 'split': split, 'problems': len(problems),
          'rows': len(problems) + sum(dropped.values()), 'dropped': dropped,
          'sha256': digest.hexdigest()}


def key(text: str) -> str:
  """Return what two wordings of one question share: letters, digits and signs."""
  return _BLANKS.sub('', unicodedata.normalize('NFKC', text).casefold())


def named(table: Mapping[str, ProblemSet], asked: str,
          split: str) -> tuple[str, ProblemSet]:
  """Return the name and place of the set that an option asks for.

  Args:
    table: a task's own sets by name.
    asked: NAME of the table, NAME=PLACE, or a place.
    split: of places that the table does not have.

  Raises:
    ValueError: no such name.
  """
  name, _, place = asked.partition('=')
  if not place and asked in table:
    return asked, table[asked]
  if place:
    known = table.get(name, ProblemSet('', split))
    whole = os.path.isfile(os.path.expanduser(place))
    return name, known._replace(place=place, config='' if whole else known.config)
  if '/' in asked or ':' in asked or os.path.exists(os.path.expanduser(asked)):
    stem = re.split(r'[/:]', asked.rstrip('/'))[-1].split('.')[0]
    return stem, ProblemSet(asked, split)
  near = difflib.get_close_matches(asked, table, n=1)
  hint = f'did you mean {near[0]!r}? ' if near else ''
  raise ValueError(f'no problem set {asked!r}: {hint}known: {", ".join(table)}; or '
                   'give a file, a folder, a hub id (OWNER/NAME), tfds:NAME/SPLIT, or '
                   'NAME=PLACE')


def load(name: str, place: ProblemSet, read: Callable[[dict], Question],
         size: int | None = None) -> Loaded:
  """Return the problems of a set, in its order.

  Args:
    name: of the set; problem ids begin with it.
    place: where it is.
    read: from a row to what it asks; raises `Dropped`, or ValueError if the row is of
      no form that is known.
    size: how many problems to take from the top; None for all.

  Raises:
    ValueError: it cannot be had (`sources.rows`), a row of an unknown form, or no
      problem in it, or fewer than `size`.
  """
  found = Loaded(place, [], [], collections.Counter(), {})
  for number, row in enumerate(sources.rows(place.place, place.split, place.config)):
    try:
      question = read(row)
    except Dropped as reason:
      found.dropped[str(reason)] += 1
      continue
    except ValueError as error:
      raise ValueError(f'{place.place!r} row {number + 1}: {error}') from None
    problem = Problem(question.prompt, question.answer, f'{name}-{number}',
                      question.images)
    found.problems.append(problem)
    found.texts.append(key(question.text))
    if question.solution is not None:
      found.solutions[problem.id] = question.solution
    if len(found.problems) == size:
      break
  if len(found.problems) < (size or 1):
    raise ValueError(f'{place.place!r} ({place.split}) holds {len(found.problems)} '
                     f'problems, asked for {size or "some"}; dropped: '
                     f'{dict(found.dropped) or "none"}')
  return found


class Task(base.Task):
  """A task whose problems come from sets and whose verdicts come from a pool.

  Sets are loaded when first asked for.
  """

  def __init__(self, table: Mapping[str, ProblemSet], read: Callable[[dict], Question],
               train: str, evals: Sequence[str], overlap: str = 'drop',
               train_size: int | None = None):
    """Name the sets.

    Args:
      table: the sets known by name.
      read: see `load`.
      train: set to train on, see `named`.
      evals: sets to evaluate on.
      overlap: what to do with training questions that are also asked in an evaluation
        set: 'drop' them and count them, or 'error'.
      train_size: problems to train on; None for all.

    Raises:
      ValueError: an unknown set or option, or two evaluation sets of one name.
    """
    if overlap not in OVERLAPS:
      raise ValueError(f'overlap={overlap!r}: choose one of {", ".join(OVERLAPS)}')
    if isinstance(evals, str) or not evals:
      raise ValueError(f'evals={evals!r}: give a tuple of at least one set')
    self._read, self._overlap, self._train_size = read, overlap, train_size
    self._train = named(table, train, 'train')
    self._evals = dict(named(table, asked, 'test') for asked in evals)
    if len(self._evals) != len(evals) or {'average', 'train'} & self._evals.keys():
      raise ValueError(f'evals={tuple(evals)}: names must differ, none be average '
                       'or train; NAME=PLACE gives a place its name')
    self._loaded, self._grader = {}, None

  def problems(self, split: str) -> Sequence[Problem]:
    """Return the problems of 'train', or 'test': of all evaluation sets."""
    if split not in ('train', 'test'):
      raise ValueError(f'unknown split {split!r}: known: train, test')
    held_out = [self._of(name) for name in self._evals]
    if split == 'test':
      return [problem for loaded in held_out for problem in loaded.problems]
    return self._training(held_out).problems

  def eval_sets(self) -> dict[str, base.EvalSet]:
    """Return the evaluation sets by name; see `base.Task.eval_sets`."""
    return {name: base.EvalSet(self._of(name).problems, place.samples,
                               place.temperature)
            for name, place in self._evals.items()}

  def described(self) -> dict[str, dict]:
    """Return what was loaded; see `base.Task.described`."""
    self.problems('train')
    names = {f'train {self._train[0]}': 'train', **{name: name for name in self._evals}}
    return {shown: self._loaded[name].described() for shown, name in names.items()}

  def restrict(self, fits: Callable[[Problem], bool]) -> None:
    """Drop training problems as too long; see `base.Task.restrict`."""
    self.problems('train')
    loaded = self._loaded['train']
    loaded.keep([fits(problem) for problem in loaded.problems], TOO_LONG)
    if not loaded.problems:
      raise ValueError(f'every training problem of {loaded.place.place!r} is longer '
                       'than the largest bucket: raise sampling.prompt_buckets')

  def start(self, workers: int, deadline_s: float) -> None:
    """Start the pool; see `base.Task.start`."""
    function, options = self.pooled()
    try:
      self._grader = grading.Grader(function, options=options, workers=workers,
                                    deadline_s=deadline_s)
    except RuntimeError as error:
      raise ValueError(str(error)) from error

  def stop(self) -> None:
    """End the pool."""
    if self._grader is not None:
      self._grader.close()
      self._grader = None

  def submit(self, problems: Sequence[Problem], texts: Sequence[Sequence[str]],
             ) -> Callable[[], grading.Verdicts]:
    """Hand a batch to the pool, once it is open; see `base.Task.submit`."""
    if self._grader is None:
      return super().submit(problems, texts)
    return self._grader.submit(problems, texts).result

  def pooled(self) -> tuple[str, dict]:
    """Return the verdict for the pool: 'module:function' and its options.

    Raises:
      ValueError: verdicts cannot be given on this machine; says the remedy.
    """
    raise NotImplementedError(f'task {self.name!r} must name its verdict for the pool')

  def solution(self, problem: Problem) -> str | None:
    """Return the solution that a training row came with; None without."""
    return self._loaded['train'].solutions.get(problem.id)

  def _of(self, name: str) -> Loaded:
    if name not in self._loaded:
      self._loaded[name] = load(name, self._evals[name], self._read)
    return self._loaded[name]

  def _training(self, held_out: Sequence[Loaded]) -> Loaded:
    """Return the training set without the questions of the evaluation sets."""
    if 'train' in self._loaded:
      return self._loaded['train']
    name, place = self._train
    found = load(name, place, self._read, self._train_size)
    asked = {text: other.place.place for other in held_out for text in other.texts}
    kept = [text not in asked for text in found.texts]
    if self._overlap == 'error' and not all(kept):
      first = kept.index(False)
      raise ValueError(
        f'{len(kept) - sum(kept)} of {len(kept)} training questions of {place.place!r} '
        f'are also in an evaluation set; the first is {found.problems[first].id!r}, in '
        f'{asked[found.texts[first]]!r}: set overlap=drop to train without them')
    found.keep(kept, OVERLAP)
    if not found.problems:
      raise ValueError(f'every training problem of {place.place!r} is also in an '
                       'evaluation set')
    self._loaded['train'] = found
    return found
