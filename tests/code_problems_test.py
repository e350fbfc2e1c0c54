"""Every set's own columns give the question and tests that can be run."""

import json
import shutil

import pytest

from lpo_jax.tasks import code_problems, code_tests, code_verdict, problem_sets

KIND = 'bubblewrap' if shutil.which('bwrap') else 'rlimits'
_STDIN = {'inputs': ['1\n', '2\n'], 'outputs': ['2\n', '4\n']}
_CALL = {'fn_name': 'f', 'inputs': [[1], [2]], 'outputs': [2, 4]}
_MESSAGES = [{'role': 'system', 'content': 'S'}, {'role': 'user', 'content': 'Double.'}]
_CASES = {  # form -> row, a program that passes, whether the row has its own
  'eurus, stdin': ({'prompt': _MESSAGES, 'ability': 'code', 'data_source': 'taco',
                    'reward_model': {'ground_truth': json.dumps(_STDIN)}},
                   'print(2*int(input()))', False),
  'eurus, call': ({'prompt': _MESSAGES, 'ability': 'code',
                   'reward_model': {'ground_truth': json.dumps(_CALL)}},
                  'def f(x):\n  return 2 * x', False),
  'apps': ({'question': 'Double.', 'starter_code': '', 'input_output':
            json.dumps(_STDIN), 'solutions': json.dumps(['print(2*int(input()))'])},
           'print(2*int(input()))', True),
  'apps, call': ({'question': 'Double.', 'starter_code': 'def f(x):', 'input_output':
                  json.dumps(_CALL), 'solutions': ''}, 'def f(x): return x + x', False),
  'humaneval': ({'task_id': 'HumanEval/0', 'prompt': 'def f(x):\n  """Double."""\n',
                 'canonical_solution': '  return 2 * x\n', 'entry_point': 'f',
                 'test': 'def check(candidate):\n  assert candidate(1) == 2\n'},
                'def f(x): return 2 * x', True),
  'mbpp': ({'task_id': 1, 'text': 'Double.', 'code': 'def f(x): return 2*x',
            'test_list': ['assert f(1) == 2', 'assert f(2) == 4'],
            'test_setup_code': '', 'challenge_test_list': []},
           'def f(x): return 2*x', True),
  'mbpp sanitized': ({'prompt': 'Double.', 'code': 'def f(x): return 2*x',
                      'test_imports': ['import math'], 'test_list': ['assert f(1)==2']},
                     'def f(x): return 2*x', True),
  'local': ({'id': 'a', 'kind': 'stdin', 'question': 'Double.', 'tests': _STDIN,
             'reference_solution': 'print(2*int(input()))', 'starter_code': ''},
            'print(2*int(input()))', True),
}


@pytest.mark.parametrize('form', _CASES)
def test_a_row_of_each_form_is_asked_and_judged(form):
  row, program, solved = _CASES[form]
  found = code_problems.read(row)
  assert 'Double.' in found.prompt[-1]['content']
  assert isinstance(found.answer, str)  # as a grading process gets it
  assert code_verdict.verify(found.answer, program, sandbox=KIND) == 1.0
  assert code_verdict.verify(found.answer, 'print(5)', sandbox=KIND) == 0.0
  assert (found.solution is not None) == solved
  if solved:
    assert code_verdict.verify(found.answer, found.solution, sandbox=KIND) == 1.0


def test_eurus_keeps_its_own_messages_and_other_sets_get_a_request():
  assert code_problems.read(_CASES['eurus, stdin'][0]).prompt == _MESSAGES
  for form in ('apps', 'mbpp', 'humaneval', 'local'):
    [message] = code_problems.read(_CASES[form][0]).prompt
    assert '```python' in message['content'], form


def test_a_prompt_says_how_the_program_is_called():
  def asked(form):
    return code_problems.read(_CASES[form][0]).prompt[0]['content']
  assert 'standard input' in asked('apps') and 'def f(x):' in asked('apps, call')
  assert 'assert f(1) == 2' in asked('mbpp')
  assert 'standard input' not in asked('apps, call')


@pytest.mark.parametrize(('row', 'reason'), [
  (_CASES['eurus, stdin'][0] | {'ability': 'math'}, 'not programs'),
  ({'question': 'Q', 'input_output': ''}, 'no answer'),
  ({'question': 'Q', 'input_output': '{"inputs": [], "outputs": []}'}, 'no known form'),
  ({'test_list': ['assert f(x) == y'], 'text': 'T'}, 'no known form')])
def test_a_row_that_cannot_be_judged_is_dropped_for_its_reason(row, reason):
  with pytest.raises(problem_sets.Dropped, match=reason):
    code_problems.read(row)


def test_unknown_columns_are_listed():
  with pytest.raises(ValueError, match=r"columns are \['text'\]"):
    code_problems.read({'text': 'T'})


def test_no_expected_output_is_in_a_request():
  found = code_problems.read(_CASES['apps'][0])
  for case in code_tests.read(found.answer):
    assert case.expected.strip() not in found.prompt[0]['content']
