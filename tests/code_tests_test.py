"""Forms of tests, and how outputs are compared."""

import json

import pytest

from lpo_jax.tasks import code_tests


def _jobs(tests):
  return [(case.job, case.expected) for case in code_tests.read(tests)]


def test_equal_tests_in_every_form_are_equal_cases():
  pairs = {'inputs': ['1\n2', '3\n4'], 'outputs': ['3', '7'], 'fn_name': 'add'}
  rows = [{'input': i, 'output': o, 'fn_name': 'add'}
          for i, o in zip(pairs['inputs'], pairs['outputs'], strict=True)]
  lists = {'fn_name': 'add', 'inputs': [[1, 2], [3, 4]], 'outputs': [3, 7]}
  assert _jobs(pairs) == _jobs(json.dumps(pairs)) == _jobs(rows) == _jobs(lists)
  assert _jobs(pairs) == [({'name': 'add', 'arguments': [1, 2]}, 3),
                          ({'name': 'add', 'arguments': [3, 4]}, 7)]


def test_assertions_are_split_into_expression_and_value():
  cases = code_tests.read({'test_list': [
    'assert f(1) == (1, {2, 1})', 'assert not f(2)', 'assert f(3)',
    'assert abs(f(4) - 0.5) < 1e-3', 'assert math.isclose(f(5), 2.0, rel_tol=0.01)',
    'assert set(f(6)) == set((2, 1))'], 'test_imports': ['import math']})
  assert [case.job['expression'] for case in cases] == [
    'f(1)', 'f(2)', 'f(3)', 'f(4)', 'f(5)', 'set(f(6))']
  assert [case.expected for case in cases] == [
    [1, [1, 2]], False, True, 0.5, 2.0, [1, 2]]
  assert [case.tolerance for case in cases] == [None, None, None, 1e-3, 0.02, None]
  assert cases[0].job['setup'].strip() == 'import math'


def test_humaneval_calls_the_function_by_its_name():
  cases = code_tests.read({
    'entry_point': 'sq', 'test': 'def check(candidate):\n  assert True, "x"\n'
    '  assert candidate(candidate(2)) == 16, "y"\n'})
  assert [case.job['expression'] for case in cases] == ['sq(sq(2))']


@pytest.mark.parametrize('tests,words', [
  ('{', 'no JSON'), ({}, 'known'), ([], 'without tests'), (5, 'int'),
  ({'inputs': ['1'], 'outputs': []}, '1 inputs but 0'),
  ({'inputs': [], 'outputs': []}, 'without tests'), ([{'input': '1'}], 'output'),
  ({'inputs': ['x'], 'outputs': ['1'], 'fn_name': 'f'}, 'no JSON lines'),
  ({'test_list': ['assert f(1) == g(2)']}, 'no literal'),
  ({'test_list': ['f(1)']}, 'no assertion'), ({'test_list': ['assert (']}, 'Python'),
  ({'test': 'x = 1', 'entry_point': 'f'}, 'check'),
])
def test_tests_of_no_known_form_are_named(tests, words):
  with pytest.raises(ValueError, match=words):
    code_tests.read(tests)


def _passes(job, expected, output, **fields):
  case = code_tests.Case(job, expected, **fields)
  return code_tests.passes(case, output.encode('utf-8', 'surrogatepass'))


@pytest.mark.parametrize('expected,printed,right', [
  ('1 2\n3\n', '1  2 \n\n3', True), ('1 2\n3\n', '1 2 3', False),
  ('0.5', '0.500001', True), ('0.5', '0.5001', False), ('5', '5.0', False),
  ('0.5', '1/2', False), ('0.5', 'nan', False), ('1.0', '１.0', False), ('', '', True),
  ('', 'x', False), ('x', '', False), ('1.5', '1.5' + '0' * 100, False),
  ('100000000', '100000001', False), ('1.0', '1_0.0e-1', True),
])
def test_printed_text_is_compared_by_lines_and_words(expected, printed, right):
  assert _passes({'stdin': ''}, expected, printed) is right


@pytest.mark.parametrize('expected,returned,right', [
  (3, '3', True), (3, '3.0', True), (3, '"3"', False),
  (0.3, '0.30000000000000004', True),
  (0.3, '0.31', False), ([1, [2]], '[1, [2]]', True), ([1, 2], '[2, 1]', False),
  ({'a': 0.1}, '{"a": 0.1}', True), ({'a': 1}, '{"b": 1}', False), (None, 'null', True),
  (None, '', False), (None, 'nonsense', False), (3, '3\n3', False),
  (3, '[' * 10**6, False),
  (3, '9' * 10000, False), (0.5, 'NaN', False), (0.5, '1e999', False),
  (1, 'true', True),
])
def test_returned_values_are_compared_as_values(expected, returned, right):
  assert _passes({'name': 'f', 'arguments': []}, expected, returned) is right


def test_a_declared_tolerance_bounds_the_difference():
  assert _passes({'stdin': ''}, '100', '100.4', tolerance=0.5)
  assert not _passes({'stdin': ''}, '100', '100.6', tolerance=0.5)
  assert _passes({'expression': 'f()'}, 100, '99.6', tolerance=0.5)
  assert not _passes({'expression': 'f()'}, 100, '99.4', tolerance=0.5)
