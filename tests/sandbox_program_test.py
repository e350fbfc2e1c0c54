"""A test's own process: what it returns as JSON, and what it has given up."""

import collections
import json
import shutil

import pytest

from lpo_jax.tasks import sandbox, sandbox_program

KIND = 'bubblewrap' if shutil.which('bwrap') else 'rlimits'


@pytest.mark.parametrize('value,plain', [
  ((1, (2, [3])), [1, [2, [3]]]), ({2, 1}, [1, 2]),
  ({1: {'a': (1,)}}, {'1': {'a': [1]}}),
  (frozenset('ba'), ['a', 'b']), (collections.deque([1]), [1]), (range(2), [0, 1]),
  ({(1, 2): 3}, {'(1, 2)': 3}), (True, True), (None, None), ({1, 'a'}, [1, 'a']),
])
def test_values_become_json_as_python_has_them(value, plain):
  assert sandbox_program._plain(value, 0) == plain


def test_a_value_nested_in_itself_is_refused():
  value = []
  value.append(value)
  with pytest.raises(ValueError, match='deeply'):
    sandbox_program._plain(value, 0)


def test_a_method_a_function_or_an_expression_answers():
  program = ('class Solution:\n  def f(self, x):\n    return x + 1\n'
             'def g(x):\n  return (x,)\n')
  outcomes = sandbox.run(program, [
    {'name': 'f', 'arguments': [1]}, {'name': 'g', 'arguments': [2]},
    {'expression': 'g(y)', 'setup': 'y = 3'}, {'name': 'h', 'arguments': []}],
    sandbox.Limits(), KIND)
  assert [(outcome.status, outcome.output) for outcome in outcomes] == [
    ('ok', b'2'), ('ok', b'[2]'), ('ok', b'[3]'), ('error', b'')]


def test_it_holds_limits_no_capability_and_a_filter():
  program = (
    'import json, resource\n'
    'status = dict(line.split(":\\t") for line in open("/proc/self/status"))\n'
    'names = ("AS", "CORE", "FSIZE", "NOFILE", "NPROC", "CPU")\n'
    'print(json.dumps([status["CapEff"].strip(), status["NoNewPrivs"].strip(), '
    'status["Seccomp"].strip(), {name: resource.getrlimit('
    'getattr(resource, "RLIMIT_" + name)) for name in names}]))')
  limits = sandbox.Limits(test_s=7.0, memory_mib=256, file_mib=3, processes=9)
  outcome, = sandbox.run(program, [{'stdin': ''}], limits, KIND)
  capabilities, privileges, seccomp, found = json.loads(outcome.output)
  assert (int(capabilities, 16), privileges, seccomp) == (0, '1', '2')
  assert found['AS'] == [256 << 20] * 2 and found['FSIZE'] == [3 << 20] * 2
  assert found['CORE'] == [0, 0] and found['NOFILE'] == [64, 64]
  assert found['CPU'] == [8, 8]
  assert found['NPROC'] == [9, 9] or KIND == 'rlimits'
