"""Every variant says the paper's setting, and every tiny one trains and evaluates."""

import importlib
import json
import math
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import pytest

from configs import base, models, objectives, paper
from lpo_jax import build, checks, footprint, tasks, train
from lpo_jax import metrics as metrics_lib

ROOT = pathlib.Path(__file__).parents[1]
KIND = 'bubblewrap' if shutil.which('bwrap') else 'rlimits'
EXPERIMENTS = {name: importlib.import_module(f'experiments.{name}')
               for name in ('math', 'polaris', 'prime_code')}
BACKBONES = [(name, variant) for name, module in EXPERIMENTS.items()
             for variant in module.NAMES if variant != 'tiny']
FULL = [(name, variant) for name, variant in BACKBONES if variant != 'ood']


@pytest.fixture
def tiny(monkeypatch):
  """Return a tiny variant, shrunk to what a test can wait for."""
  monkeypatch.chdir(ROOT)  # the samples' places are relative

  def get(name):
    config = EXPERIMENTS[name].get_config('tiny')
    config.warmstart.update(steps=2, warmup_steps=1)
    config.num_steps = 2
    config.log.tensorboard = False
    config.task.sandbox = KIND
    config.task.workers = 2
    return config
  return get


@pytest.mark.parametrize('name', EXPERIMENTS)
def test_the_tiny_variant_trains_and_evaluates(name, tiny, tmp_path):
  config = tiny(name)
  run = train.Run(config, str(tmp_path))
  run.train()
  lines = metrics_lib.read(str(tmp_path))
  assert [line['step'] for line in lines] == [0, 1, 2]
  subject = 'code' if name == 'prime_code' else 'math'
  for line in lines[1:]:
    assert 0 <= line['reward/correct'] <= line['reward/format'] <= 1
    assert line['reward/mean'] == pytest.approx(line['reward/correct'])
    assert line['grading/error_frac'] == line['grading/timeout_frac'] == 0
    assert line['grading/queue_s'] >= 0
  assert f'val/{subject}_sample/mean@4' in lines[0]
  stored = json.loads((tmp_path / 'config.json').read_text())['data']
  assert {set_['sha256'] for set_ in stored.values()} == {
    set_['sha256'] for set_ in run.parts.described.values()}
  assert sum(set_['problems'] for set_ in stored.values()) == (
    24 if subject == 'code' else 60)


@pytest.mark.parametrize('subject', ['math', 'code'])
def test_samples_are_right_and_kept_apart(subject, monkeypatch):
  monkeypatch.chdir(ROOT)
  module = EXPERIMENTS['prime_code' if subject == 'code' else 'math']
  config = module.get_config('tiny')
  options = dict(config.task.options) | {'overlap': 'error'}
  if subject == 'code':
    options['sandbox'] = KIND
  task = tasks.get(subject, **options)
  problems = task.problems('train')
  for problem in problems[:12]:
    assert task.verify(problem, task.demonstration(problem)) == 1.0, problem


def test_a_changed_problem_set_is_another_run(tiny, tmp_path):
  config = tiny('math')
  config.num_steps = config.warmstart.steps = 0
  rows = (ROOT / 'experiments/samples/math_train.jsonl').read_text()
  place = tmp_path / 'train.jsonl'
  place.write_text(rows)
  config.task.options.train = str(place)
  train.Run(config, str(tmp_path / 'run')).train()
  place.write_text(rows.replace('"answer": "8"', '"answer": "9"'))
  with pytest.raises(ValueError, match=r'data.train train.sha256: there'):
    train.Run(config, str(tmp_path / 'run'))


def test_training_prompts_beyond_the_largest_bucket_are_dropped_and_counted(tiny):
  config = tiny('math')
  whole = build.build(config)
  lengths = sorted(len(whole.tokenizer.encode(p.prompt)) for p in whole.train_problems)
  config.sampling.prompt_buckets = (lengths[30],)
  config.task.options.evals = ('short=experiments/samples/math_train.jsonl',)
  with pytest.raises(ValueError, match='every training problem'):
    build.build(config)  # they are all asked in the evaluation
  config.task.options.evals = ('math_sample=experiments/samples/math_test.jsonl',)
  short = [p for p in whole.eval_sets['math_sample'].problems
           if len(whole.tokenizer.encode(p.prompt)) <= lengths[30]]
  assert len(short) < 12
  with pytest.raises(ValueError, match=r"prompt 'math_sample-\d+' has \d+ tokens"):
    build.build(config)  # an evaluation set is never cut silently
  config.sampling.prompt_buckets = (192,)
  assert build.build(config).described['train math_train']['dropped'] == {}
  task = tasks.get('math', **config.task.options)
  task.restrict(lambda p: len(whole.tokenizer.encode(p.prompt)) <= lengths[30])
  count = sum(length > lengths[30] for length in lengths)
  assert task.described()['train math_train']['dropped'] == {'too long': count}


def test_a_missing_sandbox_refuses_before_anything_is_compiled(tmp_path):
  found = subprocess.run(
    [sys.executable, '-m', 'lpo_jax.main', '--config=experiments/prime_code.py:tiny',
     f'--workdir={tmp_path}'], cwd=ROOT, capture_output=True, text=True, timeout=120,
    env={'PATH': '/nowhere', 'JAX_PLATFORMS': 'cpu', 'JAX_LOG_COMPILES': '1',
         'HOME': str(tmp_path)})
  assert found.returncode == 2, found.stderr
  assert 'error: sandbox=' in found.stderr and 'apt-get install' in found.stderr
  assert 'Finished XLA compilation' not in found.stderr


def _children(pid):
  path = pathlib.Path(f'/proc/{pid}/task/{pid}/children')
  return [int(child) for task in path.parents[1].glob('*/children')
          for child in task.read_text().split()]


def test_sigterm_leaves_no_process_behind(tmp_path):
  process = subprocess.Popen(
    [sys.executable, '-m', 'lpo_jax.main', '--config=experiments/math.py:tiny',
     f'--workdir={tmp_path}', '--config.task.workers=2'], cwd=ROOT,
    env={'PATH': '/usr/bin:/bin', 'JAX_PLATFORMS': 'cpu', 'HOME': str(tmp_path)},
    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
  try:
    deadline = time.monotonic() + 60
    while len(children := _children(process.pid)) < 2:
      assert process.poll() is None and time.monotonic() < deadline
      time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=60)
    deadline = time.monotonic() + 10
    while any(pathlib.Path(f'/proc/{child}').exists() for child in children):
      assert time.monotonic() < deadline, children
      time.sleep(0.05)
  finally:
    process.kill()
    process.wait()


def _all_variants():
  return [(name, variant) for name, module in EXPERIMENTS.items()
          for variant in module.VARIANTS]


def test_every_variant_says_its_objective_and_passes_the_checks():
  seen = set()
  for name, variant in _all_variants():
    config = EXPERIMENTS[name].get_config(variant)
    checks.check(config)
    assert config.policy.name in models.POLICIES
    found = (config.objective.name, config.objective.temperature.rule)
    if '.' in variant:
      _, baseline, projection = variant.split('.')
      assert found == (baseline if projection == 'baseline' else projection,
                       objectives.PAIRED_TEMPERATURE[baseline])
      seen.add(found)
    else:
      assert found == ('lpo_fwd', 'group_std')
  assert len(seen) == 9


@pytest.mark.parametrize('variant', ['qwen3_2b', 'tiny.grpo', 'tiny.grpo.lpo'])
def test_an_unknown_variant_is_named(variant):
  with pytest.raises(ValueError, match=f'unknown variant {variant!r}: choose one of'):
    EXPERIMENTS['math'].get_config(variant)


@pytest.mark.parametrize(('name', 'variant'), FULL)
def test_full_variants_are_the_papers_setting(name, variant):
  config = EXPERIMENTS[name].get_config(variant)
  assert config.policy.path == paper.BACKBONES[config.policy.name]
  assert (config.prompts_per_step, config.samples_per_prompt) == (256, 8)
  assert (config.updates_per_step, config.epochs) == (2, 1)
  sampling = config.sampling
  assert (sampling.max_new_tokens, sampling.temperature, sampling.top_k,
          sampling.top_p) == (4096, 1.0, 0, 1.0)
  assert config.eval.temperature == 0.6
  assert config.objective.token_clip == 0.2
  optimizer = config.optimizer
  assert (optimizer.learning_rate, optimizer.schedule, optimizer.b1, optimizer.b2,
          optimizer.weight_decay) == (1e-6, 'constant', 0.9, 0.999, 0.1)
  assert (config.task.reward.correct, config.task.reward.format) == (1.0, 0.0)
  tasks.get(config.task.name, **config.task.options)  # every set is known
  assert base.get_config().objective.score == config.objective.score == 'mean'


@pytest.mark.parametrize(('name', 'variant'), FULL)
def test_full_variants_are_estimated_to_fit_their_machine(name, variant):
  config = EXPERIMENTS[name].get_config(variant)
  config.policy.path = ''  # sizes alone
  mesh = jax.sharding.AbstractMesh(tuple(config.mesh.shape), tuple(config.mesh.axes))
  parts = build.plan(config, mesh)
  sizes = footprint.memory(build.setting(parts, config.prompts_per_step))
  largest = max(kinds['total'] for kinds in sizes.values())
  assert math.prod(config.mesh.shape) == 8 and largest < 0.9 * 80e9, sizes
