"""Verdicts per second: math beside math-verify alone, programs inside bubblewrap.

python -m benchmarks.grading --math=FILE --code=FILE [--workers=2] [--reps=3]

FILE is JSON lines: `answer` with `extra.solution` or `solution` (MATH's form) for math,
`tests` and `reference_solution` for programs. Math: 1,024 solutions that end in their
answer, against math-verify's own parse and verify on them in as many processes; then
the same with every 16th answer replaced by a hostile one of `tests/corpora`. Programs:
256 reference solutions times all their tests. Starting the processes is not counted.
"""

import argparse
import concurrent.futures
import dataclasses
import itertools
import json
import multiprocessing
import pathlib
import statistics
import sys
import time
from typing import Any

from lpo_jax.tasks import grading

RESPONSES, PROGRAMS = 1024, 256
SLOWEST, LONGEST_S = 2.5, 60.0  # x math-verify alone; seconds for the programs
HOSTILE_EVERY = 16
_CORPUS = pathlib.Path(__file__).parents[1] / 'tests' / 'corpora' / 'math.jsonl'


@dataclasses.dataclass(frozen=True)
class Item:
  """What the pool reads of a problem."""

  answer: Any
  id: str


def main() -> None:
  """Measure what the command line names; exit 1 where a bound is missed."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--math', help='problems with solutions')
  parser.add_argument('--code', help='problems with tests and reference solutions')
  parser.add_argument('--workers', type=int, default=2)
  parser.add_argument('--reps', type=int, default=3, help='the median counts')
  args = parser.parse_args()
  if not (args.math or args.code):
    parser.error('nothing to measure: name --math=FILE or --code=FILE')
  print('| what | items | seconds | items/s | bound | within |\n'
        '|---|---:|---:|---:|---|---|')
  rows = (_math(args) if args.math else []) + (_code(args) if args.code else [])
  print(f'\nMedian of {args.reps}, {args.workers} workers.')
  sys.exit(0 if all(rows) else 1)


def _rows(path: str, count: int) -> list[dict]:
  """Return `count` rows of a file, from its start again where it is too short."""
  rows = [json.loads(line) for line in
          pathlib.Path(path).read_text(encoding='utf-8').splitlines()]
  return list(itertools.islice(itertools.cycle(rows), count))


def _math(args) -> list[bool]:
  pairs = [(row['answer'], row.get('solution') or row['extra']['solution'])
           for row in _rows(args.math, RESPONSES)]
  alone = _math_verify_alone(pairs, args)
  _report('math-verify alone, easy', RESPONSES, alone)
  items = [Item(gold, str(i)) for i, (gold, _) in enumerate(pairs)]
  texts = [[solution] for _, solution in pairs]
  within = []
  corpus = (json.loads(line) for line in _CORPUS.read_text().splitlines())
  hostile = [''.join(unit * times for unit, times in row['parts'])
             for row in corpus if 'parts' in row and not row['reward']]
  mixed = [[hostile[i // HOSTILE_EVERY % len(hostile)]] if i % HOSTILE_EVERY == 0
           else row for i, row in enumerate(texts)]
  for name, batch in (('easy', texts), ('1 in 16 hostile', mixed)):
    seconds, rewards = _graded('lpo_jax.tasks.math_verdict:judge', items, batch, args)
    wrong = sum(reward != (0.0 if batch is mixed and i % HOSTILE_EVERY == 0 else 1.0)
                for i, (reward,) in enumerate(rewards))
    bound = f'{SLOWEST} x {alone:.2f} s'
    within.append(_report(f'lpo_jax math, {name}', RESPONSES, seconds, bound,
                          SLOWEST * alone, wrong))
  return within


def _code(args) -> list[bool]:
  rows = _rows(args.code, PROGRAMS)
  items = [Item(row['tests'], row['id']) for row in rows]
  texts = [[f'```python\n{row["reference_solution"]}\n```'] for row in rows]
  seconds, rewards = _graded('lpo_jax.tasks.code_verdict:judge', items, texts, args)
  wrong = sum(reward != 1.0 for reward, in rewards)
  return [_report('lpo_jax code, bubblewrap', PROGRAMS, seconds, f'{LONGEST_S:.0f} s',
                  LONGEST_S, wrong)]


def _graded(verify: str, items, texts, args) -> tuple[float, list[list[float]]]:
  """Return the median seconds of grading a batch, and its rewards."""
  with grading.Grader(verify, workers=args.workers, deadline_s=60.0) as grader:
    warm = max(8, 4 * args.workers)
    symbols = [Item('x+1', str(i)) for i in range(warm)]
    if verify.endswith('math:judge'):
      grader.submit(symbols, [['\\boxed{1+x}']] * warm).result()
    else:
      grader.submit(items[:warm], texts[:warm]).result()
    seconds = []
    for _ in range(args.reps):
      start = time.perf_counter()
      verdicts = grader.submit(items, texts).result()
      seconds.append(time.perf_counter() - start)
  return statistics.median(seconds), verdicts.rewards


def _math_verify_alone(pairs, args) -> float:
  """Return the median seconds of math-verify's own functions in as many processes."""
  context = multiprocessing.get_context('spawn')
  with concurrent.futures.ProcessPoolExecutor(args.workers, context) as pool:
    list(pool.map(_alone, pairs[:16 * args.workers], chunksize=8))
    seconds = []
    for _ in range(args.reps):
      start = time.perf_counter()
      list(pool.map(_alone, pairs, chunksize=16))
      seconds.append(time.perf_counter() - start)
  return statistics.median(seconds)


def _alone(pair: tuple[str, str]) -> bool:
  import math_verify

  gold, solution = pair
  return math_verify.verify(math_verify.parse(f'${gold}$'), math_verify.parse(solution))


def _report(name: str, items: int, seconds: float, bound: str = '',
            limit: float | None = None, wrong: int = 0) -> bool:
  """Print one row; return whether it is within its bound and right."""
  within = wrong == 0 and (limit is None or seconds <= limit)
  verdict = '' if limit is None else 'yes' if within else f'NO ({wrong} wrong)'
  print(f'| {name} | {items} | {seconds:.2f} | {items / seconds:.0f} | {bound} | '
        f'{verdict} |', flush=True)
  return within


if __name__ == '__main__':
  main()
