"""A run killed anywhere, and started again, ends with the numbers it would have had."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests import compiler

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = 'experiments/countdown.py:tiny'
COSTS = ('timing_s/', 'perf/')  # what may differ between two runs


@pytest.fixture(scope='module')
def environment():
  """One device."""
  return os.environ | compiler.ONE_DEVICE


def start(workdir, environment, *flags):
  return subprocess.Popen(
    [sys.executable, '-m', 'lpo_jax.main', f'--config={CONFIG}', f'--workdir={workdir}',
     *flags], cwd=ROOT, env=environment, stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT, text=True)


def finish(process):
  output, _ = process.communicate(timeout=300)
  assert process.returncode == 0, output
  return output


def wait_for(path, process, contains=None):
  """Wait until `path` exists, and holds the text `contains`."""
  deadline = time.monotonic() + 240
  while time.monotonic() < deadline and process.poll() is None:
    if path.exists() and (contains is None or contains in path.read_text()):
      return
    time.sleep(0.01)
  raise AssertionError(f'{path} did not come: {process.communicate()[0]}')


def lines(workdir):
  text = (pathlib.Path(workdir) / 'metrics.jsonl').read_text()
  assert text.endswith('\n')
  return [json.loads(line) for line in text.splitlines()]


def numbers(workdir):
  """Return every line without what measures time."""
  return [{name: value for name, value in line.items() if not name.startswith(COSTS)}
          for line in lines(workdir)]


@pytest.fixture(scope='module')
def whole(tmp_path_factory, environment):
  """The numbers of a run that nothing interrupted."""
  workdir = tmp_path_factory.mktemp('whole') / 'run'
  finish(start(workdir, environment))
  return workdir


def test_a_run_leaves_what_it_promises(whole):
  assert [line['step'] for line in lines(whole)] == [0, 1, 2, 3, 4]
  for name in ('config.json', 'summary.json', 'curves.png', 'tensorboard',
               'checkpoints', 'rollouts/step_000001.jsonl'):
    assert (whole / name).exists(), name
  summary = json.loads((whole / 'summary.json').read_text())
  final = lines(whole)[-1]['val/countdown/mean@4']
  assert summary['final']['val/countdown/mean@4'] == final
  group = json.loads((whole / 'rollouts/step_000001.jsonl').read_text().splitlines()[0])
  for name in ('target', 'policy_before', 'policy_after'):
    assert sum(group[name]) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(('path', 'text'), [
  ('metrics.jsonl', '"step": 1,'),  # after a line, before its checkpoint
  ('checkpoints/2/manifest', None),  # a checkpoint just finished
  ('metrics.jsonl', '"step": 3,'),  # a line past the newest checkpoint
])
def test_kill_and_resume_is_bit_exact(path, text, whole, tmp_path, environment):
  process = start(tmp_path / 'run', environment)
  wait_for(tmp_path / 'run' / path, process, text)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  finish(start(tmp_path / 'run', environment))
  assert numbers(tmp_path / 'run') == numbers(whole)


def test_sigterm_saves_and_the_run_goes_on(whole, tmp_path, environment):
  process = start(tmp_path / 'run', environment)
  wait_for(tmp_path / 'run/metrics.jsonl', process, '"step": 0,')
  process.send_signal(signal.SIGTERM)
  output = finish(process)
  assert 'asked to stop: saved step' in output
  stopped = lines(tmp_path / 'run')[-1]['step']
  assert (tmp_path / 'run/checkpoints' / str(stopped)).exists()
  output = finish(start(tmp_path / 'run', environment))
  assert f'resuming after step {stopped}' in output
  assert numbers(tmp_path / 'run') == numbers(whole)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    whole, tmp_path, environment):
  shutil.copytree(whole, tmp_path / 'run')
  newest = tmp_path / 'run/checkpoints/4'
  for file in newest.rglob('*'):
    if file.is_file() and file.stat().st_size > 200:
      file.write_bytes(file.read_bytes()[:100])
  output = finish(start(tmp_path / 'run', environment))
  assert 'resuming after step 2' in output and 'damaged' in output
  assert numbers(tmp_path / 'run') == numbers(whole)


def test_a_cut_metrics_line_is_written_again(whole, tmp_path, environment):
  shutil.copytree(whole, tmp_path / 'run')
  path = tmp_path / 'run/metrics.jsonl'
  path.write_text(path.read_text()[:-40])  # the last line loses its end
  for step in ('4',):  # as does its checkpoint: the kill came before it
    for file in (tmp_path / 'run/checkpoints' / step).rglob('*'):
      if file.is_file():
        file.unlink()
  finish(start(tmp_path / 'run', environment))
  assert numbers(tmp_path / 'run') == numbers(whole)


def test_evaluation_alone_repeats_the_last_numbers(whole, environment):
  before = lines(whole)[-1]
  finish(start(whole, environment, '--mode=eval'))
  summary = json.loads((whole / 'summary.json').read_text())
  assert summary['mode'] == 'eval'
  assert summary['final'] == {name: value for name, value in before.items()
                              if name.startswith('val/')}


def test_a_run_starts_from_another_runs_policy(whole, tmp_path, environment):
  output = finish(start(
    tmp_path / 'run', environment, f'--config.init_from={whole}',
    '--config.warmstart.steps=0', '--config.num_steps=0'))
  assert f'starting from the policy in {whole}' in output
  validation = 'val/countdown/mean@4'
  assert lines(tmp_path / 'run')[0][validation] == lines(whole)[-1][validation]


STALE = ('--config.async_rollouts=1', '--config.replay.fraction=0.25',
         '--config.task.reward.correct=0.5', '--config.task.reward.length=0.5',
         '--config.optimizer.learning_rate=3e-3')  # rewards differ, the policy moves


@pytest.fixture(scope='module')
def whole_stale(tmp_path_factory, environment):
  """The same for a run that learns from the past and samples ahead."""
  workdir = tmp_path_factory.mktemp('whole_stale') / 'run'
  finish(start(workdir, environment, *STALE))
  return workdir


@pytest.mark.parametrize(('path', 'text'), [
  ('checkpoints/2/manifest', None), ('metrics.jsonl', '"step": 3,')])
def test_past_groups_and_batches_sampled_ahead_survive_a_kill(
    path, text, whole_stale, tmp_path, environment):
  process = start(tmp_path / 'run', environment, *STALE)
  wait_for(tmp_path / 'run' / path, process, text)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  output = finish(start(tmp_path / 'run', environment, *STALE))
  assert 'resuming after step' in output
  assert numbers(tmp_path / 'run') == numbers(whole_stale)
  last = numbers(whole_stale)[-1]
  assert last['replay/age'] >= 2 and last['async/age'] == 1
  assert last['actor/grad_norm'] > 0 and last['async/ess'] < 1
