"""The loop keeps its promises when things go wrong."""

import functools
import json
import tempfile

import jax
import numpy as np
import pytest

from experiments import countdown
from lpo_jax import build, programs, train
from lpo_jax import metrics as metrics_lib
from lpo_jax.tasks import countdown as countdown_task


def _tiny():
  config = countdown.get_config('tiny')
  config.warmstart.steps = 0
  config.num_steps = 3
  config.log.tensorboard = False
  return config


@pytest.fixture
def config():
  return _tiny()


def test_a_reward_that_is_not_a_number_stops_the_run_and_names_the_problem(
    config, tmp_path, monkeypatch):
  monkeypatch.setattr(countdown_task.Countdown, 'verify', lambda *_: float('nan'))
  with pytest.raises(ValueError, match=r"reward=nan .* problem '"):
    train.Run(config, str(tmp_path)).train()


def test_gradients_that_are_not_finite_are_skipped_kept_and_end_the_run(
    config, tmp_path, monkeypatch):
  monkeypatch.setattr(countdown_task.Countdown, 'verify',
                      lambda _, problem, text: float(len(text) % 2))
  config.optimizer.learning_rate = 1e38  # the second update starts from overflow
  config.optimizer.clip_norm = None
  config.optimizer.max_skipped_steps = 3
  config.num_steps = 6
  with pytest.raises(FloatingPointError, match='max_skipped_steps=3'):
    train.Run(config, str(tmp_path)).train()
  evidence = sorted((tmp_path / 'skipped').iterdir())
  with np.load(evidence[0]) as arrays:
    assert arrays['rewards'].shape == (8, 4)
  lines = metrics_lib.read(str(tmp_path))
  assert any(line.get('actor/skipped_frac', 0) > 0 for line in lines)


def test_a_batch_of_flat_groups_changes_nothing(config, tmp_path, monkeypatch):
  monkeypatch.setattr(countdown_task.Countdown, 'verify', lambda *_: 1.0)
  train.Run(config, str(tmp_path)).train()
  lines = metrics_lib.read(str(tmp_path))
  assert [line['group/flat_frac'] for line in lines[1:]] == [1.0] * 3
  assert [line['actor/useful_frac'] for line in lines[1:]] == [0.0] * 3
  validation = [line['val/countdown/mean@4'] for line in lines
                if 'val/countdown/mean@4' in line]
  assert len(set(validation)) == 1
  assert json.loads((tmp_path / 'summary.json').read_text())['step'] == 3


def test_on_policy_reverse_projection_is_the_policy_gradient_over_a_whole_run(
    config, tmp_path, monkeypatch):
  """Proposition 1, curve on curve: one update a batch, the same temperature."""
  monkeypatch.setattr(countdown_task.Countdown, 'verify',
                      lambda _, problem, text: float(text.count('1') > 0))
  config.update(num_steps=10, updates_per_step=1, epochs=1)
  config.optimizer.learning_rate = 3e-3
  curves = {}
  for name in ('grpo', 'lpo_rev', 'lpo_fwd'):
    config.objective.name = name
    config.objective.aggregation = 'seq_mean_token_mean' if name == 'grpo' else None
    train.Run(config, str(tmp_path / name)).train()
    curves[name] = {
      (line['step'], number): value for line in metrics_lib.read(str(tmp_path / name))
      for number, value in line.items()
      if number.startswith(('reward/', 'val/', 'group/', 'actor/grad_norm',
                            'actor/entropy', 'response_length/'))}
  gradient, reverse, forward = (curves[name] for name in ('grpo', 'lpo_rev', 'lpo_fwd'))
  assert gradient.keys() == reverse.keys()
  rewards = [gradient[step, 'reward/mean'] for step in range(1, 11)]
  assert max(rewards) - min(rewards) > 0.1  # it learned, so there is a curve
  for key, value in gradient.items():
    np.testing.assert_allclose(reverse[key], value, rtol=1e-4, err_msg=str(key))
  assert any(forward[key] != pytest.approx(gradient[key], rel=1e-2)
             for key in gradient)  # what could have been otherwise


def test_a_workdir_of_another_configuration_is_refused(config, tmp_path):
  config.num_steps = 0
  train.Run(config, str(tmp_path)).train()
  config.seed = 5
  with pytest.raises(ValueError, match='seed: there 0, here 5'):
    train.Run(config, str(tmp_path))


def test_a_checkpoint_of_another_shape_is_refused(config, tmp_path):
  config.num_steps = 0
  train.Run(config, str(tmp_path)).train()
  config.policy.name = 'countdown_small'
  run = train.Run(config, str(tmp_path), override_workdir=True)
  with pytest.raises(ValueError, match='another state.*42 arrays differ'):
    run.train()


def test_an_unwritable_workdir_is_named(config, tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(ValueError, match='workdir=.*file.* cannot be written'):
    train.Run(config, str(tmp_path / 'file'))


@functools.cache
def _numbers_of_a_run(fields):
  """Return the lines of a run that samples where it learns, but for its times."""
  config = _tiny()
  config.update_from_flattened_dict({
    'mesh.shape': (2, 2, 2), 'prompts_per_step': 16, 'micro_prompts': 8,
    'eval.problems': 5, 'num_steps': 2, 'task.reward.length': 0.5,
    'task.reward.correct': 0.5, 'objective.temperature.rule': 'constant',
    **dict(fields)})
  with tempfile.TemporaryDirectory() as workdir:
    train.Run(config, workdir).train()
    return [{name: value for name, value in row.items()
             if value is not None and not name.startswith(('timing_s/', 'perf/'))}
            for row in metrics_lib.read(workdir)]


_AHEAD = {'async_rollouts': 1}
_REPLAY = _AHEAD | {'replay.fraction': 0.5, 'num_steps': 3}
_OTHERS = {'mesh.sampling_devices': 'others'}


@pytest.mark.parametrize(('fields', 'where'), [
  ({}, {'mesh.sampling_shape': (8, 1, 1)}),
  ({}, {'mesh.sampling_shape': (2, 4, 1), 'sampling.prompts_at_once': 8}),
  (_AHEAD, {'mesh.sampling_shape': (4, 1, 2)}),
  ({'step_level.fraction': 0.5}, {'mesh.sampling_shape': (4, 2, 1)}),
  (_AHEAD, _OTHERS | {'mesh.sampling_shape': (2, 1, 2), 'mesh.shape': (1, 4, 1),
                      'checkpoint.every': 1}),
  (_REPLAY, _OTHERS | {'mesh.shape': (2, 1, 1)})])
def test_a_run_is_the_same_wherever_it_samples(fields, where):
  there, here = (_numbers_of_a_run(frozenset(choice.items()))
                 for choice in (fields, fields | where))
  assert here[1]['actor/grad_norm'] > 0
  for row, expected in zip(here, there, strict=True):
    assert row == pytest.approx(expected, rel=1e-3, abs=2e-6)


def test_the_update_keeps_its_placement_on_a_mesh(config):
  config.mesh.shape = (2, 2, 2)
  config.policy.name = 'countdown_small'
  config.micro_prompts = 4
  parts = build.build(config)
  compiled = programs.Programs(parts)
  with jax.set_mesh(parts.mesh):
    state = compiled.state_of(compiled.fresh_params(jax.random.key(0)),
                              jax.random.key(1))
  for leaf, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(compiled.abstract),
                          strict=True):
    assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)
  moment = state.opt_state[1][0].mu.blocks.query[...]
  assert moment.sharding.shard_shape(moment.shape) == (4, 64, 64)
