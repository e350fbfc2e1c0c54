"""A study shares starts, problems and keys; its commands are what it runs."""

import json
import os
import pathlib
import shlex
import subprocess
import sys

import pytest

from lpo_jax import build, finished, metrics, study
from tests import compiler

ROOT = pathlib.Path(__file__).parents[1]
TINY = 'experiments/countdown.py:tiny'
PAIRED = 'experiments/studies/paired.py'


@pytest.fixture(autouse=True)
def _root(monkeypatch):
  monkeypatch.chdir(ROOT)


def test_axes_are_crossed_with_all_their_fields():
  found = study.cross({'a': {'x': 1}, 'b': {'x': 2, 'y': 3}}, {'k4': {'z': 4}})
  assert found == {'a-k4': {'x': 1, 'z': 4}, 'b-k4': {'x': 2, 'y': 3, 'z': 4}}


def test_runs_of_a_seed_share_a_start_unless_a_field_makes_another(tmp_path):
  small = {'policy.name': 'countdown_tiny'}
  planned = study.plan(study.Study(
    base=TINY, seeds=(0, 5), fixed={'eval.problems': 4}, runs={
      'one': {'objective.name': 'grpo'}, 'two': {'objective.name': 'lpo_fwd'},
      'wide': {'policy.name': 'countdown_small'},
      'same': small}), str(tmp_path))
  starts = ['start_0/seed_0', 'start_1/seed_0', 'start_0/seed_5', 'start_1/seed_5']
  assert list(planned)[:4] == starts
  after = {name: job.after for name, job in planned.items()}
  assert after['runs/one/seed_5'] == after['runs/two/seed_5'] == 'start_0/seed_5'
  assert after['runs/wide/seed_0'] == 'start_1/seed_0'
  assert planned['runs/same/seed_0'].after == 'start_0/seed_0'  # as the base has it
  for job in list(planned.values())[4:]:
    assert job.config.warmstart.steps == 0
    assert job.config.init_from == str(tmp_path / job.after)
    assert job.config.eval.problems == 4
  assert all(job.config.num_steps == 0 for job in map(planned.get, starts))


def test_without_a_warm_start_there_is_no_start(tmp_path):
  planned = study.plan(study.Study(base=TINY, seeds=(0,), runs={'a': {}},
                                   fixed={'warmstart.steps': 0}), str(tmp_path))
  assert list(planned) == ['runs/a/seed_0']
  assert planned['runs/a/seed_0'].after == ''


def test_what_two_studies_run_alike_runs_once(tmp_path):
  def one(**runs):
    return study.Study(base=TINY, seeds=(0, 1), runs={
      name: {'objective.name': objective} for name, objective in runs.items()})

  studies = one(a='grpo', b='lpo_rev'), one(c='lpo_rev', d='rft')
  first, second = study.plan_all(studies, ['first', 'second'], str(tmp_path))
  assert second['runs/c/seed_1'] is first['runs/b/seed_1']
  assert second['start_0/seed_0'] is first['start_0/seed_0']
  assert first['runs/b/seed_1'].folder == tmp_path / 'first/runs/b/seed_1'
  new = second['runs/d/seed_0']
  assert new.folder == tmp_path / 'second/runs/d/seed_0'
  assert new.after == 'first/start_0/seed_0'
  every = (*first.values(), *second.values())
  assert len({job.name for job in every}) == len({job.folder for job in every}) == 8
  with pytest.raises(ValueError, match='two studies of one name'):
    study.plan_all([one(a='grpo')] * 2, ['first'] * 2, str(tmp_path))


@pytest.mark.parametrize(('fields', 'message'), [
  ({'objective.nam': 'grpo'}, 'does not take .*objective.nam'),
  ({'num_steps': 'many'}, "does not take .*'many'"),
])
def test_fields_that_no_config_has_stop_the_study_at_once(tmp_path, fields, message):
  with pytest.raises(ValueError, match=message):
    study.plan(study.Study(base=TINY, runs={'a': fields}), str(tmp_path))


def test_a_folder_of_another_configuration_is_refused(tmp_path):
  os.makedirs(tmp_path / 'runs/a/seed_0')
  metrics.write_json(tmp_path / 'runs/a/seed_0/config.json', {'seed': 3})
  with pytest.raises(ValueError, match='belongs to another configuration'):
    study.plan(study.Study(base=TINY, runs={'a': {}}), str(tmp_path))


def test_what_is_no_study_is_named(tmp_path):
  path = tmp_path / 'file.py'
  with pytest.raises(ValueError, match='is no file'):
    study.load(str(path))
  path.write_text('x = 1')
  with pytest.raises(ValueError, match=r'has no get_study\(\)'):
    study.load(str(path))
  path.write_text('def get_study(): return 3')
  with pytest.raises(ValueError, match='returned int'):
    study.load(str(path))
  path.write_text('from lpo_jax import study\ndef get_study(variant):\n  return study.'
                  'Study(base="b", runs={variant: {}}, pairs=(("a", "c"),))')
  with pytest.raises(ValueError, match="names no run 'c'"):
    study.load(f'{path}:a')


def test_the_paired_study_differs_in_projection_alone(tmp_path):
  planned = study.plan(study.load(PAIRED), str(tmp_path))
  configs = {name: job.config for name, job in planned.items() if job.after}
  assert len(configs) == 27
  for method in ('grpo', 'dr_grpo', 'maxrl'):
    plain = configs[f'runs/{method}/seed_1'].to_dict()
    for name in ('lpo_fwd', 'lpo_rev'):
      other = configs[f'runs/{name}-{method}/seed_1'].to_dict()
      assert other['objective'].pop('name') == name
      expected = json.loads(json.dumps(plain))
      expected['objective'].pop('name')
      assert expected['objective'].pop('aggregation') == 'seq_mean_token_mean'
      other['objective'].pop('aggregation')
      assert json.loads(json.dumps(other)) == expected
  exact = study.plan(study.load(f'{PAIRED}:exact_small'), str(tmp_path / 'exact'))
  for name, score, clip in (('grpo', 'mean', 0.2), ('lpo_fwd-grpo', 'sum', None)):
    found = exact[f'runs/{name}/seed_1'].config.objective
    assert (found.score, found.token_clip) == (score, clip)


def test_a_study_runs_to_its_report_and_says_its_commands(tmp_path):
  path, out = tmp_path / 'pair.py', tmp_path / 'out'
  path.write_text(
    'from lpo_jax import study\ndef get_study():\n  return study.Study('
    f'base={TINY!r}, seeds=(4,), fixed={{"num_steps": 1, "eval.problems": 4}}, '
    'runs={"grpo": {"objective.name": "grpo"}, "fwd": {"objective.name": "lpo_fwd"}}, '
    'pairs=(("fwd", "grpo"),))')
  environment = os.environ | compiler.ONE_DEVICE

  def run(*arguments):
    found = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment,
                           capture_output=True, text=True, timeout=600)
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout

  study_command = ('-m', 'lpo_jax.study', f'--study={path}', f'--out={out}')
  commands = run(*study_command, '--dry_run').splitlines()
  assert len(commands) == 3 and not out.exists()
  run(*shlex.split(commands[0])[1:])  # as a shell would; the study does the rest
  assert '1 of 3 runs are done already' in run(*study_command)
  text = (out / 'report' / 'report.md').read_text()
  assert '| fwd - grpo | ' in text and 'bootstrap' in text
  assert '| grpo | 1 | ' in text
  grpo, fwd = (finished.load(out / 'runs' / name / 'seed_4').rows
               for name in ('grpo', 'fwd'))
  for name in ('reward/mean', 'response_length/mean', 'actor/entropy'):
    assert grpo[1][name] == fwd[1][name]  # the same samples at first
  assert grpo[0]['val/countdown/mean@4'] == fwd[0]['val/countdown/mean@4']


@pytest.mark.parametrize('path', sorted((ROOT / 'experiments/studies').glob('*.py')),
                         ids=lambda path: path.stem)
def test_every_study_is_made_of_runs_that_can_be_built(path, tmp_path, monkeypatch):
  found = study.load(str(path))
  planned = study.plan(found, str(tmp_path), seeds=(0,)).values()
  assert len({job.config.to_json() for job in planned}) == len(planned)
  for job in planned:
    assert build.plan(job.config) is not None
