"""Programming problem sets: where they live, their columns, and how they are asked.

Training and evaluation as in arXiv:2605.06139 (D.2): the programs of Eurus-2-RL
(arXiv:2502.01456) with 8 samples at temperature 0.6, asked by the set's own messages,
system prompt included. Also APPS, HumanEval and MBPP, asked by a request of ours.
Columns are known by their names, so a local file in any of these forms loads the same.
"""

import json

from lpo_jax.tasks import code_tests, problem_sets
from lpo_jax.tasks.problem_sets import Dropped, ProblemSet, Question

_T = 0.6
_EURUS = 'PRIME-RL/Eurus-2-RL-Data'
SETS = {
  'eurus_code': ProblemSet(_EURUS, 'train'),
  'eurus_code_validation': ProblemSet(_EURUS, 'validation', '', 8, _T),
  'apps': ProblemSet('codeparrot/apps', 'train'),
  'apps_test': ProblemSet('codeparrot/apps', 'test', '', 1, _T),
  'humaneval': ProblemSet('openai/openai_humaneval', 'test', '', 1, _T),
  'mbpp': ProblemSet('google-research-datasets/mbpp', 'train', 'full'),
  'mbpp_test': ProblemSet('google-research-datasets/mbpp', 'test', 'full', 1, _T),
}

PROMPT = ('{question}\n\nSolve this in Python. End with the whole program in a block '
          'fenced by ```python and ```.')
_STDIN = 'It reads from standard input and prints its result.'
_CALL = 'Begin the function exactly so:\n{code}'
_COMPLETE = 'Complete this function, and give it whole:\n\n{code}'
_EXAMPLES = 'It must pass these tests:\n{tests}'


def read(row: dict) -> Question:
  """Return what a row asks; the answer is its tests, as JSON text.

  Raises:
    Dropped: it has no tests, tests that cannot be run, or another subject.
    ValueError: columns of no form that is known; lists them.
  """
  if 'reward_model' in row:
    if row.get('ability') not in (None, 'code'):
      raise Dropped('not programs')
    messages = [{'role': m['role'], 'content': m['content']} for m in row['prompt']]
    tests = _tests(row['reward_model'].get('ground_truth'))
    return Question(messages[-1]['content'], messages, tests)
  if 'entry_point' in row and 'test' in row:  # HumanEval
    code = row['prompt']
    solution = row.get('canonical_solution')
    tests = {'test': row['test'], 'entry_point': row['entry_point']}
    return _asked(_COMPLETE.format(code=code.strip()), tests,
                  None if solution is None else code + solution)
  if 'test_list' in row:  # MBPP
    names = ('test_list', 'test_setup_code', 'test_imports', 'challenge_test_list')
    tests = {name: row[name] for name in names if row.get(name)}
    text = row.get('text') or row.get('prompt') or ''
    shown = _EXAMPLES.format(tests='\n'.join(row['test_list'][:3]))
    return _asked(f'{text}\n{shown}', tests, row.get('code'))
  if 'question' not in row:
    raise ValueError(
      'a problem has prompt and reward_model (Eurus), question (APPS), test and '
      f'entry_point (HumanEval) or test_list (MBPP); the columns are {sorted(row)}')
  tests = row.get('input_output') or row.get('tests')
  starter = (row.get('starter_code') or '').strip()
  question, how = row['question'].strip(), ''
  if starter and starter not in question:
    how = _CALL.format(code=starter)
  elif not starter and tests and 'fn_name' not in tests:
    how = _STDIN
  return _asked(f'{question}\n\n{how}', tests, _solution(row))


def _asked(text: str, tests, solution: str | None) -> Question:
  prompt = [{'role': 'user', 'content': PROMPT.format(question=text.strip())}]
  return Question(text, prompt, _tests(tests), solution)


def _tests(tests) -> str:
  """Return tests as JSON text, once they have been read."""
  if not tests:
    raise Dropped(problem_sets.NO_ANSWER)
  text = tests if isinstance(tests, str) else json.dumps(tests)
  try:
    code_tests.read(text)
  except ValueError:
    raise Dropped('tests of no known form') from None
  return text


def _solution(row: dict) -> str | None:
  """Return a program that passes: the reference, or the first of APPS' list."""
  if row.get('reference_solution'):
    return row['reference_solution']
  try:
    return json.loads(row.get('solutions') or '[]')[0]
  except (ValueError, IndexError):
    return None
