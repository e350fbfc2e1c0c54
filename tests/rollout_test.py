"""What is sampled is what is verified, and a verdict that cannot be is named."""

import dataclasses
import functools
import threading

import jax
import numpy as np
import pytest

from configs import models
from lpo_jax import (
  phases,
  policy,
  rewards,
  rollout,
  sampler,
  sharding,
  tasks,
  tokenizer,
)
from lpo_jax.tasks import grading
from lpo_jax.types import Problem, Responses, Rollouts
from tests import learner

_CONFIG = rollout.SamplingConfig(samples_per_prompt=3, max_new_tokens=6, chunk=8,
                                 prompt_buckets=(8, 16), unroll=False)


class _Task(tasks.base.Task):
  """Gives each text the reward that it spells."""

  name = 'fake'

  def verify(self, problem, text):
    return float(text)

  def diagnostics(self, problem, text, reward):
    return {'seen': (reward, 1.0)} | ({'half': (1.0, 2.0)} if reward == 0.5 else {})


_PROBLEMS = [Problem('x', None, name) for name in ('first', 'second')]


@pytest.mark.parametrize('verdict', ['nan', 'inf', '-inf', '-0.1', '1.5'])
def test_a_verdict_outside_0_to_1_stops_and_names_the_problem(verdict):
  with pytest.raises(ValueError, match=f"'fake' gave reward={verdict} .* 'second'"):
    rollout.grade(_Task(), _PROBLEMS, [['0.0', '1.0'], ['0.25', verdict]])


def test_verdicts_and_diagnostics_are_kept_for_every_response():
  texts = [['0', '1'], ['0.5', '0.25']]
  graded = rollout.grade(_Task(), _PROBLEMS, texts)
  np.testing.assert_array_equal(graded.rewards, [[0, 1], [0.5, 0.25]])
  assert graded.rewards.dtype == np.float32 and graded.texts is texts
  assert float(graded.metrics['seen']) == 1.75 / 4
  assert float(graded.metrics['half']) == 1 / 2


def test_a_prompt_longer_than_every_bucket_is_named():
  problems = [Problem('1 2 : 3 >', None, 'short'), Problem('1 ' * 20, None, 'long')]
  with pytest.raises(ValueError, match="'long' has 21 tokens; .* 16"):
    rollout.encode(problems, tokenizer.get('countdown'),
                   rollout.SamplingConfig(prompt_buckets=(8, 16)))


def test_stopped_means_a_stop_token_was_sampled():
  response = np.array([[[3, 9, 0], [9, 0, 0], [3, 3, 3], [3, 3, 9], [3, 3, 9]]])
  mask = np.array([[[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 1], [1, 1, 0]]], bool)
  rollouts = Rollouts(None, None, response, mask, None)
  np.testing.assert_array_equal(rollout.stopped(rollouts, (7, 9)),
                                [[True, True, False, True, False]])


@functools.cache
def _collected():
  """Return problems, groups and grades of one batch of a fresh policy."""
  task, words = tasks.get('countdown'), tokenizer.get('countdown')
  problems = task.problems('train')[:2]
  key = jax.random.key(0)
  fresh = learner.jit(lambda key: policy.Policy(models.POLICIES['countdown_tiny'], key))
  timer = phases.Phases(None)
  groups, graded = rollout.collect(
    fresh(key), problems, key, task, words, _CONFIG, sharding.make_mesh((1, 1, 1)),
    timer)
  return problems, jax.device_get(groups), graded, timer.flush()


def test_rewards_are_the_verdicts_on_the_decoded_responses():
  problems, groups, graded, _ = _collected()
  task, words = tasks.get('countdown'), tokenizer.get('countdown')
  rollouts = groups.rollouts
  for row, problem in enumerate(problems):
    for k in range(3):
      ids = rollouts.response[row, k][rollouts.response_mask[row, k]]
      assert graded.texts[row][k] == words.decode(ids)
      assert groups.rewards[row, k] == task.verify(problem, graded.texts[row][k])


def test_a_collected_batch_is_ready_to_learn_from():
  problems, groups, graded, seconds = _collected()
  words, rollouts = tokenizer.get('countdown'), groups.rollouts
  for row, problem in enumerate(problems):
    ids = rollouts.prompt[row][rollouts.prompt_mask[row]]
    assert ids.tolist() == words.encode(problem.prompt)
  assert rollouts.response.shape == (2, 3, 6)
  assert groups.keep.all() and not groups.anchor_scores.any()
  assert (rollouts.logprobs[rollouts.response_mask] < 0).all()
  ended = np.isin(rollouts.response, words.stop_tokens) & rollouts.response_mask
  clipped = graded.metrics['response_length/clip_ratio']
  assert int(clipped.count) == 6
  assert float(clipped) == 1 - ended.any(-1).mean()
  assert set(seconds) == {'timing_s/sample', 'timing_s/grade'}


class _Slow(_Task):
  """Tells when a part is handed in and when its verdicts are asked for."""

  def __init__(self):
    self.events = []

  def answer(self, problem, text):
    return None if len(text) % 2 else text

  def diagnostics(self, problem, text, reward):
    return {}

  def submit(self, problems, texts):
    self.events.append(f'submit {[p.id for p in problems]}')
    def result():
      self.events.append('result')
      return grading.Verdicts([[len(text) % 5 / 4 for text in row] for row in texts],
                              {'grading/timeout_frac': (1.0, float(len(texts)))}, [])
    return result


@functools.cache
def _collected_in_parts(at_once):
  task, words = _Slow(), tokenizer.get('countdown')
  problems = tasks.get('countdown').problems('train')[:4]
  key = jax.random.key(0)
  fresh = learner.jit(lambda key: policy.Policy(models.POLICIES['countdown_tiny'], key))
  weights = rewards.Weights(0.5, 0.25, 0.25, full_length=0.5)
  config = dataclasses.replace(_CONFIG, prompts_at_once=at_once)
  groups, graded = rollout.collect(
    fresh(key), problems, key, task, words, config, sharding.make_mesh((1, 1, 1)),
    phases.Phases(None), weights)
  return jax.device_get(groups), graded, task.events


def test_parts_are_judged_as_they_come_and_change_nothing():
  whole, graded, _ = _collected_in_parts(0)
  parts, graded_parts, events = _collected_in_parts(2)
  jax.tree.map(np.testing.assert_array_equal, parts, whole)
  assert graded_parts.texts == graded.texts
  for name, mean in graded.metrics.items():
    expected = float(mean.total) * (2 if name == 'grading/timeout_frac' else 1)
    assert float(graded_parts.metrics[name].total) == pytest.approx(expected), name
  assert [event.split()[0] for event in events] == ['submit'] * 2 + ['result'] * 2


@pytest.mark.parametrize(('at_once', 'shape'), [(0, (1, 1, 1)), (2, (2, 1, 1))])
def test_recorded_responses_are_judged_as_when_they_were_sampled(at_once, shape):
  expected, graded, _ = _collected_in_parts(at_once)
  rollouts, mesh = expected.rollouts, sharding.make_mesh(shape)
  recorded = Responses(rollouts.response, rollouts.response_mask, rollouts.logprobs)
  with jax.set_mesh(mesh):
    found, again = rollout.begin(
      None, tasks.get('countdown').problems('train')[:4], None, _Slow(),
      tokenizer.get('countdown'), dataclasses.replace(_CONFIG, prompts_at_once=at_once),
      mesh, phases.Phases(None), rewards.Weights(0.5, 0.25, 0.25, full_length=0.5),
      sharding.shard_batch(recorded, mesh))()
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), expected)
  assert again.texts == graded.texts
  assert ({name: float(mean) for name, mean in again.metrics.items()}
          == {name: float(mean) for name, mean in graded.metrics.items()})


def test_rewards_are_the_parts_weighed_and_each_part_is_a_metric():
  groups, graded, _ = _collected_in_parts(0)
  lengths = groups.rollouts.response_mask.sum(-1)
  texts = graded.texts
  parts = {
    'correct': np.array([[len(text) % 5 / 4 for text in row] for row in texts]),
    'format': np.array([[1.0 - len(text) % 2 for text in row] for row in texts]),
    'length': np.clip((6 - lengths) / 3, 0, 1)}
  expected = 0.5 * parts['correct'] + 0.25 * parts['format'] + 0.25 * parts['length']
  np.testing.assert_allclose(groups.rewards, expected, atol=1e-6)
  for name, part in parts.items():
    assert float(graded.metrics[f'reward/{name}']) == pytest.approx(part.mean()), name
  assert 0 < parts['format'].mean() < 1


def test_where_other_devices_sample_it_goes_on_in_a_thread(monkeypatch):
  expected, graded, _ = _collected_in_parts(2)
  mesh, sample, go = sharding.make_mesh((2, 1, 1)), sampler.sample, threading.Event()

  def waiting(policy, *args, **kwargs):
    assert go.wait(60)
    devices = {device for x in jax.tree.leaves(policy) for device in x.devices()}
    assert len(devices) == 4 and not devices & set(mesh.devices.flat)
    return sample(policy, *args, **kwargs)

  monkeypatch.setattr(sampler, 'sample', waiting)
  fresh = learner.jit(lambda key: policy.Policy(models.POLICIES['countdown_tiny'], key))
  params = fresh(jax.random.key(0))
  config = dataclasses.replace(_CONFIG, mesh_shape=(2, 1, 2), apart=True,
                               prompts_at_once=2)
  clock = phases.Phases(None)
  with jax.set_mesh(mesh):
    params = jax.device_put(params, sharding.state_shardings(params, mesh))
    wait = rollout.begin(
      params, tasks.get('countdown').problems('train')[:4], jax.random.key(0), _Slow(),
      tokenizer.get('countdown'), config, mesh, clock,
      rewards.Weights(0.5, 0.25, 0.25, full_length=0.5))
    go.set()  # not before `begin` has returned
    found, again = wait()
  assert all(set(x.devices()) == set(mesh.devices.flat) for x in jax.tree.leaves(found))
  np.testing.assert_array_equal(found.rollouts.response, expected.rollouts.response)
  np.testing.assert_allclose(found.rollouts.logprobs, expected.rollouts.logprobs,
                             atol=1e-5)
  assert again.texts == graded.texts
  assert set(clock.flush()) == {'timing_s/reshard', 'timing_s/sample', 'timing_s/grade'}


def test_what_a_sampling_thread_raised_is_raised_by_the_wait(monkeypatch):
  def broken(*args, **kwargs):
    raise FloatingPointError('sampled nothing')

  monkeypatch.setattr(sampler, 'sample', broken)
  mesh = sharding.make_mesh((2, 1, 1))
  params = learner.jit(lambda key: policy.Policy(models.POLICIES['countdown_tiny'],
                                                 key))(jax.random.key(0))
  wait = rollout.begin(
    params, tasks.get('countdown').problems('train')[:4], jax.random.key(0), _Slow(),
    tokenizer.get('countdown'),
    dataclasses.replace(_CONFIG, mesh_shape=(2, 1, 1), apart=True), mesh,
    phases.Phases(None))
  with pytest.raises(FloatingPointError, match='sampled nothing'):
    wait()
