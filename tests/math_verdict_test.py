"""The math verdict against a corpus of right, wrong and hostile responses."""

import json
import pathlib
import random
import time

import pytest

from lpo_jax import tasks
from lpo_jax.tasks import math_verdict

_ROWS = [json.loads(line) for line in (
  pathlib.Path(__file__).parent / 'corpora' / 'math.jsonl').read_text().splitlines()]


def _response(row):
  """Return a row's response, spelled out or as (unit, times) parts."""
  if 'response' in row:
    return row['response']
  return ''.join(unit * times for unit, times in row['parts'])


@pytest.fixture(scope='module', autouse=True)
def _warm():
  assert math_verdict.verify('x+1', '\\boxed{1+x}') == 1.0


@pytest.mark.parametrize('row', _ROWS, ids=[row['why'] for row in _ROWS])
def test_corpus_response_gets_its_verdict_in_time(row):
  start = time.perf_counter()
  verdict = tasks.math.verify(row['gold'], _response(row))
  assert time.perf_counter() - start < 10
  assert isinstance(verdict, float)
  assert verdict == row['reward']


def test_corpus_is_large_and_every_row_says_why():
  assert len(_ROWS) >= 200
  assert len({row['why'] for row in _ROWS}) == len(_ROWS)


def test_hostile_responses_hardly_ever_reach_the_deadline():
  start = time.perf_counter()
  for row in _ROWS:
    if 'parts' in row:
      math_verdict.verify(row['gold'], _response(row))
  hostile = sum('parts' in row for row in _ROWS)
  assert hostile >= 100
  assert time.perf_counter() - start < 60


_PIECES = ('\\boxed', '{', '}', '\\frac', '1', '23', ',', '^', '_', '\\sqrt', '(', ')',
           '\\text', 'x', ' ', '\\%', '$', '\\', '-', '.', '\\left', '\\right', '!',
           '#### ', '\n', '\x00', '\ud800', 'é', '\\circ', '=', '\\{', '\\}', '|')


def test_random_text_never_raises():
  rng = random.Random(5)
  for _ in range(300):
    text = ''.join(rng.choices(_PIECES, k=rng.randrange(30)))
    for response in (text, f'\\boxed{{{text}}}'):
      for gold in ('5', '(1,2)'):
        assert math_verdict.verify(gold, response) in (0.0, 1.0)


def test_the_last_closed_box_counts():
  boxed = math_verdict.boxed
  assert boxed('\\boxed{1} \\boxed{2}') == '2'
  assert boxed('\\boxed{1} \\boxed{2') == '1'
  assert boxed('\\boxed{\\frac{1}{2}}') == '\\frac{1}{2}'
  assert boxed('\\boxed 7') == '7'
  assert boxed('no box') is None


def test_easy_answers_need_no_symbols(monkeypatch):
  def never(gold, answer):
    raise AssertionError(f'{gold} and {answer} went to math-verify')
  monkeypatch.setattr(math_verdict._comparer, 'equal', never)
  for gold, answer, reward in [
      ('18', '18', 1.0), ('18', '\\$18.00', 1.0), ('\\frac12', '0.5', 1.0),
      ('10^{-30}', '10^{-31}', 0.0), ('(1,2)', '(1, 2)', 1.0), ('1,2', '2,1', 1.0),
      ('\\text{(C)}', 'C', 1.0), ('\\text{east}', 'west', 0.0), ('5', '9^{9^9}', 0.0),
      ('p-q', 'p - q', 1.0)]:
    assert math_verdict.verify(gold, f'\\boxed{{{answer}}}') == reward, (gold, answer)


def test_a_number_may_be_the_gold():
  assert math_verdict.verify(5, '\\boxed{5.0}') == 1.0
  assert math_verdict.verify(0.5, '\\boxed{\\frac{1}{2}}') == 1.0
