"""What is sampled is what is verified, and a verdict that cannot be is named."""

import functools

import jax
import numpy as np
import pytest

from configs import models
from lpo_jax import phases, policy, rollout, sharding, tasks, tokenizer
from lpo_jax.types import Problem, Rollouts
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
    rollout.encode(problems, tokenizer.get('countdown'), (8, 16))


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
