"""--mode=eval: killed anywhere it ends with the same numbers; table, JSON, records."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import pytest

from experiments import countdown
from lpo_jax import records, sampler, suites, train
from lpo_jax.tasks import base
from lpo_jax.tasks import countdown as countdown_task
from tests import compiler

ROOT = pathlib.Path(__file__).parents[1]
FLAGS = ('--config=experiments/countdown.py:tiny', '--config.warmstart.steps=0',
         '--config.num_steps=0', '--config.eval.problems=62',
         '--config.eval.final_samples=12', '--config.log.tensorboard=False')
PROGRAM = """
from absl import app
from lpo_jax import main
from lpo_jax.tasks import countdown
countdown.Countdown.verify = lambda self, problem, text: float(len(text) % 2)
countdown.Countdown.answer = lambda self, problem, text: (
  text[:1] if '1' in text else None)
app.run(main.main, flags_parser=main.parse_flags)
"""


def command(workdir, *flags):
  """Start a process that rewards by length; a random policy then has its numbers."""
  environment = os.environ | compiler.ONE_DEVICE
  return subprocess.Popen(
    [sys.executable, '-c', PROGRAM, *FLAGS, f'--workdir={workdir}', *flags], cwd=ROOT,
    env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
  out, words = process.communicate(timeout=300)
  assert process.returncode == 0, words
  return out, words


@pytest.fixture(scope='module')
def story(tmp_path_factory):
  """A run, evaluated whole; and again, killed after its second batch and continued."""
  folder = tmp_path_factory.mktemp('suites')
  finish(command(folder / 'run'))
  told = {'whole': finish(command(folder / 'run', '--mode=eval'))}
  start = (f'--config.init_from={folder}/run', '--mode=eval')
  process = command(folder / 'cut', *start)
  marks, deadline = [], time.monotonic() + 240
  while sum(mark.read_text().count('"bytes"') for mark in marks) < 2:
    assert process.poll() is None and time.monotonic() < deadline, process.communicate()
    time.sleep(0.002)
    marks = list((folder / 'cut').glob('eval/*.done'))
  process.send_signal(signal.SIGKILL)
  process.communicate()
  told['kept'] = marks[0].read_text().count('"bytes"')
  told['again'] = finish(command(folder / 'cut', *start))
  told['rest'] = finish(command(folder / 'cut', *start))
  return folder, told


def report(workdir):
  return json.loads((workdir / 'eval.json').read_text())


def test_a_killed_evaluation_goes_on_to_the_same_numbers_and_records(story):
  folder, told = story
  one, two = report(folder / 'run'), report(folder / 'cut')
  assert 2 <= told['kept'] < 8 and f'going on after {8 * told["kept"]} of 62' in (
    told['again'][1])
  assert two['sets']['countdown']['numbers'] == one['sets']['countdown']['numbers']
  files = [folder / name / found['sets']['countdown']['records']
           for name, found in (('run', one), ('cut', two))]
  assert files[0].name == files[1].name  # the same policy, wherever it comes from
  assert files[0].read_bytes() == files[1].read_bytes()
  assert 0 < one['sets']['countdown']['numbers']['mean@12'] < 1


def test_a_finished_evaluation_is_read_not_repeated(story):
  folder, told = story
  assert 'countdown: all 62 problems are already in' in told['rest'][1]
  assert told['rest'][0] == told['again'][0]


def test_training_evaluates_by_the_same_code(story):
  folder, _ = story
  row = json.loads((folder / 'run/metrics.jsonl').read_text().splitlines()[0])
  numbers = report(folder / 'run')['sets']['countdown']['numbers']
  assert {f'val/countdown/{name}': value for name, value in numbers.items()} == {
    name: value for name, value in row.items() if name.startswith('val/')}
  summary = json.loads((folder / 'run/summary.json').read_text())
  assert summary['mode'] == 'eval'
  assert summary['final']['val/countdown/pass@12'] == numbers['pass@12']


def test_the_records_give_back_the_table(story):
  folder, told = story
  found = report(folder / 'run')['sets']['countdown']
  rows = [json.loads(line) for line in
          (folder / 'run' / found['records']).read_text().splitlines()]
  assert len(rows) == found['problems'] == 62
  for row in rows:
    assert row['rewards'] == [float(len(text) % 2) for text in row['responses']]
    assert {len(row[name]) for name in (
      'responses', 'rewards', 'votes', 'truncated', 'lengths')} == {12}
    assert max(row['lengths']) <= 20 and sum(row['answer']['numbers'])
  mean = sum(sum(row['rewards'][:4]) for row in rows) / (62 * 4)
  cut = sum(sum(row['truncated']) for row in rows) / (62 * 12)
  silent = sum(row['votes'].count(None) for row in rows) / (62 * 12)
  table = [[cell.strip() for cell in line.strip('|').split('|')]
           for line in told['whole'][0].strip().splitlines()]
  assert table[0] == list(suites.COLUMNS)
  assert table[2][:3] == ['countdown', '62', '4'] and table[3][2] == '12'
  assert table[2][3].startswith(f'{mean:.3f} +- 0.')
  assert table[2][6:8] == [f'{cut:.3f}', f'{silent:.3f}']
  assert 0 < silent < 1 and 0 < cut < 1 and len(table) == 4


def test_another_policy_or_setting_starts_anew_and_says_so(story):
  folder, _ = story
  _, words = finish(command(folder / 'cut', f'--config.init_from={folder}/run',
                            '--mode=eval', '--config.eval.temperature=0.5',
                            '--config.eval.problems=8'))
  assert 'countdown: starting anew in countdown-' in words
  assert 'left as they are: countdown-' in words
  assert len(list((folder / 'cut/eval').glob('*.jsonl'))) == 2
  assert report(folder / 'cut')['sets']['countdown']['temperature'] == 0.5


@pytest.fixture
def quick_compiles():
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


def test_several_sets_each_at_its_own_n_killed_between_two(
    tmp_path, monkeypatch, capsys, quick_compiles):
  asked, sample, add = [], sampler.sample, records.Records.add
  monkeypatch.setattr(sampler, 'sample', lambda *args, **kwargs: asked.append(
    (kwargs['samples_per_prompt'], kwargs['temperature'])) or sample(*args, **kwargs))
  monkeypatch.setattr(countdown_task.Countdown, 'eval_sets', lambda self: {
    'one': base.EvalSet(self.problems('test')[:3], 1, 0.0),
    'two': base.EvalSet(self.problems('test')[:2], 2, 0.5)})
  config = countdown.get_config('tiny')
  config.warmstart.steps = config.num_steps = 0
  config.log.tensorboard = False
  train.Run(config, str(tmp_path)).train()
  assert asked == [(1, 0.0), (2, 0.5)]

  def killed(self, *args):
    if self.path.name.startswith('two-'):
      raise KeyboardInterrupt
    add(self, *args)

  monkeypatch.setattr(records.Records, 'add', killed)
  with pytest.raises(KeyboardInterrupt):
    train.Run(config, str(tmp_path)).evaluate_only()
  assert not (tmp_path / 'eval.json').exists()
  monkeypatch.setattr(records.Records, 'add', add)
  train.Run(config, str(tmp_path)).evaluate_only()
  assert asked[2:] == [(1, 0.0), (2, 0.5), (2, 0.5)]

  lines = capsys.readouterr().out.splitlines()
  assert [line.split('|')[1].strip() for line in lines if '---' not in line] == [
    'set', 'one', 'two', 'average']
  found = report(tmp_path)
  assert [found['sets'][name]['samples'] for name in ('one', 'two')] == [1, 2]
  row = json.loads((tmp_path / 'metrics.jsonl').read_text())
  for name in ('one', 'two'):
    for key, value in found['sets'][name]['numbers'].items():
      assert row[f'val/{name}/{key}'] == value
  for key, value in found['average'].items():
    assert row[f'val/average/{key}'] == value
  assert {'mean@n', 'pass@n_stderr', 'maj@n'} < found['average'].keys()


def test_nothing_to_evaluate_is_said(tmp_path):
  process = command(tmp_path / 'run', '--mode=eval')
  _, words = process.communicate(timeout=120)
  assert process.returncode == 2 and 'holds no checkpoint' in words
  assert 'Traceback' not in words
