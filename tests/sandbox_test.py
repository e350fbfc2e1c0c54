"""The walls, the deadlines, and that nothing is left behind."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from lpo_jax.tasks import sandbox

KINDS = ['rlimits'] + (['bubblewrap'] if shutil.which('bwrap') else [])
_LIMITS = sandbox.Limits(test_s=0.7, total_s=10.0)


def _run(program, kind, jobs=({'stdin': ''},), limits=_LIMITS):
  return list(sandbox.run(program, jobs, limits, kind))


def _sleepers(mark):
  """Return the processes whose command line holds `mark`."""
  found = []
  for name in filter(str.isdigit, os.listdir('/proc')):
    try:
      with open(f'/proc/{name}/cmdline', 'rb') as file:
        if mark.encode() in file.read():
          found.append(int(name))
    except OSError:
      pass
  return found


@pytest.mark.parametrize('kind', KINDS)
def test_every_job_has_its_outcome_in_order(kind):
  jobs = [{'stdin': str(i)} for i in range(5)]
  outcomes = _run('n = int(input())\nprint(n * n)\nassert n != 3', kind, jobs)
  assert [outcome.output for outcome in outcomes] == [
    f'{i * i}\n'.encode() for i in range(5)]
  assert [outcome.status for outcome in outcomes] == ['ok', 'ok', 'ok', 'error', 'ok']


@pytest.mark.parametrize('kind', KINDS)
def test_an_endless_test_ends_at_its_deadline_and_the_others_run(kind):
  start = time.perf_counter()
  outcomes = _run('x = input()\nwhile x == "x":\n  pass', kind,
                  [{'stdin': 'x'}, {'stdin': 'y'}])
  assert [outcome.status for outcome in outcomes] == ['timeout', 'ok']
  assert time.perf_counter() - start < 10


@pytest.mark.parametrize('kind', KINDS)
def test_the_whole_program_ends_at_its_own_deadline(kind):
  limits = sandbox.Limits(test_s=0.5, total_s=1.2)
  start = time.perf_counter()
  outcomes = _run('while True:\n  pass', kind, [{'stdin': ''}] * 50, limits)
  assert [outcome.status for outcome in outcomes] == ['timeout'] * 50
  assert time.perf_counter() - start < 10


@pytest.mark.parametrize('kind', KINDS)
def test_no_process_is_left_behind(kind):
  mark = f'83{os.getpid()}'
  program = ('import os, subprocess\n'
             f'subprocess.Popen(["/bin/sleep", "{mark}"], start_new_session=True)\n'
             'if os.fork() == 0:\n  os.setsid()\n'
             f'  os.execv("/bin/sleep", ["s", "{mark}"])\nprint("ok")')
  assert _run(program, kind)[0] == sandbox.Outcome('ok', b'ok\n')
  assert _sleepers(mark) == []


@pytest.mark.parametrize('kind', KINDS)
def test_a_judge_that_is_killed_leaves_nothing_behind(kind):
  mark = f'84{os.getpid()}'
  program = f'import subprocess\nsubprocess.run(["/bin/sleep", "{mark}"])'
  script = ('from lpo_jax.tasks import sandbox\n'
            f'list(sandbox.run({program!r}, [{{"stdin": ""}}], '
            f'sandbox.Limits(test_s=60, total_s=60), {kind!r}))')
  judge = subprocess.Popen([sys.executable, '-c', script], stderr=subprocess.DEVNULL)
  deadline = time.monotonic() + 30
  while not any(pid != judge.pid for pid in _sleepers(f'/bin/sleep\0{mark}')):
    assert time.monotonic() < deadline
    time.sleep(0.02)
  judge.send_signal(signal.SIGKILL)
  judge.wait()
  deadline = time.monotonic() + 10
  while _sleepers(f'/bin/sleep\0{mark}') and time.monotonic() < deadline:
    time.sleep(0.02)
  assert _sleepers(f'/bin/sleep\0{mark}') == []


@pytest.mark.parametrize('kind', KINDS)
def test_bounds_on_output_and_memory_hold(kind):
  limits = sandbox.Limits(test_s=20.0, total_s=40.0, memory_mib=300, output_mib=1)
  flood, hog, huge = (_run(program, kind, limits=limits)[0].status for program in (
    'while True:\n  print("x" * 1000)',
    'x = []\nwhile True:\n  x.append(bytearray(1 << 20))',
    'x = bytearray(1 << 40)'))
  assert (flood, huge) == ('output', 'error')
  assert hog in ('error', 'memory')  # whichever bound is met first


@pytest.mark.skipif('bubblewrap' not in KINDS, reason='bubblewrap is not installed')
def test_memory_of_all_processes_together_is_bounded():
  program = ('import mmap, os, time\nfor _ in range(6):\n  if os.fork() == 0:\n'
             '    m = mmap.mmap(-1, 100 << 20)\n    m.write(b"x" * (100 << 20))\n'
             '    time.sleep(60)\ntime.sleep(60)')
  limits = sandbox.Limits(test_s=30.0, total_s=30.0, memory_mib=350)
  assert _run(program, 'bubblewrap', limits=limits)[0].status == 'memory'


@pytest.mark.skipif('bubblewrap' not in KINDS, reason='bubblewrap is not installed')
def test_a_test_that_leaves_files_gets_a_new_sandbox_for_the_next(monkeypatch):
  starts = []
  build = sandbox._Inside.__init__
  def spy(self, *arguments):
    starts.append(arguments)
    build(self, *arguments)
  sandbox.check('bubblewrap')
  monkeypatch.setattr(sandbox._Inside, '__init__', spy)
  _run('print(1)', 'bubblewrap', [{'stdin': ''}] * 4)
  assert len(starts) == 1
  outcomes = _run('import os\nprint(os.listdir("/tmp"))\nopen("/tmp/x", "w")',
                  'bubblewrap', [{'stdin': ''}] * 3)
  assert [outcome.output for outcome in outcomes] == [b'[]\n'] * 3
  assert len(starts) == 4


def test_unknown_kinds_and_impossible_limits_are_refused():
  with pytest.raises(ValueError, match='bubblewrap, rlimits'):
    sandbox.check('docker')
  with pytest.raises(ValueError, match='test_s=0'):
    sandbox.Limits(test_s=0)
