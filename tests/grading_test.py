"""The pool: order, deadlines, deaths, and that it leaves no orphan."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from lpo_jax.tasks import grading
from lpo_jax.types import Problem

_FAKES = str(pathlib.Path(__file__).parent)


@pytest.fixture(autouse=True)
def _path(monkeypatch):
  monkeypatch.setenv('PYTHONPATH', _FAKES, prepend=os.pathsep)


def _problems(*answers):
  return [Problem(prompt='', answer=answer, id=f'p{i}') for i, answer in
          enumerate(answers)]


def _grader(name, **options):
  return grading.Grader(f'grading_fakes:{name}', **{'workers': 2, **options})


def test_verdicts_are_in_order_one_per_response():
  texts = [[str(10 * row + column) for column in range(5)] for row in range(7)]
  with _grader('scaled') as grader:
    handles = [grader.submit(_problems(*range(1, 8)), texts) for _ in range(3)]
    for handle in handles:
      verdicts = handle.result(60)
      assert verdicts.rewards == [
        [int(text) / 100 / answer for text in row]
        for answer, row in zip(range(1, 8), texts, strict=True)]
      assert verdicts.metrics['grading/timeout_frac'] == (0.0, 35.0)
      assert verdicts.metrics['grading/error_frac'] == (0.0, 35.0)
      assert verdicts.metrics['grading/queue_s'][0] > 0
      assert verdicts.failures == []


def test_submitting_returns_before_the_verdicts_do():
  with _grader('slow') as grader:
    start = time.perf_counter()
    handle = grader.submit(_problems(0.4), [['a', 'b']])
    assert time.perf_counter() - start < 0.3
    assert not handle.done()
    with pytest.raises(TimeoutError, match='of 2'):
      handle.result(0.01)
    assert handle.result(60).rewards == [[1.0, 1.0]]


def test_a_response_beyond_its_deadline_gets_0_and_its_worker_is_replaced():
  with _grader('slow', deadline_s=1.0, workers=1) as grader:
    verdicts = grader.submit(_problems(60, 0), [['a'], ['b']]).result(60)
  assert verdicts.rewards == [[0.0], [1.0]]
  assert verdicts.metrics['grading/timeout_frac'] == (1.0, 2.0)
  assert len(verdicts.failures) == 1 and "'p0'" in verdicts.failures[0]


def test_a_grader_that_dies_five_times_gives_0_and_names_the_item(tmp_path):
  log = tmp_path / 'deaths'
  with _grader('deadly', workers=1) as grader:
    verdicts = grader.submit(_problems(str(log), ''), [['die'], ['live']]).result(120)
  assert verdicts.rewards == [[0.0], [1.0]]
  assert log.read_text() == 'x' * grading.ATTEMPTS
  assert verdicts.metrics['grading/error_frac'] == (1.0, 2.0)
  assert "'p0'" in verdicts.failures[0] and 'died 5 times' in verdicts.failures[0]


def test_workers_are_recycled():
  with _grader('process', workers=1, recycle=3) as grader:
    rewards = grader.submit(_problems(0), [['x'] * 9]).result(60).rewards[0]
  assert len(set(rewards)) == 3
  assert rewards[0] == rewards[2] != rewards[3]


def test_errors_count_and_notes_count():
  with _grader('noted') as grader:
    handle = grader.submit(_problems(0), [['timeout', 'error', 'raise', '']])
    verdicts = handle.result(60)
  assert verdicts.metrics['grading/timeout_frac'] == (1.0, 4.0)
  assert verdicts.metrics['grading/error_frac'] == (2.0, 4.0)
  assert len(verdicts.failures) == 1 and 'ValueError: odd' in verdicts.failures[0]


@pytest.mark.parametrize('text,words', [
  ('missing', 'apt-get'), ('large', 'outside'), ('nan', 'outside')])
def test_what_no_response_can_cause_stops_the_run(text, words):
  with _grader('noted') as grader:
    with pytest.raises(RuntimeError, match=words):
      grader.submit(_problems(0), [[text]]).result(60)


def test_bad_input_is_refused():
  with pytest.raises(RuntimeError, match='no_such'):
    _grader('no_such')
  with pytest.raises(ValueError, match='module:function'):
    grading.Grader(lambda answer, text: 1.0)
  with pytest.raises(ValueError, match='workers=0'):
    _grader('scaled', workers=0)
  grader = _grader('scaled')
  with pytest.raises(ValueError, match='2 problems but 1'):
    grader.submit(_problems(1, 2), [['a']])
  assert grader.submit([], []).result(1).rewards == []
  grader.close()
  with pytest.raises(ValueError, match='closed'):
    grader.submit(_problems(1), [['a']])


def test_a_closed_pool_fails_what_is_unfinished():
  grader = _grader('slow', workers=1, deadline_s=60.0)
  handle = grader.submit(_problems(0.2), [['a'] * 50])
  grader.close()
  with pytest.raises(RuntimeError, match='closed'):
    handle.result(1)


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_signal_to_the_owner_leaves_an_orphan(number):
  script = (
    'import collections, signal\nfrom lpo_jax.tasks import grading\n'
    # A shell's background job starts with SIGINT ignored; a run has Python's handler.
    'signal.signal(signal.SIGINT, signal.default_int_handler)\n'
    "P = collections.namedtuple('P', 'answer id')\n"
    "grader = grading.Grader('grading_fakes:slow', deadline_s=100.0)\n"
    "handle = grader.submit([P(100, 'a')], [['x', 'y', 'z']])\n"
    "print('up', flush=True)\nhandle.result()\n")
  owner = subprocess.Popen([sys.executable, '-c', script], stdout=subprocess.PIPE,
                           stderr=subprocess.DEVNULL)
  assert owner.stdout.readline() == b'up\n'
  workers = _children(owner.pid)
  assert len(workers) == 2
  owner.send_signal(number)
  owner.wait(30)
  owner.stdout.close()
  deadline = time.monotonic() + 10
  while any(map(_alive, workers)) and time.monotonic() < deadline:
    time.sleep(0.02)
  assert not any(map(_alive, workers))


def _children(parent):
  found = []
  for name in filter(str.isdigit, os.listdir('/proc')):
    try:
      stat = pathlib.Path(f'/proc/{name}/stat').read_text().rpartition(')')[2].split()
    except OSError:
      continue
    if int(stat[1]) == parent:
      found.append(int(name))
  return found


def _alive(pid):
  try:
    stat = pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
  except OSError:
    return False
  return stat[0] != 'Z'
