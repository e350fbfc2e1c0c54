"""Tests of programs in the forms that code problem sets come in, and their verdicts.

`read` turns any of them into cases: what goes into the sandbox (standard input, a
function and its arguments, or an expression) beside what is expected, which does not.
Forms: the dict or JSON text {'inputs', 'outputs', ['fn_name']} of APPS, TACO and
PRIME / Eurus-2-RL; a list of {'input', 'output'} (LiveCodeBench, PRIME); MBPP's
'test_list' of assertions; HumanEval's {'test', 'entry_point'}.
"""

import ast
import json
import math
from typing import Any, NamedTuple

# What APPS and PRIME accept of decimals (numpy.allclose's bounds).
RELATIVE, ABSOLUTE = 1e-5, 1e-8
MAX_NUMBER = 40  # characters of a printed number that is compared as a number


class Case(NamedTuple):
  """One test."""

  job: dict  # for `sandbox.run`
  expected: Any  # text printed, or JSON value returned
  tolerance: float | None = None  # absolute, where the test declares one
  wrapped: bool = False  # APPS lists the returned value in a list of one


def read(tests) -> list[Case]:
  """Return the cases of `tests`, in order.

  Raises:
    ValueError: no form that is known, or no test at all; says what was found.
  """
  if isinstance(tests, str):
    try:
      tests = json.loads(tests)
    except ValueError:
      raise ValueError(f'tests are no JSON: {tests[:80]!r}...') from None
  if isinstance(tests, list):
    tests = _from_list(tests)
  if not isinstance(tests, dict):
    raise ValueError(f'tests of type {type(tests).__name__}: known: dict, list, JSON')
  if 'inputs' in tests and 'outputs' in tests:
    cases = _from_pairs(tests)
  elif 'test_list' in tests:
    setup = '\n'.join(
      [*tests.get('test_imports', ()), tests.get('test_setup_code', '')])
    cases = [_from_assertion(node, setup, {}) for text in
             [*tests['test_list'], *tests.get('challenge_test_list', ())]
             for node in _parse(text)]
  elif 'test' in tests and 'entry_point' in tests:
    cases = _from_check(tests['test'], tests['entry_point'])
  else:
    raise ValueError(
      f'tests with the keys {sorted(tests)[:8]}: known: inputs and outputs; test_list; '
      'test and entry_point')
  if not cases:
    raise ValueError('a problem without tests cannot be judged')
  return cases


def _from_list(rows: list) -> dict:
  if rows and all(isinstance(row, str) for row in rows):
    return {'test_list': rows}
  if not all(isinstance(row, dict) and {'input', 'output'} <= set(row) for row in rows):
    raise ValueError("a list of tests needs {'input', 'output'} or assertions: "
                     f'{str(rows)[:80]}...')
  names = {row.get('fn_name') for row in rows} - {None}
  if len(names) > 1:
    raise ValueError(f'one problem calls several functions: {sorted(names)}')
  tests = {'inputs': [row['input'] for row in rows],
           'outputs': [row['output'] for row in rows]}
  return tests | ({'fn_name': names.pop()} if names else {})


def _from_pairs(tests: dict) -> list[Case]:
  inputs, outputs = tests['inputs'], tests['outputs']
  if len(inputs) != len(outputs):
    raise ValueError(f'{len(inputs)} inputs but {len(outputs)} outputs')
  tolerance, name = tests.get('tolerance'), tests.get('fn_name')
  if not name:
    return [Case({'stdin': _lines(given)}, _lines(expected), tolerance)
            for given, expected in zip(inputs, outputs, strict=True)]
  wrapped = all(isinstance(value, list) and len(value) == 1 for value in outputs)
  return [Case({'name': name, 'arguments': _arguments(given)},
               _value(expected), tolerance, wrapped)
          for given, expected in zip(inputs, outputs, strict=True)]


def _lines(value) -> str:
  """Return the text of a stdin test, which APPS sometimes gives as its lines."""
  return '\n'.join(map(str, value)) if isinstance(value, list) else str(value)


def _arguments(given) -> list:
  """Return a call's arguments: a list, or one JSON value per line."""
  if isinstance(given, list):
    return given
  try:
    return [json.loads(line) for line in str(given).split('\n') if line.strip()]
  except ValueError:
    raise ValueError(f'arguments are no JSON lines: {given[:80]!r}') from None


def _value(expected):
  """Return the value a call shall give; text is JSON, or itself where it is none."""
  if isinstance(expected, str):
    try:
      return json.loads(expected)
    except ValueError:
      return expected
  return expected


def _parse(text: str) -> list[ast.stmt]:
  try:
    return ast.parse(text.strip()).body
  except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
    raise ValueError(f'a test is no Python: {text[:80]!r}: {error}') from None


def _from_check(text: str, name: str) -> list[Case]:
  """Read HumanEval's `def check(candidate): assert candidate(...) == ...`."""
  for node in _parse(text):
    if isinstance(node, ast.FunctionDef) and node.name == 'check':
      parameter = node.args.args[0].arg
      return [_from_assertion(line, '', {parameter: name}) for line in node.body
              if not _says_nothing(line)]
  raise ValueError(f'no function check in the test of {name!r}')


def _says_nothing(node: ast.stmt) -> bool:
  """Return whether a line is a docstring, a print or `assert True`."""
  if isinstance(node, ast.Assert):
    return isinstance(node.test, ast.Constant) and bool(node.test.value)
  return isinstance(node, ast.Expr | ast.Import | ast.ImportFrom | ast.Pass)


def _from_assertion(node: ast.stmt, setup: str, names: dict[str, str]) -> Case:
  """Split `assert f(x) == y` into the expression f(x) and the value y.

  Also `assert f(x)`, `assert not f(x)`, `assert abs(f(x) - y) < t` and
  `assert math.isclose(f(x), y, rel_tol=t)`.
  """
  if not isinstance(node, ast.Assert):
    raise ValueError(f'a test is no assertion: {ast.unparse(node)[:80]!r}')
  test, tolerance, expected = node.test, None, True
  try:
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
      test, expected = test.operand, False
    elif isinstance(test, ast.Compare) and len(test.ops) == 1:
      operation, right = test.ops[0], test.comparators[0]
      if isinstance(operation, ast.Eq | ast.Is):
        test, expected = test.left, _literal(right)
      elif isinstance(operation, ast.Lt | ast.LtE) and _is_call(test.left, 'abs'):
        difference = test.left.args[0]
        if isinstance(difference, ast.BinOp) and isinstance(difference.op, ast.Sub):
          test, expected = difference.left, _literal(difference.right)
          tolerance = float(_literal(right))
    elif _is_call(test, 'isclose') and len(test.args) == 2:
      bounds = {word.arg: float(_literal(word.value)) for word in test.keywords}
      expected = _literal(test.args[1])
      tolerance = max(bounds.get('abs_tol', 0.0),
                      bounds.get('rel_tol', 1e-9) * abs(expected))
      test = test.args[0]
  except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
    raise ValueError(
      f'what is expected is no literal: {ast.unparse(node)[:120]!r}') from None
  for inner in ast.walk(test):
    if isinstance(inner, ast.Name):
      inner.id = names.get(inner.id, inner.id)
  return Case({'expression': ast.unparse(test), 'setup': setup}, expected, tolerance)


def _is_call(node: ast.expr, name: str) -> bool:
  if not isinstance(node, ast.Call) or not node.args:
    return False
  function = node.func
  return name == (function.attr if isinstance(function, ast.Attribute)
                  else getattr(function, 'id', ''))


def _literal(node: ast.expr):
  """Return a literal as JSON has it: tuples as lists, sets sorted, keys as text."""
  if _is_call(node, 'set') and len(node.args) == 1:
    return _plain(set(ast.literal_eval(node.args[0])))
  return _plain(ast.literal_eval(node))


def _plain(value):
  if isinstance(value, dict):
    return {key if isinstance(key, str) else repr(key): _plain(item)
            for key, item in value.items()}
  if isinstance(value, set | frozenset):
    return sorted(map(_plain, value), key=lambda item: (str(type(item)), item))
  if isinstance(value, list | tuple):
    return [_plain(item) for item in value]
  return value


def passes(case: Case, output: bytes) -> bool:
  """Return whether the output is the expected one.

  Printed text: the lines that are not blank, each split at spaces, must agree; where
  the expected word is a decimal, a number within the tolerance will do. A returned
  value must be equal, floats up to the tolerance.
  """
  try:
    if 'stdin' in case.job:
      printed = output.decode('utf-8', 'replace')
      return _same_text(printed, case.expected, case.tolerance)
    value = json.loads(output)
    return _same(value, case.expected, case.tolerance) or (
      case.wrapped and _same(value, case.expected[0], case.tolerance))
  except (ValueError, TypeError, RecursionError, OverflowError):
    return False


def _same_text(printed: str, expected: str, tolerance: float | None) -> bool:
  if printed == expected:
    return True
  lines = [[line.split() for line in text.splitlines() if line.strip()]
           for text in (printed, expected)]
  return len(lines[0]) == len(lines[1]) and all(
    len(one) == len(other) and all(
      _same_word(word, wanted, tolerance)
      for word, wanted in zip(one, other, strict=True))
    for one, other in zip(*lines, strict=True))


def _same_word(word: str, wanted: str, tolerance: float | None) -> bool:
  if word == wanted:
    return True
  if tolerance is None and '.' not in wanted or max(
      len(word), len(wanted)) > MAX_NUMBER or not (word + wanted).isascii():
    return False
  try:
    return _close(float(word), float(wanted), tolerance)
  except ValueError:
    return False


def _close(value: float, wanted: float, tolerance: float | None) -> bool:
  if not (math.isfinite(value) and math.isfinite(wanted)):
    return value == wanted or (math.isnan(value) and math.isnan(wanted))
  bound = ABSOLUTE + RELATIVE * abs(wanted) if tolerance is None else tolerance
  return abs(value - wanted) <= bound


def _same(value, wanted, tolerance: float | None) -> bool:
  if isinstance(wanted, dict) and isinstance(value, dict):
    return value.keys() == wanted.keys() and all(
      _same(value[key], wanted[key], tolerance) for key in wanted)
  if isinstance(wanted, list) and isinstance(value, list):
    return len(value) == len(wanted) and all(
      _same(*pair, tolerance) for pair in zip(value, wanted, strict=True))
  numbers = isinstance(value, int | float) and isinstance(wanted, int | float)
  if numbers and (isinstance(wanted, float) or tolerance is not None):
    return _close(float(value), float(wanted), tolerance)
  return value == wanted
