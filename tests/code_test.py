"""The task of programs: verdicts, votes, demonstrations, and a sandbox that must be."""

import json
import shutil

import pytest

from lpo_jax import tasks
from lpo_jax.tasks import sandbox

KIND = 'bubblewrap' if shutil.which('bwrap') else 'rlimits'
_ROW = {'question': 'Double.', 'input_output': json.dumps(
  {'inputs': ['1\n', '0\n'], 'outputs': ['2\n', '0\n']}),
  'solutions': json.dumps(['print(2*int(input()))\n'])}


@pytest.fixture
def options(tmp_path):
  for name, question in (('train', 'Double.'), ('test', 'Double it.')):
    (tmp_path / f'{name}.jsonl').write_text(
      json.dumps(_ROW | {'question': question}) + '\n')
  return {'train': str(tmp_path / 'train.jsonl'), 'sandbox': KIND,
          'evals': (str(tmp_path / 'test.jsonl'),)}


def test_the_reward_is_the_share_of_tests_passed_or_all_or_nothing(options):
  task = tasks.get('code', **options)
  [problem] = task.problems('train')
  half = '```python\nprint(2)\n```'
  assert task.verify(problem, half) == 0.5
  assert tasks.get('code', all_or_nothing=True, **options).verify(problem, half) == 0.0
  assert task.verify(problem, task.demonstration(problem)) == 1.0


def test_the_pool_judges_with_the_tasks_own_options(options):
  for extra, wanted in (({}, 0.5), ({'all_or_nothing': True}, 0.0)):
    task = tasks.get('code', **options, **extra)
    problems = list(task.problems('train'))
    task.start(workers=1, deadline_s=30.0)
    try:
      found = task.submit(problems, [['print(2)', task.demonstration(problems[0])]])()
    finally:
      task.stop()
    assert found.rewards == [[wanted, 1.0]]


def test_equal_programs_vote_together_and_no_program_does_not_vote(options):
  task = tasks.get('code', **options)
  one, other = (f'Text.\n```python\n{body}\n```' for body in (
    'print(1) \n\nprint(2)', 'print(1)\nprint(2)'))
  assert task.answer(None, one) == task.answer(None, other) == 'print(1)\nprint(2)'
  assert task.answer(None, 'print(1)') is None
  assert task.answer(None, '```python\n\n```') is None


def test_a_problem_without_a_solution_has_no_demonstration(options, tmp_path):
  path = tmp_path / 'bare.jsonl'
  path.write_text(json.dumps({name: _ROW[name] for name in
                              ('question', 'input_output')}) + '\n')
  task = tasks.get('code', **options | {'train': str(path)})
  with pytest.raises(NotImplementedError, match='no demonstrations'):
    task.demonstration(task.problems('train')[0])


def test_a_missing_sandbox_is_refused_with_the_remedy(options, monkeypatch):
  sandbox._failure.cache_clear()
  monkeypatch.setattr(sandbox.shutil, 'which', lambda name: None)
  task = tasks.get('code', **options | {'sandbox': 'bubblewrap'})
  try:
    with pytest.raises(ValueError, match='apt-get install bubblewrap.*rlimits'):
      task.start(workers=1, deadline_s=30.0)
  finally:
    sandbox._failure.cache_clear()


def test_an_unknown_sandbox_or_a_limit_that_is_none_is_refused(options):
  with pytest.raises(ValueError, match="'docker': known: bubblewrap, rlimits"):
    tasks.get('code', **options | {'sandbox': 'docker'})
  with pytest.raises(ValueError, match='memory_mib=0'):
    tasks.get('code', memory_mib=0, **options)
