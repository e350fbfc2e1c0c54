"""Processes side by side: order, cores, failures, and what a kill leaves."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import types

import pytest

from lpo_jax import jobs

ROOT = pathlib.Path(__file__).parents[1]
SCRIPT = '''
import json, os, pathlib, signal, sys, time
folder, seconds, code = pathlib.Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
folder.mkdir(parents=True, exist_ok=True)
def leave(*_):
  (folder / 'saved').touch()
  sys.exit(0)
signal.signal(signal.SIGTERM, leave)
(folder / 'began').write_text(json.dumps([
  time.time(), os.getpid(), sorted(os.sched_getaffinity(0)),
  os.environ.get('JAX_COMPILATION_CACHE_DIR')]))
time.sleep(seconds)
while len(sys.argv) > 4 and not (folder.parent / sys.argv[4] / 'began').exists():
  time.sleep(0.05)
print('a last word')
if not code:
  (folder / 'summary.json').write_text(json.dumps({'step': 3}))
(folder / 'ended').write_text(str(time.time()))
sys.exit(code)
'''


def job(room, name, seconds=0.0, code=0, after='', wait_for=()):
  folder = room / name
  return jobs.Job(name, folder, types.SimpleNamespace(num_steps=3), [
    sys.executable, '-c', SCRIPT, str(folder), str(seconds), str(code),
    *wait_for], after)


def began(room, name):
  return json.loads((room / name / 'began').read_text())


def test_a_job_waits_for_its_start_and_is_not_repeated(tmp_path, capsys):
  planned = [job(tmp_path, 'start', 0.3), job(tmp_path, 'run', after='start')]
  runner = jobs.Runner(planned, tmp_path / 'logs', 2)
  runner.run()
  assert not runner.failed and all(map(jobs.done, planned))
  ended = float((tmp_path / 'start' / 'ended').read_text())
  assert began(tmp_path, 'run')[0] >= ended
  assert 'a last word' in (tmp_path / 'logs' / 'run.txt').read_text()
  stamp = began(tmp_path, 'run')
  jobs.Runner(planned, tmp_path / 'logs', 2).run()
  assert began(tmp_path, 'run') == stamp
  assert '2 of 2 runs are done already' in capsys.readouterr().out


def test_jobs_side_by_side_have_cores_of_their_own(tmp_path):
  cores = os.sched_getaffinity(0)
  if len(cores) < 2:
    pytest.skip('one core')
  # Each ends only once the other has begun.
  jobs.Runner([job(tmp_path, 'a', wait_for=['b']), job(tmp_path, 'b', wait_for=['a'])],
              tmp_path / 'logs', 2).run()
  one, two = began(tmp_path, 'a')[2], began(tmp_path, 'b')[2]
  assert set(one).isdisjoint(two) and set(one + two) <= cores


def test_jobs_share_what_they_compile_unless_a_cache_is_set(tmp_path, monkeypatch):
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR', raising=False)
  jobs.Runner([job(tmp_path, 'a'), job(tmp_path, 'b')], tmp_path / 'logs', 1).run()
  kept = [pathlib.Path(began(tmp_path, name)[3]) for name in 'ab']
  assert kept[0] == kept[1] and kept[0].parent == tmp_path / '.compiled'
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(tmp_path / 'mine'))
  jobs.Runner([job(tmp_path, 'c')], tmp_path / 'logs', 1).run()
  assert began(tmp_path, 'c')[3] == str(tmp_path / 'mine')


def test_a_failure_is_told_and_takes_along_only_what_needs_it(tmp_path, capsys):
  planned = [job(tmp_path, 'bad', code=3), job(tmp_path, 'after_bad', after='bad'),
             job(tmp_path, 'good')]
  runner = jobs.Runner(planned, tmp_path / 'logs', 1)
  runner.run()
  assert set(runner.failed) == {'bad', 'after_bad'} and jobs.done(planned[2])
  assert 'exit status 3' in runner.failed['bad']
  assert runner.failed['after_bad'] == 'bad failed'
  assert 'a last word' in capsys.readouterr().out


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_children_save_and_end_with_their_owner(tmp_path, number):
  script = (f'import signal, sys; sys.path.insert(0, {str(ROOT)!r})\n'
            'signal.signal(signal.SIGINT, signal.default_int_handler)\n'
            'from tests import jobs_test\nfrom lpo_jax import jobs\nimport pathlib\n'
            f'room = pathlib.Path({str(tmp_path)!r})\n'
            'jobs.Runner([jobs_test.job(room, "slow", 600)], room / "logs", 1).run()\n')
  owner = subprocess.Popen([sys.executable, '-c', script], cwd=ROOT,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
  deadline = time.monotonic() + 120
  while not (tmp_path / 'slow' / 'began').exists():
    assert time.monotonic() < deadline and owner.poll() is None
    time.sleep(0.05)
  time.sleep(0.2)
  owner.send_signal(number)
  owner.wait(60)
  while not (tmp_path / 'slow' / 'saved').exists():
    assert time.monotonic() < deadline
    time.sleep(0.05)
  assert not jobs.done(job(tmp_path, 'slow'))
