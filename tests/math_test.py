"""The task of mathematics: its verdict by the names other programs use, votes, pool."""

import json
import sys

import pytest

from lpo_jax import tasks
from lpo_jax.tasks import math_verdict


def test_the_verdict_is_the_one_of_math_verdict():
  assert tasks.math.verify is math_verdict.verify
  assert tasks.math.judge('5', '\\boxed{5}') == (1.0, '')


@pytest.fixture
def options(tmp_path):
  for name, question in (('train', 'What is 1/2?'), ('test', 'What is 2/4?')):
    (tmp_path / f'{name}.jsonl').write_text(
      json.dumps({'problem': question, 'answer': '\\frac{1}{2}'}) + '\n')
  return {'train': str(tmp_path / 'train.jsonl'),
          'evals': (str(tmp_path / 'test.jsonl'),)}


def test_equal_numbers_vote_together_and_no_box_does_not_vote(options):
  task = tasks.get('math', **options)
  votes = [task.answer(None, f'so \\boxed{{{text}}}') for text in (
    '\\frac{1}{2}', '0.5', '\\dfrac{2}{4}', '$1/2$', 'x+1', 'x + 1', '50\\%')]
  assert len(set(votes[:4])) == 1
  assert votes[4] == votes[5] and len(set(votes[3:])) == 3
  assert task.answer(None, '0.5') is None and task.answer(None, '\\boxed{}') is None
  huge = task.answer(None, '\\boxed{2^{60000}}')
  assert huge is not None and huge != task.answer(None, '\\boxed{2^{60001}}')


def test_the_gold_answer_in_a_box_earns_all(options):
  task = tasks.get('math', **options)
  [problem] = task.problems('train')
  assert task.verify(problem, task.demonstration(problem)) == 1.0
  assert task.verify(problem, '0.5') == 0.0


def test_a_missing_math_verify_is_refused_with_the_remedy(options, monkeypatch):
  monkeypatch.setitem(sys.modules, 'math_verify', None)
  with pytest.raises(ValueError, match='pip install math-verify'):
    tasks.get('math', **options).start(workers=1, deadline_s=10.0)
