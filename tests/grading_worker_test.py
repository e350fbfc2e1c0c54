"""One worker alone: what it replies, and to whom it belongs."""

import json
import os
import pickle
import subprocess
import sys

from lpo_jax.tasks import grading, grading_worker

_VERIFY = 'lpo_jax.tasks.math:judge'


def _start(owner, verify):
  return subprocess.Popen(
    [sys.executable, '-P', '-c', grading._COMMAND, grading._ROOT, str(owner), verify],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def _requests(*items):
  data = [pickle.dumps(item) for item in items]
  return b''.join(grading_worker.HEADER.pack(len(part)) + part for part in data)


def _replies(verify, *items):
  output, _ = _start(os.getpid(), verify).communicate(_requests(*items), timeout=60)
  return [json.loads(line) for line in output.splitlines()]


def test_each_request_has_its_reply():
  assert _replies(_VERIFY, ('5', '\\boxed{5}', {}), ('5', '\\boxed{6}', {})) == [
    {'ready': True}, {'reward': 1.0, 'note': ''}, {'reward': 0.0, 'note': ''}]


def test_an_error_on_one_item_is_a_note_that_says_why():
  _, wrong, missing = _replies(
    'lpo_jax.tasks.code:judge', ({'none': 1}, 'x', {}),
    ({'inputs': ['1'], 'outputs': ['1']}, 'x', {'sandbox': 'nowhere'}))
  assert wrong['reward'] == 0.0 and wrong['note'] == 'error' and 'known' in wrong['why']
  assert missing['note'] == 'error' and 'nowhere' in missing['why']


def test_a_verdict_that_cannot_be_imported_is_fatal():
  assert 'no_such' in _replies('lpo_jax.tasks.no_such:f')[0]['fatal']
  assert 'no_such' in _replies('lpo_jax.tasks.math:no_such')[0]['fatal']


def test_it_leaves_at_once_when_its_owner_is_not_its_parent():
  process = _start(1, _VERIFY)
  assert process.communicate(_requests(('5', '\\boxed{5}', {})), timeout=60)[0] == b''


def test_it_starts_without_jax_or_numpy():
  script = ('import sys, time\nfrom lpo_jax.tasks import grading_worker, math, code\n'
            'print(sorted({"jax", "numpy", "sympy"} & set(sys.modules)))')
  found = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
  assert found.stdout.strip() == '[]', found.stderr
