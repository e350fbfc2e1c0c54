r"""Two graders on saved responses: how often they differ, and where.

python -m lpo_jax.tasks.audit FILE.jsonl [...] [--a=MODULE:FUNCTION] [--b=...]
    [--out=FILE.csv|FILE.json]

A line of a FILE is a problem with its responses, as --mode=eval (DIR/eval/*.jsonl) and
training (DIR/rollouts/*.jsonl) leave them, {"id", "answer", "responses", "rewards"}, or
one response, {"gold", "response"}. A grader is called as function(answer, text,
**options), in processes that are killed at the deadline, and returns a reward or
(reward, note), as for `grading`; `saved` stands for the rewards in the files. Right
means reward 1.
"""

import argparse
import csv
import dataclasses
import functools
import json
import pathlib
import resource
import sys
from collections.abc import Sequence
from typing import Any

from lpo_jax.tasks import grading, math_worker

A = 'lpo_jax.tasks.math_verdict:judge'
B = 'lpo_jax.tasks.audit:plain_math_verify'
SAVED = 'saved'
KINDS = {(True, False): 'only A right', (False, True): 'only B right',
         (False, False): 'neither right', (True, True): 'both right'}


@dataclasses.dataclass(frozen=True)
class Saved:
  """One response, as it was found."""

  where: str  # file:line, and which of the line's responses
  id: str
  answer: Any  # what a grader reads
  text: str
  reward: float | None  # in the file


@dataclasses.dataclass(frozen=True)
class Pair:
  """What two graders say of one response: (reward, note) each."""

  saved: Saved
  a: tuple[float, str]
  b: tuple[float, str]

  @property
  def kind(self) -> str:
    """Which of them call it right."""
    return KINDS[self.a[0] == 1, self.b[0] == 1]

  @property
  def shown(self) -> bool:
    """Whether they differ, or one of them failed."""
    return self.a[0] != self.b[0] or bool(self.a[1] or self.b[1])


def plain_math_verify(gold, response: str) -> float:
  """Return math-verify's own verdict on a whole response; in a grading process only.

  Its time is the grader's deadline, its memory that of `math_worker`.
  """
  verify, parse = _math_verify()
  golds = parse(f'\\boxed{{{gold}}}', parsing_timeout=None)
  return float(verify(golds, parse(response, parsing_timeout=None),
                      timeout_seconds=None))


@functools.cache
def _math_verify():
  import logging

  import math_verify
  logging.getLogger('math_verify').setLevel(logging.ERROR)
  resource.setrlimit(resource.RLIMIT_AS, (math_worker.MEMORY_BYTES,) * 2)
  return math_verify.verify, math_verify.parse


def read(paths: Sequence[str]) -> list[Saved]:
  """Return the responses of JSON lines files.

  Raises:
    ValueError: a line of no known form, or no response at all.
    FileNotFoundError: no such file.
  """
  found = []
  for path in paths:
    for number, line in enumerate(pathlib.Path(path).read_bytes().split(b'\n'), 1):
      if line.strip():
        found += _read_line(f'{path}:{number}', line)
  if not found:
    raise ValueError(f'no response in {", ".join(paths) or "no file"}')
  return found


def _read_line(where: str, line: bytes) -> list[Saved]:
  try:
    row = json.loads(line)
    answer = row['answer'] if 'answer' in row else row['gold']
    several = 'responses' in row
    texts = row['responses'] if several else [row['response']]
    rewards = row.get('rewards') if several else [row.get('reward')]
    rewards = rewards or [None] * len(texts)
    if len(rewards) != len(texts) or not all(isinstance(text, str) for text in texts):
      raise ValueError(f'{len(rewards)} rewards of {len(texts)} responses')
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(
      f'{where}: {type(error).__name__} {error}: expected {{"answer" (or "gold"), '
      '"responses" (texts) or "response"}; older rollouts hold no answer') from error
  return [Saved(f'{where}:{index}' if several else where, str(row.get('id', where)),
                answer, text, reward)
          for index, (text, reward) in enumerate(zip(texts, rewards, strict=True))]


def judge(saved: Sequence[Saved], grader: str, options: dict, workers: int,
          deadline_s: float) -> list[tuple[float, str]]:
  """Return a grader's reward and note ('', 'timeout' or 'error') on each response.

  Raises:
    ValueError: a grader that cannot be named so, or `saved` without rewards.
    RuntimeError: it does not load, or cannot give verdicts on this machine.
  """
  if grader == SAVED:
    if missing := [one.where for one in saved if one.reward is None]:
      raise ValueError(f'{missing[0]} holds no reward: give another grader than '
                       f'{SAVED!r}')
    return [(one.reward, '') for one in saved]
  with grading.Grader(grader, workers=workers, deadline_s=deadline_s,
                      options=options) as pool:
    verdicts = pool.submit(saved, [[one.text] for one in saved]).result()
  return [(reward, note) for (reward,), (note,) in zip(
    verdicts.rewards, verdicts.notes, strict=True)]


def counts(pairs: Sequence[Pair]) -> dict[str, int]:
  """Return how many responses are of each kind, differ, or failed a grader."""
  found = {kind: sum(pair.kind == kind for pair in pairs) for kind in KINDS.values()}
  found['rewards differ'] = sum(pair.a[0] != pair.b[0] for pair in pairs)
  for name in 'ab':
    for note in (grading.TIMEOUT, grading.ERROR):
      found[f'{name.upper()} {note}'] = sum(
        getattr(pair, name)[1] == note for pair in pairs)
  return found


def markdown(pairs: Sequence[Pair], graders: tuple[str, str], show: int,
             width: int) -> str:
  """Return as tables the counts, and `show` differences and failures of each kind."""
  lines = [f'A = {graders[0]}, B = {graders[1]}', '',
           '| | responses | share |', '| --- | ---: | ---: |']
  lines += [f'| {kind} | {count} | {count / len(pairs):.4f} |'
            for kind, count in [*counts(pairs).items(), ('all', len(pairs))]]
  differing = _ordered(pairs)
  shown = [pair for kind in KINDS.values() for pair in
           [pair for pair in differing if pair.kind == kind][:show]]
  if shown:
    lines += ['', '| | A | B | answer | response, its end | where |',
              '| --- | --- | --- | --- | --- | --- |']
  for pair in shown:
    cells = [pair.kind, _verdict(pair.a), _verdict(pair.b),
             _clip(_text(pair.saved.answer), width), _clip(pair.saved.text, -width),
             pair.saved.where]
    lines.append('| ' + ' | '.join(cells) + ' |')
  if len(differing) > len(shown):
    lines += ['', f'{len(differing) - len(shown)} more: raise --show={show}, or give '
              '--out=FILE.csv']
  return '\n'.join(lines)


def _ordered(pairs: Sequence[Pair]) -> list[Pair]:
  order = list(KINDS.values())
  return sorted((pair for pair in pairs if pair.shown),
                key=lambda pair: order.index(pair.kind))


def _row(pair: Pair) -> dict:
  return {'kind': pair.kind, 'a': pair.a[0], 'a_note': pair.a[1], 'b': pair.b[0],
          'b_note': pair.b[1], 'id': pair.saved.id, 'where': pair.saved.where,
          'answer': pair.saved.answer, 'response': pair.saved.text}


def write(path: str, pairs: Sequence[Pair], graders: tuple[str, str]) -> None:
  """Write every difference and failure whole: rows as CSV, or with counts as JSON."""
  rows = [_row(pair) for pair in _ordered(pairs)]
  with open(path, 'w', encoding='utf-8', errors='backslashreplace',
            newline='') as file:
    if path.endswith('.json'):
      json.dump({'a': graders[0], 'b': graders[1], 'responses': len(pairs),
                 'counts': counts(pairs), 'rows': rows}, file, indent=2)
      return
    writer = csv.DictWriter(file, ['kind', 'a', 'a_note', 'b', 'b_note', 'id', 'where',
                                   'answer', 'response'], lineterminator='\n')
    writer.writeheader()
    writer.writerows(row | {'answer': _text(row['answer'])} for row in rows)


def _text(answer) -> str:
  return answer if isinstance(answer, str) else json.dumps(answer)


def _verdict(verdict: tuple[float, str]) -> str:
  reward, note = verdict
  return f'{reward:.3g} ({note})' if note else f'{reward:.3g}'


def _clip(text: str, width: int) -> str:
  """Return the first `width` characters on one line of a table; the last if below 0."""
  part = text[:width] if width > 0 else text[width:]
  part = ''.join(letter if letter.isprintable() else ' ' for letter in part)
  part = ' '.join(part.split()).replace('|', r'\|')
  if len(text) <= abs(width):
    return part
  return f'{part}...' if width > 0 else f'...{part}'


def main(argv: list[str] | None = None) -> int:
  """Compare as the command line asks; return the exit status."""
  parser = argparse.ArgumentParser(
    prog='lpo_jax.tasks.audit', description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('files', nargs='+', metavar='FILE', help='JSON lines')
  parser.add_argument('--a', default=A, help=f'grader A; {A}')
  parser.add_argument('--b', default=B, help=f'grader B; {B}')
  for name in 'ab':
    parser.add_argument(f'--{name}_options', type=json.loads, default={},
                        metavar='JSON', help='keyword arguments of grader '
                        f'{name.upper()}, an object')
  parser.add_argument('--workers', type=int, default=2, help='processes; 2')
  parser.add_argument('--deadline_s', type=float, default=30.0,
                      help='seconds of one verdict; 30')
  parser.add_argument('--show', type=int, default=10,
                      help='differences shown of each kind; 10')
  parser.add_argument('--width', type=int, default=60,
                      help='characters shown of an answer or a response; 60')
  parser.add_argument('--out', help='file for every difference, whole: .csv or .json')
  asked = parser.parse_args(argv)
  graders = (asked.a, asked.b)
  try:
    if asked.out and not asked.out.endswith(('.csv', '.json')):
      raise ValueError(f'--out={asked.out}: must end in .csv or .json')
    if asked.show < 0 or asked.width < 1:
      raise ValueError(f'--show={asked.show}, --width={asked.width}: need show >= 0 '
                       'and width >= 1')
    saved = read(asked.files)
    verdicts = [judge(saved, grader, options, asked.workers, asked.deadline_s)
                for grader, options in zip(graders, (asked.a_options, asked.b_options),
                                           strict=True)]
    pairs = [Pair(*found) for found in zip(saved, *verdicts, strict=True)]
    if asked.out:
      write(asked.out, pairs, graders)
  except (ValueError, OSError, RuntimeError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  print(markdown(pairs, graders, asked.show, asked.width))
  return 0


if __name__ == '__main__':
  sys.exit(main())
