"""A batch is sampled when and by whom it says, and what cannot be had again is kept."""

import json

import jax
import numpy as np

from experiments import countdown
from lpo_jax import batches, build, microbatch, phases, programs, rollout, supply, train
from lpo_jax import metrics as metrics_lib

_STEPS = 3
_SEEN = ('actor/grad_norm', 'actor/loss', 'reward/mean', 'actor/entropy',
         'lpo/token_clip_frac', 'response_length/mean')


def _config(**fields):
  """Return a run in which rewards differ: shorter is better."""
  config = countdown.get_config('tiny')
  config.update_from_flattened_dict({
    'warmstart.steps': 0, 'num_steps': _STEPS, 'log.tensorboard': False,
    'task.reward.correct': 0.5, 'task.reward.length': 0.5, 'eval.problems': 2,
    'eval.every': 100, 'optimizer.learning_rate': 3e-3, 'checkpoint.every': 1,
    'objective.temperature.rule': 'constant', 'objective.temperature.value': 0.2,
    **fields})
  return config


def _supply(config, parts):
  key = jax.random.key(config.seed)
  return supply.Supply(config, parts, jax.random.fold_in(key, train.SAMPLE),
                       jax.random.fold_in(key, train.REPLAY), phases.Phases(None))


def _lines(config, workdir):
  train.Run(config, str(workdir)).train()
  return metrics_lib.read(str(workdir))


def _by_hand(config):
  """Return the numbers of a plain loop in which batch t + 1 comes from pi before t."""
  parts = build.build(config)
  compiled, clock = programs.Programs(parts), phases.Phases(None)
  key, found = jax.random.key(config.seed), []
  sampling = jax.random.fold_in(key, train.SAMPLE)

  def sample(policy, step):
    groups, _ = rollout.collect(
      policy, batches.training_problems(config, parts, step),
      jax.random.fold_in(sampling, step), parts.task,
      parts.tokenizer, parts.sampling, parts.mesh, clock, parts.reward)
    return groups

  with jax.set_mesh(parts.mesh):
    state = compiled.state_of(
      compiled.fresh_params(jax.random.fold_in(key, train.INIT)),
      jax.random.fold_in(key, train.ADAPT))
    groups = sample(state.params, 1)
    logprobs = jax.jit(lambda policy, rollouts: microbatch.logprobs(
      policy, rollouts, parts.update))
    for step in range(1, _STEPS + 1):
      following = sample(state.params, step + 1)
      if step > 1:
        rollouts = jax.device_get(groups.rollouts)
        now = np.float64(logprobs(state.params, groups.rollouts))
        ratio = np.where(rollouts.response_mask, now - rollouts.logprobs, 0).sum(-1)
        ratio /= rollouts.response_mask.sum(-1)
        groups = groups.replace(anchor_scores=jax.numpy.asarray(ratio, np.float32))
        assert np.abs(ratio).max() > 1e-3  # the policy has moved since
      state, metrics, _ = compiled.update(state, groups)
      found.append(metrics_lib.reduce(metrics))
      groups = following
  return found


def test_a_batch_sampled_ahead_is_one_step_old_and_anchored_where_the_policy_is(
    tmp_path):
  config = _config(async_rollouts=1)
  lines = _lines(config, tmp_path)
  for line, expected in zip(lines[1:], _by_hand(config), strict=True):
    for name in _SEEN:
      np.testing.assert_allclose(line[name], expected[name], rtol=1e-4, err_msg=name)
  assert [line['async/age'] for line in lines[1:]] == [0, 1, 1]
  assert lines[1]['async/ess'] == 1 > lines[2]['async/ess'] > 0.5
  group = json.loads((tmp_path / 'rollouts/step_000002.jsonl').read_text()
                     .splitlines()[0])
  assert np.ptp(group['policy_before']) > 1e-4  # P_t is not uniform


def test_by_default_nothing_is_kept_and_a_group_has_no_age():
  config = _config()
  parts = build.build(config)
  with jax.set_mesh(parts.mesh):
    source = _supply(config, parts)
    compiled = programs.Programs(parts)
    policy = compiled.fresh_params(jax.random.key(0))
    batch = source.take(policy, 1)
  assert source.abstract is None and source.kept() is None
  assert batch.groups is batch.fresh and batch.groups.age is None
  assert batch.metrics == {} and len(batch.problems) == 8


def test_replay_mixes_past_groups_in_and_samples_as_many_fewer(tmp_path):
  lines = _lines(_config(**{'replay.fraction': 0.5, 'replay.max_age': 1,
                            'objective.name': 'grpo'}), tmp_path)
  found = [line['replay/fraction'] for line in lines[1:]]
  assert found == [0, 0.5, 0.5]
  assert [line['replay/age'] for line in lines[1:]] == [None, 1, 1]
  assert [line['replay/size'] for line in lines[1:]] == [0, 4, 4]
  assert lines[-1]['perf/total_tokens'] < _STEPS * 4 * 4 * 20
  assert all(line['actor/grad_norm'] > 0 for line in lines[1:])


def test_problems_are_the_first_of_those_of_a_step_without_replay():
  def ids(step, **fields):
    config = _config(seed=3, **fields)
    found = batches.training_problems(config, build.build(config), step)
    return [problem.id for problem in found]

  for step in (1, 2):
    whole = ids(step)
    assert len(set(whole)) == 8
    assert ids(step, **{'replay.fraction': 0.25}) == whole[:6]
    assert ids(step, **{'step_level.fraction': 0.25}) == whole[:6]
