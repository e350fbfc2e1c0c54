"""What math-verify may see: MATH's own answers may, towers and bombs may not."""

import json
import pathlib
import time

import pytest

from lpo_jax.tasks import math_guard

_ROWS = [json.loads(line) for line in (
  pathlib.Path(__file__).parent / 'corpora' / 'math.jsonl').read_text().splitlines()]


def test_every_gold_of_the_corpus_may_be_answered_in_its_own_form():
  golds = {row['gold'] for row in _ROWS} - {'9^{9^{9^9}}'}
  assert [gold for gold in golds if not math_guard.is_tame(gold, gold)] == []


@pytest.mark.parametrize('text', [
  'x^{9^9}', 'x+9^{9^{9}}', '9^9^9x', 'x+1000000!', '(x+1)^{999}', 'x!!!', '(9!)!x',
  'x+\\binom{10000}{5000}', '\\Gamma(10^9)x', '\\sum_{k=1}^n k', '\\int_0^1 x dx',
  '(' * 6 + 'x' + ')' * 6, '{' * 11 + 'x' + '}' * 11, 'x' * 41, '9' * 100 + 'x',
  'x=' * 6, 'x,' * 40, '----x', '|' * 12, '\\sin' * 9 + 'x', 'x+1' * 101,
  '\\begin{pmatrix}x\\end{pmatrix}^2', 'x^{', 'x^{{2}', '\\frac{x}' * 21,
])
def test_wild_answers_are_refused(text):
  assert not math_guard.is_tame(text, 'y')


def test_an_answer_may_hold_what_its_gold_holds():
  assert not math_guard.is_tame('(x+1)^{100}', 'y')
  assert math_guard.is_tame('(x+1)^{100}', '(1+x)^{100}')
  assert math_guard.is_tame('\\sum_k k', '\\sum_{k} k')


def test_a_variable_cannot_answer_a_number():
  assert not math_guard.is_tame('5x', '5')
  assert math_guard.is_tame('x=\\sqrt{25}', '5')
  assert math_guard.is_tame('\\log_2 32', '5')


def test_a_brace_closes_where_it_is_balanced_and_not_escaped():
  assert math_guard.closing('{a{b}c}d', 0, 99) == 6
  assert math_guard.closing('{a\\}b}', 0, 99) == 5
  assert math_guard.closing('{a{b}', 0, 99) is None
  assert math_guard.closing('{abc}', 0, 3) is None


def test_the_guard_takes_no_time():
  for unit in ('(', '^', '!', '9', 'x^', '^{', '\\frac', '{', '1!', ' '):
    text = unit * (math_guard.MAX_SYMBOLIC // len(unit))
    start = time.perf_counter()
    math_guard.is_tame(text, 'y')
    assert time.perf_counter() - start < 0.1, unit
