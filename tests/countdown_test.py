"""The Countdown verifier: a corpus of verdicts, hostile and random text, traces."""

import json
import pathlib
import random
import time

import numpy as np
import pytest

from lpo_jax import tasks
from lpo_jax.tasks import countdown

_DATA = pathlib.Path(__file__).parent / 'data' / 'countdown'
_ROWS = [json.loads(line) for line in
         (_DATA / 'responses.jsonl').read_text(encoding='utf-8').splitlines()]
_MILLION = 1_000_000


def _quick_verify(*arguments, **options):
  """Return the verdict; fail where the best of three runs takes 50 ms."""
  seconds = []
  for _ in range(3):
    start = time.perf_counter()
    reward = countdown.verify(*arguments, **options)
    seconds.append(time.perf_counter() - start)
    if seconds[-1] < 0.05:
      break
  assert min(seconds) < 0.05
  return reward


@pytest.mark.parametrize('row', _ROWS, ids=[row['why'] for row in _ROWS])
def test_corpus_response_gets_its_reward(row):
  expected = 0.1 if row['reward'] == 'format' else row['reward']
  reward = _quick_verify(row['numbers'], row['target'], row['response'], 0.1)
  assert isinstance(reward, float)
  assert reward == expected
  strict = _quick_verify(row['numbers'], row['target'], row['response'])
  assert strict == (1.0 if expected == 1 else 0.0)


def test_corpus_is_large_and_every_row_says_why():
  assert len(_ROWS) >= 150
  assert len({row['why'] for row in _ROWS}) == len(_ROWS)
  assert {row['reward'] for row in _ROWS} == {0, 1, 'format'}


_RIGHT = '(14+4)*2'
_HUGE = {
  'a right answer after a million characters':
    (f'{"x" * _MILLION}<answer>{_RIGHT}</answer>', 1.0),
  'a right answer before a million characters':
    (f'<answer>{_RIGHT}</answer>{"x" * _MILLION}', 1.0),
  'a right answer among a million spaces':
    (f'<answer>{" " * _MILLION}{_RIGHT}{" " * _MILLION}</answer>', 1.0),
  'an answer of a million characters': (f'<answer>{"1+" * 500_000}1</answer>', 0.0),
  '50000-fold nesting': (f'<answer>{"(" * 50_000}1{")" * 50_000}</answer>', 0.0),
  '50000 open parentheses': (f'<answer>{"(" * 50_000}</answer>', 0.0),
  '50000 signs': (f'<answer>{"-" * 50_000}1</answer>', 0.0),
  '50000 nested signs': (f'<answer>{"(-" * 50_000}1{")" * 50_000}</answer>', 0.0),
  'the largest nesting within the bounds':
    (f'<answer>{"(" * 511}1{")" * 511}</answer>', 0.1),
  '10**100000 written out': (f'<answer>1{"0" * 100_000}</answer>', 0.0),
  'a tower of powers': (f'<answer>{"9**" * 100}9</answer>', 0.0),
  'many long factors': (f'<answer>{"*".join(["9" * 12] * 300)}</answer>', 0.1),
  'many long divisors': (f'<answer>{"/".join(["9" * 12] * 300)}</answer>', 0.1),
  'a million opening tags': ('<answer>' * (_MILLION // 8), 0.0),
  'a million closing tags': ('</answer>' * (_MILLION // 9), 0.0),
  'a million empty answers': ('<answer></answer>' * (_MILLION // 17), 0.0),
  'opening tags, then a right answer':
    (f'{"<answer>" * 100_000}{_RIGHT}</answer>', 1.0),
  'almost tags': ('<answer' * 140_000 + '</answer' * 100_000, 0.0),
  'a million NULs': (f'<answer>{chr(0) * _MILLION}</answer>', 0.0),
  'lone surrogates': (f'<answer>{chr(0xd800) * 1000}</answer>', 0.0),
  'a million digits of another script': (f'<answer>{"٣" * _MILLION}</answer>', 0.0),
}


@pytest.mark.parametrize('name', _HUGE)
def test_huge_response_gets_its_reward_in_time(name):
  response, expected = _HUGE[name]
  assert _quick_verify([14, 4, 2], 36, response, 0.1) == expected
  task = countdown.Countdown()
  problem = task.problems('train')[0]
  start = time.perf_counter()
  task.answer(problem, response)
  task.diagnostics(problem, response, 1.0)
  assert time.perf_counter() - start < 0.5


_ALPHABET = (*map(str, range(100)), *'+-*/()=,:>', '<answer>', '</answer>', '<pad>',
             '<unk>', '\x00', '１', '−', '\n', '<', 'answer>', '**', '//', '.', 'e')


def test_random_token_strings_get_one_of_three_rewards():
  rng = random.Random(3)
  for _ in range(20_000):
    words = rng.choices(_ALPHABET, k=rng.randrange(0, 25))
    response = rng.choice(['', ' ']).join(words)
    if rng.random() < 0.5:
      response = f'<answer> {response} </answer>'
    reward = countdown.verify([14, 4, 2], 36, response, 0.25)
    assert reward in (0.0, 0.25, 1.0)
    countdown.trace_valid([14, 4, 2], 36, response)


def test_numbers_may_be_numpy_and_in_any_order():
  response = '<answer>(14+4)*2</answer>'
  assert countdown.verify(np.array([2, 14, 4]), np.int64(36), response) == 1.0


_ANSWER = ' <answer> ( 14 + 4 ) * 2 </answer>'


@pytest.mark.parametrize('steps,valid', [
  ('14 + 4 = 18 , 18 * 2 = 36', True),
  ('14+4=18, 18*2=36', True),
  ('<think>14 + 4 = 18 , 18 * 2 = 36</think>', True),
  ('14 * 2 = 28 , 4 + 28 = 32', False),  # right steps, another target
  ('14 + 4 = 19 , 18 * 2 = 36', False),  # wrong sum
  ('14 + 4 = 18 , 17 * 2 = 34', False),  # an operand not at hand
  ('14 + 4 = 18 , 18 + 18 = 36', False),  # an operand used twice
  ('14 + 4 = 34 , 34 + 2 = 36', False),  # a wrong sum that ends on the target
  ('14 + 4 = 18 , 9 * 2 = 18 , 18 + 18 = 36', False),  # a 9 from nowhere
  ('18 * 2 = 36', False),  # a step left out
  ('14 + 4 = 18', False),  # not finished
  ('14 + 4 = 18 , 18 * 2 = 36 ,', False),  # an empty step
  ('14 / 0 = 18 , 18 * 2 = 36', False),  # division by zero
  ('14 - 4 = 10 , 10 / 2 = 5', False),
  ('4 / 2 = 2 , 14 * 2 = 28', False),
  ('', False),
])
def test_trace_is_valid_only_when_every_step_holds(steps, valid):
  assert countdown.trace_valid([14, 4, 2], 36, steps + _ANSWER) is valid


def test_trace_may_pass_through_fractions_and_negatives():
  steps = '8 / 3 = 8/3 , 3 - 8/3 = 1/3 , 8 / 1/3 = 24 <answer>24</answer>'
  assert countdown.trace_valid([3, 3, 8, 8], 24, steps)
  assert countdown.trace_valid([2, 5, 9], 6, '2 - 5 = -3 , -3 + 9 = 6<answer></answer>')


def test_diagnostics_count_rewarded_responses_only():
  task = tasks.get('countdown')
  problem = task.problems('train')[0]
  assert task.diagnostics(problem, 'x', 0.0) == {'trace_valid_frac': (0.0, 0.0)}
  assert task.diagnostics(problem, 'x', 1.0) == {'trace_valid_frac': (0.0, 1.0)}


def test_equal_answers_vote_together():
  task = tasks.get('countdown')
  def key(text):
    return task.answer(None, f'<answer>{text}</answer>')
  assert key('(14+4)*2') == key(' 2 * ( 4 + 14 ) ')
  assert key('14-4') != key('4-14')
  assert key('x') is None
  assert task.answer(None, 'no answer') is None


@pytest.mark.parametrize(('response', 'prefixes'), [
  ('14 + 4 = 18 , 18 * 2 = 36' + _ANSWER,
   ['14 + 4 = 18', '14 + 4 = 18 , 18 * 2 = 36']),
  ('14+4=18,18*2=36', ['14+4=18', '14+4=18,18*2=36']),  # cut before its answer
  ('<think> 14 + 4 = 19 , 4 * 2</think>' + _ANSWER, ['<think> 14 + 4 = 19']),  # wrong
  ('14 + 4 = 18 , so 18 * 2 = 36 , 1 + 1 = 2' + _ANSWER, ['14 + 4 = 18']),
  ('8 / 3 = 8/3 , 3 - 8/3 = 1/3</think>\n' + _ANSWER,
   ['8 / 3 = 8/3', '8 / 3 = 8/3 , 3 - 8/3 = 1/3']),
  ('well, 14 + 4 = 18' + _ANSWER, []), ('', []), (_ANSWER, []), (',,,', []),
])
def test_steps_end_where_the_written_ones_do(response, prefixes):
  ends = tasks.get('countdown').step_ends(None, response)
  assert [response[:end] for end in ends] == prefixes


@pytest.mark.parametrize('name', _HUGE)
def test_steps_of_a_huge_response_are_found_in_time(name):
  start = time.perf_counter()
  tasks.get('countdown').step_ends(None, _HUGE[name][0])
  assert time.perf_counter() - start < 0.5
