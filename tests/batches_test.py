"""A step's groups: sampled, partly local, or taken from lists; a resumed run's, too."""

import json
import pathlib
import re
import shutil
import types

import jax
import numpy as np
import pytest

from experiments import countdown, offline_lists
from lpo_jax import (
  batches,
  build,
  counterfactual,
  lists,
  phases,
  programs,
  rollout,
  tasks,
  train,
)
from lpo_jax import metrics as metrics_lib
from lpo_jax.tasks import countdown as countdown_task
from lpo_jax.types import Problem
from tests import origin_test

ROOT = pathlib.Path(__file__).parents[1]
COSTS = ('timing_s/', 'perf/')


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
  monkeypatch.chdir(ROOT)  # the samples' places are relative


def tiny(offline: bool = False, **changes):
  config = (offline_lists if offline else countdown).get_config('tiny')
  config.num_steps = 3
  config.warmstart.update(steps=2, warmup_steps=1)
  config.eval.update(every=9, problems=2)
  config.checkpoint.every = 1
  config.checkpoint.keep = 9
  config.log.update(groups_every=1, groups=4, tensorboard=False)
  config.update_from_flattened_dict(changes)
  return config


def run(config, folder):
  train.Run(config, str(folder)).train()
  return [{name: value for name, value in row.items() if not name.startswith(COSTS)}
          for row in metrics_lib.read(str(folder))]


def cut_back(folder, step):
  """Make a run one that was killed after the checkpoint of `step`."""
  for path in (folder / 'checkpoints').iterdir():
    if path.name.isdigit() and int(path.name) > step:
      shutil.rmtree(path)


# Lists.


@pytest.fixture(scope='module')
def listed(tmp_path_factory):
  """A run on lists, and its folder."""
  folder = tmp_path_factory.mktemp('lists') / 'run'
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(ROOT)
    return folder, run(tiny(offline=True), folder)


def test_lists_are_taken_in_turn_and_learned_from(listed):
  folder, rows = listed
  source = [json.loads(line) for line in
            (ROOT / offline_lists.LISTS).read_text().splitlines()]
  answers = {row['id']: row for row in source}
  seen = [json.loads(line) for step in (1, 2, 3) for line in
          (folder / 'rollouts' / f'step_{step:06d}.jsonl').read_text().splitlines()]
  assert len({row['id'] for row in seen}) == len(seen) == 12  # of the first epoch
  for row in seen:
    assert row['responses'] == answers[row['id']]['responses']
    np.testing.assert_allclose(row['rewards'], answers[row['id']]['rewards'])
    rewards = np.array(row['rewards'])
    target = np.exp(rewards / rewards.std())
    np.testing.assert_allclose(row['target'], target / target.sum(), rtol=1e-5)
    np.testing.assert_allclose(row['policy_before'], 1 / 8)  # pi_b stays the anchor
  assert all(row['actor/grad_norm'] > 0 for row in rows[1:])
  assert rows[1]['mismatch/logp_abs_mean'] < 1e-5  # the policy is its own reference
  assert rows[3]['mismatch/logp_abs_mean'] > 1e-5  # and has left it


def test_a_run_on_lists_goes_on_with_the_reference_that_it_began_with(listed, tmp_path):
  folder, rows = listed
  shutil.copytree(folder, tmp_path / 'run')
  cut_back(tmp_path / 'run', 1)
  assert run(tiny(offline=True), tmp_path / 'run') == rows
  cut_back(tmp_path / 'run', 1)
  (tmp_path / 'run' / batches.REFERENCE).write_bytes(b'PK')
  with pytest.raises(ValueError, match=r'reference.npz cannot be read .*new workdir'):
    run(tiny(offline=True), tmp_path / 'run')


def test_other_lists_are_another_run(listed, tmp_path):
  shutil.copytree(listed[0], tmp_path / 'run')
  copy = tmp_path / 'lists.jsonl'
  config = tiny(offline=True)
  text = (ROOT / offline_lists.LISTS).read_text()
  copy.write_text(text.replace('"rewards": [0.0', '"rewards": [0.5'))
  config.offline.path = str(copy)
  with pytest.raises(ValueError, match='data.lists.sha256: there'):
    train.Run(config, str(tmp_path / 'run'))
  with pytest.raises(ValueError, match='learned from fixed lists'):
    counterfactual.sample_again(listed[0], 1)


@pytest.mark.parametrize(('changes', 'message'), [
  ({'offline.path': 'nowhere'}, "offline.path='nowhere' cannot be read"),
  ({'samples_per_prompt': 4}, r'countdown_lists.jsonl:1: .* samples_per_prompt=4'),
  ({'objective.behavior': 'learner'}, "behavior='learner' with offline.path"),
  ({'offline.rewards': 'best'}, "offline.rewards='best'"),
  ({'step_level.fraction': 0.5}, r'takes neither step_level.fraction'),
  ({'sampling.max_new_tokens': 5}, r'jsonl:1: response 0 has \d+ tokens'),
])
def test_bad_lists_are_refused_before_anything_is_compiled(changes, message):
  with pytest.raises(ValueError, match=message):
    build.build(tiny(offline=True, **changes))


def test_pairs_are_soft_dpo_through_the_same_entry():
  config = offline_lists.get_config('pairs')
  parts = build.build(config)
  assert parts.lists.rewards.shape == (64, 2)
  assert (parts.objective.score, parts.objective.token_clip) == ('sum', None)
  with pytest.raises(ValueError, match="unknown variant 'pair'"):
    offline_lists.get_config('pair')


def test_lists_written_from_a_run_are_its_policys_own(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(countdown_task.Countdown, 'verify', origin_test.by_checksum)
  run(tiny(**{'num_steps': 0, 'warmstart.steps': 20}),
      tmp_path / 'run')
  out = tmp_path / 'lists.jsonl'
  assert lists.main([str(tmp_path / 'run'), f'--out={out}', '--lists=9', '--samples=2',
                     '--mixed']) == 0
  assert 'written' in capsys.readouterr().out
  rows = [json.loads(line) for line in out.read_text().splitlines()]
  assert len(rows) == 9 and all(len(set(row['rewards'])) == 2 for row in rows)
  config = tiny(offline=True, **{
    'offline.path': str(out), 'samples_per_prompt': 2, 'warmstart.steps': 0,
    'init_from': str(tmp_path / 'run'), 'num_steps': 1})
  row = run(config, tmp_path / 'learned')[1]
  assert row['mismatch/logp_abs_mean'] < 1e-5  # pi_b, as written, is that policy
  assert not (tmp_path / 'learned' / batches.REFERENCE).exists()
  assert lists.main([str(tmp_path / 'none'), f'--out={out}']) == 2
  assert 'give a run folder' in capsys.readouterr().err
  assert lists.main([str(tmp_path / 'run'), f'--out={out}', '--lists=0']) == 2


# Sampled groups.


@pytest.fixture(scope='module')
def start():
  """The tiny parts, and a policy that writes steps."""
  config = tiny(**{'warmstart.steps': 0})
  parts = build.build(config)
  with jax.set_mesh(parts.mesh):
    params = programs.Programs(parts).fresh_params(jax.random.key(0))
  return config, parts, params


def test_without_local_groups_nothing_changes(start):
  config, parts, params = start
  key = jax.random.key(3)
  with jax.set_mesh(parts.mesh):
    batch = batches.collect(config, parts, params, 2, key, phases.Phases(None))
    groups, graded = rollout.collect(
      params, batch.problems, key, parts.task, parts.tokenizer, parts.sampling,
      parts.mesh, phases.Phases(None), parts.reward)
  jax.tree.map(np.testing.assert_array_equal, batch.groups, groups)
  assert graded.texts == batch.graded.texts and batch.local == 0
  assert graded.metrics.keys() == batch.graded.metrics.keys()
  assert batch.shown(3) == [0, 1, 2]


def test_what_is_shown_has_local_groups_in_their_share():
  batch = batches.Batch(list(range(8)), None, None, local=2)
  assert batch.shown(4) == [0, 1, 2, 7]
  assert batch.shown(9) == list(range(8))
  assert batch.shown(1) == [7]


def test_a_run_with_local_groups_goes_on_with_the_same_numbers(tmp_path, monkeypatch):
  monkeypatch.setattr(countdown_task.Countdown, 'verify', origin_test.by_checksum)
  monkeypatch.setattr(
    countdown_task.Countdown, 'step_ends',
    lambda self, problem, text: [len(word) for word in [text[:text.find(' ')]]])
  config = tiny(**{'step_level.fraction': 0.25})
  rows = run(config, tmp_path / 'run')
  for row in rows[1:]:
    assert row['step_level/prefixed_frac'] == 1.0
    assert row['step_level/prefix_tokens'] >= 1
    assert row['reward/mean'] == pytest.approx(
      (6 * row['reward/correct'] + 2 * row['step_level/correct']) / 8)
  looked = [json.loads(line) for line in
            (tmp_path / 'run/rollouts/step_000003.jsonl').read_text().splitlines()]
  assert [bool(row.get('prefix')) for row in looked] == [False] * 3 + [True]
  assert all(text.startswith(looked[-1]['prefix']) for text in looked[-1]['responses'])
  cut_back(tmp_path / 'run', 1)
  assert run(config, tmp_path / 'run') == rows
  monkeypatch.undo()


@pytest.mark.parametrize(('part', 'words'), [
  ('warmstart', "warmstart.steps: task 'other' has no demonstrations"),
  ('step_level', "step_level.fraction: task 'other' has no steps")])
def test_a_task_is_refused_that_does_not_say_what_the_run_asks(part, words):
  asked = {name: name == part or None for name in ('warmstart', 'step_level')}
  parts, task = types.SimpleNamespace(**asked), countdown_task.Countdown(train_size=8)
  batches.check_task(parts, task, task.problems('train')[0])
  other = type('Other', (tasks.base.Task,), {'name': 'other'})()
  with pytest.raises(ValueError, match=re.escape(words)):
    batches.check_task(parts, other, Problem('prompt', 'answer', 'id'))
