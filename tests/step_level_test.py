"""Local groups are groups whose prompt is longer: what they share, sample and mix."""

import dataclasses

import jax
import numpy as np
import pytest

from configs import models
from lpo_jax import (
  microbatch,
  phases,
  policy,
  rewards,
  rollout,
  sharding,
  step_level,
  tasks,
  tokenizer,
)
from lpo_jax.tasks import countdown as countdown_task
from lpo_jax.types import Groups, Mean, Prefix, Problem, Rollouts
from tests import learner, tiny

N = 24
_STEPS = ('14 + 4 = 18 , 18 * 2 = 36 <answer> ( 14 + 4 ) * 2 </answer>',
          '4 * 2 = 8 , 14 + 8 = 22 <answer> 4 * 2 + 14 </answer>')
_NONE = '14 4 2 <answer> 14 </answer>'


@pytest.fixture(scope='module')
def words():
  return tokenizer.get('countdown')


def _written(texts, words, rewards=0.0):
  """Return B problems and groups of their written responses."""
  problems = [Problem(f'{row} 4 2 : 36 >', {
    'numbers': [14, 4, 2], 'target': 36, 'witness': None}, f'p{row}')
              for row in range(len(texts))]
  shape = (len(texts), len(texts[0]), N)
  response, mask = np.zeros(shape, np.int32), np.zeros(shape, bool)
  for row, k in np.ndindex(shape[:2]):
    ids = words.encode_response(texts[row][k])
    response[row, k, :len(ids)], mask[row, k, :len(ids)] = ids, True
  prompt = np.ones((len(texts), 8), np.int32)
  rollouts = Rollouts(prompt, prompt > 0, response, mask, np.zeros(shape, np.float32))
  rewards = np.broadcast_to(np.float32(rewards), shape[:2])
  return problems, Groups(rollouts, rewards, np.zeros_like(rewards),
                          np.ones(shape[0], bool))


def _begin(texts, words, local, most=12, seed=0, step=1, rewards=0.0):
  return step_level.begin(*_written(texts, words, rewards), tasks.get('countdown'),
                          words, step_level.StepLevel(local, most), seed, step)


def test_prefixes_are_beginnings_of_responses_up_to_a_steps_end(words):
  texts = [[_STEPS[row % 2]] * 2 for row in range(6)]
  seen = set()
  for step in range(1, 9):
    found = _begin(texts, words, 6, step=step)
    assert sorted(problem.id for problem in found) == [f'p{i}' for i in range(6)]
    for problem in found:
      text = texts[int(problem.id[1:])][0]
      assert text.startswith(problem.prefix.text)
      assert list(problem.prefix.tokens) == words.encode_response(problem.prefix.text)
      seen.add(problem.prefix.text)
    assert found == _begin(texts, words, 6, step=step)
  assert seen == {'14 + 4 = 18', '4 * 2 = 8',
                  '14 + 4 = 18 , 18 * 2 = 36', '4 * 2 = 8 , 14 + 8 = 22'}
  assert found != _begin(texts, words, 6, seed=1, step=step)


def test_a_prefix_is_no_longer_than_may_be(words):
  found = _begin([[_STEPS[0]] * 2] * 4, words, 4, most=10)
  assert {problem.prefix.text for problem in found} == {'14 + 4 = 18'}


def test_problems_with_steps_come_first_and_again_where_there_are_few(words):
  texts = [[_NONE, _NONE], [_NONE, _STEPS[0]], [_NONE, _NONE], [_STEPS[1], _NONE]]
  found = _begin(texts, words, 3)
  assert {problem.id for problem in found} == {'p1', 'p3'}
  assert sum(problem.prefix is not None for problem in found) == 3


def test_problems_of_unlike_rewards_come_first_and_of_them_what_is_better(words):
  texts = [[_STEPS[0], _STEPS[1]]] * 5
  rewards = [[0, 0], [0, 1], [1, 1], [1, 0], [0, 0]]
  for step in range(1, 6):
    found = _begin(texts, words, 4, step=step, rewards=rewards)
    assert sorted(problem.id for problem in found) == ['p1', 'p1', 'p3', 'p3']
    for problem in found:
      assert _STEPS[problem.id == 'p1'].startswith(problem.prefix.text)
  texts[1] = [_STEPS[0], _NONE]  # what is better has no step
  texts[3] = [_NONE, _NONE]
  for problem in _begin(texts, words, 4, rewards=rewards):
    assert problem.id == 'p1' and _STEPS[0].startswith(problem.prefix.text)
  texts[1] = [_NONE, _NONE]
  assert {problem.id for problem in _begin(texts, words, 3, rewards=rewards)} == {
    'p0', 'p2', 'p4'}


def test_where_nothing_has_a_step_groups_begin_at_the_prompt(words):
  found = _begin([[_NONE] * 2] * 2, words, 3)
  assert [problem.prefix for problem in found] == [None] * 3
  assert {problem.id for problem in found} == {'p0', 'p1'}


def test_a_place_inside_a_token_is_no_place(words):
  ids = words.encode_response('14 + 4 = 18')
  assert step_level.count_tokens(ids, '14 +', words) == 2
  assert step_level.count_tokens(ids, '14 + 4 = 18', words) == 5
  assert step_level.count_tokens(ids, '1', words) is None
  assert step_level.count_tokens(ids, '14 + 5', words) is None


@pytest.mark.parametrize(('arguments', 'message'), [
  (dict(fraction=-0.1), 'step_level.fraction=-0.1: must be at least 0 and below 1'),
  (dict(fraction=1.0), 'step_level.fraction=1.0: must'),
  (dict(fraction=0.5, prefix=N), f'step_level.prefix={N}: must be .* below'),
  (dict(fraction=0.01), 'prompts_per_step=8 makes 0 local groups'),
  (dict(fraction=0.99), 'prompts_per_step=8 makes 0 other groups'),
  (dict(fraction=0.25, shards=4), 'makes 2 local groups: .* over the 4 batch shards'),
  (dict(fraction=0.25, at_once=4), 'makes 2 local .* sampling.prompts_at_once=4'),
])
def test_a_share_that_cannot_be_is_named(arguments, message):
  with pytest.raises(ValueError, match=message):
    step_level.plan(**{'prefix': 0, 'prompts': 8, 'width': N, **arguments})


def test_the_default_is_no_local_group():
  assert step_level.plan(0.0, 0, 8, N) is None
  assert step_level.plan(0.25, 0, 8, N) == step_level.StepLevel(2, N // 2)
  assert step_level.plan(0.25, 5, 8, N) == step_level.StepLevel(2, 5)
  wide = step_level.widened(rollout.SamplingConfig(prompt_buckets=(8, 16)),
                            step_level.StepLevel(2, 5))
  assert wide.prompt_buckets == (13, 21)



# Continuations.


@pytest.fixture(scope='module')
def continued(words):
  """Problems with and without a prefix, and what was sampled for them."""
  sizes = dataclasses.replace(models.POLICIES['countdown_tiny'], dtype='float32')
  params = policy.Policy(sizes, jax.random.key(1))
  problems = _written([[_NONE]] * 2, words)[0]
  begun = '14 + 4 = 18 , 18'
  prefix = Prefix(tuple(words.encode_response(begun)), begun)
  problems[1] = dataclasses.replace(problems[1], prefix=prefix)
  config = rollout.SamplingConfig(samples_per_prompt=3, max_new_tokens=10,
                                  prompt_buckets=(20,))
  mesh = sharding.make_mesh((1, 1, 1))
  asked = []
  with pytest.MonkeyPatch.context() as patch, jax.set_mesh(mesh):
    patch.setattr(countdown_task.Countdown, 'verify', lambda self, problem, text: (
      asked.append((problem.id, text)), float(len(text) % 2))[1])
    groups, graded = rollout.collect(
      params, problems, jax.random.key(2), tasks.get('countdown'), words, config, mesh,
      phases.Phases(None), rewards.Weights(correct=0.5, length=0.5))
  return params, problems, groups, graded, asked


def test_continuations_are_judged_with_what_they_continue(continued, words):
  _, problems, groups, graded, asked = continued
  assert [text for name, text in asked if name == 'p1'] == graded.texts[1]
  for text, response, mask in zip(graded.texts[1], groups.rollouts.response[1],
                                  groups.rollouts.response_mask[1], strict=True):
    tokens = [*problems[1].prefix.tokens, *np.asarray(response)[mask].tolist()]
    assert text == words.decode(tokens) and text.startswith('14 + 4 = 18 , 18')
    assert len(tokens) <= 10  # N in all, the prefix included
  lengths = np.asarray(groups.rollouts.response_mask).sum(-1) + [[0], [7]]
  odd = np.array([[len(text) % 2 for text in row] for row in graded.texts])
  np.testing.assert_allclose(
    graded.rewards, 0.5 * odd + 0.5 * np.clip((10 - lengths) / 5, 0, 1), rtol=1e-6)


def test_log_probabilities_are_those_of_the_whole_sequence(continued, words):
  params, problems, groups, _, _ = continued
  rollouts = jax.device_get(groups.rollouts)
  for row, problem in enumerate(problems):
    prefix = list(problem.prefix.tokens) if problem.prefix else []
    given = words.encode(problem.prompt) + prefix
    for k in range(3):
      real = rollouts.response_mask[row, k]
      tokens = rollouts.response[row, k][real].tolist()
      whole = np.array([given + tokens], np.int32)
      logits = tiny.call(params, whole, np.arange(whole.size)[None],
                         np.ones_like(whole, bool))
      found = tiny.log_softmax(logits)[0, len(given) - 1:-1]
      np.testing.assert_allclose(rollouts.logprobs[row, k][real],
                                 found[np.arange(len(tokens)), tokens], atol=2e-5)
      assert (rollouts.logprobs[row, k][~real] == 0).all()


# Mixed.


def test_a_joined_batch_is_both_parts_whatever_the_width():
  groups, local = learner.groups(4), learner.groups(2, seed=1)
  def wider(x, value):
    return np.pad(x, ((0, 0), (3, 0)), constant_values=value)
  local = local.replace(rollouts=local.rollouts.replace(
    prompt=wider(local.rollouts.prompt, 0),
    prompt_mask=wider(local.rollouts.prompt_mask, False)))
  whole = step_level.join(groups, local, 5)
  assert whole.rollouts.prompt.shape == (6, 9)
  assert (np.asarray(whole.rollouts.prompt)[:4, :3] == 5).all()
  config = microbatch.UpdateConfig(micro_prompts=2)
  found = learner.jit(lambda policy, rollouts: microbatch.logprobs(
    policy, rollouts, config))(learner.policy(), whole.rollouts)
  expected = np.concatenate([groups.rollouts.logprobs, local.rollouts.logprobs])
  np.testing.assert_allclose(found, expected, atol=2e-5)
  np.testing.assert_array_equal(whole.rewards,
                                np.concatenate([groups.rewards, local.rewards]))


def test_numbers_of_local_groups_stand_beside_those_of_the_others():
  def graded(reward, rows):
    return rollout.Graded([['a', 'b']] * 2, np.float32([[0, reward]] * 2), {
      'reward/correct': Mean(reward, 2.0), 'response_length/clip_ratio': Mean(1.0, 4.0),
      'grading/error_frac': Mean(0.0, 4.0)}, np.array(rows))
  begun = [Problem('', None, '', prefix=Prefix((1, 2, 3), 'x')), Problem('', None, '')]
  found = step_level.merge(graded(1.0, [0, 1]), graded(0.0, [0, 1]), begun)
  assert found.texts == [['a', 'b']] * 4 and found.rows.tolist() == [0, 1, 2, 3]
  assert found.rewards.tolist() == [[0, 1], [0, 1], [0, 0], [0, 0]]
  assert {name: (float(x.total), float(x.count)) for name, x in found.metrics.items()
          } == {
    'reward/correct': (1, 2), 'response_length/clip_ratio': (1, 4),
    'grading/error_frac': (0, 8), 'step_level/correct': (0, 2),
    'step_level/clip_ratio': (1, 4), 'step_level/flat_frac': (2, 2),
    'step_level/prefixed_frac': (1, 2), 'step_level/prefix_tokens': (3, 2)}
