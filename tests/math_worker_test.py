"""The process that holds math-verify: killed in time, replaced, never an orphan."""

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from lpo_jax.tasks import math_worker

# An answer that is worked on for much longer than any deadline.
_GOLD, _BOMB = '\\sqrt{2} x + \\sqrt{3}', '99999999!'


@pytest.fixture(scope='module')
def comparer():
  found = math_worker.Comparer(deadline_s=1.0)
  assert found.equal('x', 'x') == (True, '')
  yield found
  found.close()


def test_equal_texts_and_values_are_equal_and_others_are_not(comparer):
  patient = math_worker.Comparer()
  for gold, answer, equal in [
      ('\\sqrt{2}', '2^{1/2}', True), ('x^2+2x+1', '(x+1)^2', True),
      ('\\sqrt{2}', '\\sqrt{3}', False), ('(1,2)', '[1,2]', False),
      ('\\sqrt2 \\cdot 10^{-30}', '\\sqrt2 \\cdot 10^{-31}', False)]:
    assert patient.equal(gold, answer) == (equal, '')
  patient.close()


def test_a_comparison_beyond_its_deadline_is_killed_and_the_next_one_works(comparer):
  start = time.perf_counter()
  assert comparer.equal(_GOLD, _BOMB) == (False, math_worker.TIMEOUT)
  assert time.perf_counter() - start < 8
  for _ in range(20):  # the fresh child is slow at its first expression
    if comparer.equal('y+1', '1+y') == (True, ''):
      return
  raise AssertionError('no verdict after a timeout')


def test_a_deadline_counts_the_work_and_not_the_wait(comparer):
  # A child that is stopped for longer than its deadline has not used it up.
  keeper = comparer._process.pid
  assert comparer.equal('x', 'x') == (True, '')
  (child,) = map(int, pathlib.Path(f'/proc/{keeper}/task/{keeper}/children')
                 .read_text().split())
  os.kill(child, signal.SIGSTOP)
  threading.Timer(1.5, os.kill, (child, signal.SIGCONT)).start()
  assert comparer.equal('x', 'x') == (True, '')


def test_any_thread_may_ask(comparer):
  found = []
  threads = [threading.Thread(target=lambda: found.append(comparer.equal('z', 'z')))
             for _ in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert found == [(True, '')] * 8


def test_a_keeper_that_is_killed_is_replaced():
  comparer = math_worker.Comparer()
  assert comparer.equal('x', 'x') == (True, '')
  comparer._process.kill()
  comparer._process.wait()
  assert comparer.equal('x', 'x') == (True, '')
  comparer.close()


def test_nothing_outlives_a_caller_that_is_killed():
  script = ('import sys\nfrom lpo_jax.tasks import math_worker\n'
            'c = math_worker.Comparer(60.0)\nc.equal("x", "x")\n'
            'print(c._process.pid, flush=True)\n'
            f'c.equal({_GOLD!r}, {_BOMB!r})\n')
  process = subprocess.Popen([sys.executable, '-c', script], stdout=subprocess.PIPE)
  keeper = int(process.stdout.readline())
  time.sleep(0.3)
  process.send_signal(signal.SIGKILL)
  process.wait()
  process.stdout.close()
  deadline = time.monotonic() + 5
  while os.path.exists(f'/proc/{keeper}') and time.monotonic() < deadline:
    time.sleep(0.05)
  assert not os.path.exists(f'/proc/{keeper}')


def test_neither_jax_nor_sympy_is_loaded_by_the_caller():
  script = ('import sys\nfrom lpo_jax.tasks import math, code, grading\n'
            'heavy = {"jax", "sympy", "numpy", "math_verify"}\n'
            'print(sorted(heavy & set(sys.modules)))')
  found = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
  assert found.stdout.strip() == '[]', found.stderr
