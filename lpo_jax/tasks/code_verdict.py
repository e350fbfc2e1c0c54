"""The code verdict: programs judged by their tests, inside the sandbox.

`verify(tests, response)` extracts the last fenced program, runs it on every test and
returns the share that passed. What is expected stays out here: the sandbox gets one
input at a time, and what it prints or returns is compared by `code_tests`. Total over
all response texts.
"""

import functools
import json
import re

from lpo_jax.tasks import code_tests
from lpo_jax.tasks import sandbox as sandboxes

MAX_PROGRAM = 1 << 20  # characters of a program that is run
TIMEOUT, ERROR = 'timeout', 'error'
_PYTHON = {'python', 'python3', 'py', 'py3', 'python2', 'pypy', 'pypy3'}
_FENCE = re.compile(r'([ \t]*)(`{3,}|~{3,})[ \t]*\{?\.?([\w+#-]*)[^`]*')
_LIMITS = sandboxes.Limits()


def verify(tests, response: str, *, sandbox: str = 'bubblewrap',
           limits: sandboxes.Limits = _LIMITS, all_or_nothing: bool = False) -> float:
  """Return the share of tests that the response's program passes, in [0, 1].

  Args:
    tests: any form that `code_tests.read` knows.
    response: text with a fenced program, or the program itself.
    sandbox: one of `sandbox.KINDS`.
    limits: of one program.
    all_or_nothing: 1.0 if all tests pass, else 0.0, and no test is run after the
      first that fails.

  Raises:
    ValueError: tests of no known form, or an unknown sandbox.
    RuntimeError: the sandbox does not work on this machine; says how to install it.
  """
  return judge(tests, response, sandbox=sandbox, limits=limits,
               all_or_nothing=all_or_nothing)[0]


def judge(tests, response: str, *, sandbox: str = 'bubblewrap',
          limits: sandboxes.Limits = _LIMITS,
          all_or_nothing: bool = False) -> tuple[float, str]:
  """Return `verify`'s verdict, and TIMEOUT, ERROR or '' for the worst that happened.

  ERROR is a program that broke its sandbox, not one that raised.
  """
  cases = _cases(tests if isinstance(tests, str) else json.dumps(tests))
  sandboxes.check(sandbox)
  program = extract(response)
  if not program.strip() or len(program) > MAX_PROGRAM:
    return 0.0, ''
  passed, notes = 0, set()
  outcomes = sandboxes.run(program, [case.job for case in cases], limits, sandbox)
  for case, outcome in zip(cases, outcomes, strict=True):
    right = outcome.status == 'ok' and code_tests.passes(case, outcome.output)
    passed += right
    notes.add({'timeout': TIMEOUT, 'lost': ERROR}.get(outcome.status, ''))
    if all_or_nothing and not right:
      outcomes.close()
      return 0.0, max(notes, default='')
  return passed / len(cases), max(notes)


@functools.lru_cache(maxsize=256)
def _cases(tests: str) -> list[code_tests.Case]:
  """Read tests given as JSON; the K responses to one problem share the work."""
  return code_tests.read(tests)


def extract(response: str) -> str:
  """Return the program in a response.

  The last block fenced as Python counts; without one the last block without a
  language, then the last of any; without a block the whole text. A block that is
  never closed reaches to the end.
  """
  found = fenced(response)
  return response if found is None else found


def fenced(response: str) -> str | None:
  """Return the program in the block that `extract` takes; None without a block."""
  blocks, body, opened = [], [], None
  for line in response.split('\n'):
    match = _FENCE.fullmatch(line.rstrip('\r'))
    starts = match and match[3].lower() in _PYTHON
    if match and (opened is None or (starts and not opened[3])):
      opened, body = match, []
    elif opened is not None and match and not match[3] and (
        match[2].startswith(opened[2])):
      blocks.append((opened[3].lower(), body))
      opened = None
    elif opened is not None:
      indent = opened[1]
      body.append(line[len(indent):] if line.startswith(indent) else line)
  if opened is not None:
    blocks.append((opened[3].lower(), body))
  if not blocks:
    return None
  for wanted in (_PYTHON, {''}):
    for language, lines in reversed(blocks):
      if language in wanted:
        return '\n'.join(lines)
  return '\n'.join(blocks[-1][1])
