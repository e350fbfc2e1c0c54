"""A past group is anchored where the policy stands, and too stale a one is left out."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpo_jax import metrics as metrics_lib
from lpo_jax import replay, sharding
from lpo_jax.microbatch import UpdateConfig
from lpo_jax.replay import Staleness
from lpo_jax.types import Groups
from tests import learner

_CUT = UpdateConfig(micro_prompts=4, behavior='sampler')
_WIDE = 8  # of prompts in the buffer; those of the groups are 6 wide


def _fresh(size, seed=0, marks=None, **choices):
  """Return groups just sampled; those with a mark have it as their first reward."""
  groups = learner.groups(size, seed, **choices)
  if marks is not None:
    groups.rewards[:, 0] = marks
  return groups.replace(age=np.zeros(size, np.int32))


def _empty(room):
  return replay.empty(room, learner.SAMPLES, _WIDE, learner.WIDTH)


@functools.cache
def _mix(past, score='mean', cut=_CUT, **choices):
  config = Staleness(fraction=0.5, **choices)
  return learner.jit(functools.partial(replay.mix, past=past, config=config, cut=cut,
                                       score=score))


def _run(steps, fresh, room, past=2, policy=None, **choices):
  """Return groups, buffer and numbers of each of some iterations of one policy."""
  policy = learner.policy() if policy is None else policy
  buffer, found = _empty(room), []
  for step in range(1, steps + 1):
    groups, buffer, metrics = _mix(past, **choices)(
      policy, buffer, fresh(step), np.int32(step), jax.random.key(step))
    found.append((groups, buffer, metrics_lib.reduce(metrics)))
  return found


def _marks(groups, fresh):
  """Return the marks of the past groups that count."""
  return np.asarray(groups.rewards[fresh:, 0])[np.asarray(groups.keep[fresh:])]


def test_effective_share_is_that_of_self_normalised_weights():
  scores = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
  weights = np.exp(np.float64(scores))
  weights /= weights.sum(1, keepdims=True)
  expected = 1 / (weights**2).sum(1) / 5
  np.testing.assert_allclose(replay.effective_share(scores), expected, rtol=1e-5)
  np.testing.assert_allclose(replay.effective_share(np.zeros((1, 5), np.float32)), 1)


@pytest.mark.parametrize('score', ['mean', 'sum'])
def test_the_anchor_is_the_log_ratio_of_now_to_the_record(score):
  policy, groups = learner.policy(0.03), _fresh(6, exact=False)
  groups = groups.replace(age=np.array([0, 1, 2, 0, 1, 9], np.int32),
                          keep=np.array([1, 1, 1, 1, 0, 1], bool))
  mask = groups.rollouts.response_mask
  delta = np.float64(learner.logprobs(policy, groups.rollouts)) - np.float64(
    groups.rollouts.logprobs)
  expected = np.where(mask, delta, 0).sum(-1)
  if score == 'mean':
    expected /= mask.sum(-1)
  expected[[0, 3, 4]] = 0  # just sampled, or not counting
  found = learner.jit(functools.partial(replay.anchored, cut=_CUT, score=score))(
    policy, groups)
  np.testing.assert_allclose(found.anchor_scores, expected, atol=2e-5)
  assert np.abs(expected).max() > 0.3


def test_a_group_just_sampled_teaches_what_it_teaches_on_policy():
  first, second = _fresh(4, 0), _fresh(4, 1)
  (_, _, _), (groups, _, numbers) = _run(
    2, lambda step: [first, second][step - 1], room=8, past=4)
  assert np.asarray(groups.keep).all()
  np.testing.assert_allclose(groups.anchor_scores, 0, atol=2e-6)
  assert numbers['replay/ess'] == pytest.approx(1, abs=1e-5)
  assert numbers['replay/fraction'] == 0.5 and numbers['replay/age'] == 1.0
  program = learner.program(micro_prompts=4, behavior='sampler')
  start = learner.fresh(learner.policy())
  mixed, _ = program(start, groups)
  both, _ = program(start, jax.tree.map(lambda *x: np.concatenate(x), second, first))
  learner.assert_close(learner.gradient(mixed), learner.gradient(both), 2e-5)


def test_where_the_buffer_has_none_the_new_groups_are_learned_from_alone():
  fresh = _fresh(4)
  groups, buffer, numbers = _run(1, lambda _: fresh, room=8, past=4)[0]
  np.testing.assert_array_equal(groups.keep, [True] * 4 + [False] * 4)
  assert numbers['replay/fraction'] == 0 and np.isnan(numbers['replay/age'])
  assert sorted(np.asarray(buffer.born)) == [0] * 4 + [1] * 4
  program = learner.program(micro_prompts=4, behavior='sampler')
  start = learner.fresh(learner.policy(0.02))
  mixed, found = program(start, groups)
  alone, expected = program(start, fresh)
  learner.assert_close(learner.gradient(mixed), learner.gradient(alone))
  for name in ('reward/mean', 'actor/entropy', 'response_length/mean',
               'group/flat_frac', 'mismatch/logp_abs_mean'):
    np.testing.assert_allclose(float(found[name]), float(expected[name]), rtol=1e-5)


def test_numbers_of_the_policy_are_those_of_its_own_groups():
  """Reward, entropy and length are of the newest groups, the mismatch of age 0."""
  groups = jax.tree.map(lambda *x: np.concatenate(x), _fresh(4, 0), _fresh(4, 1))
  groups = groups.replace(age=np.array([0] * 4 + [3] * 4, np.int32))
  groups.rollouts.logprobs[4:] -= 1.0 * groups.rollouts.response_mask[4:]
  program = learner.program(micro_prompts=4, behavior='sampler')
  _, metrics = program(learner.fresh(learner.policy()), groups)
  assert float(metrics['mismatch/logp_abs_mean']) < 1e-5
  own = learner.rows(groups, slice(4))
  np.testing.assert_allclose(float(metrics['reward/mean']), own.rewards.mean(), 1e-5)
  np.testing.assert_allclose(
    float(metrics['actor/entropy']),
    -own.rollouts.logprobs[own.rollouts.response_mask].mean(), 1e-5)
  assert float(metrics['response_length/max']) == (
    own.rollouts.response_mask.sum(-1).max())
  older = groups.replace(age=np.full(8, 1, np.int32))  # all of them, a step ahead
  _, metrics = program(learner.fresh(learner.policy()), older)
  np.testing.assert_allclose(float(metrics['reward/mean']), groups.rewards.mean(), 1e-5)
  assert np.isnan(float(metrics['mismatch/logp_abs_mean']))


def test_past_groups_are_young_enough_distinct_and_the_oldest_make_room():
  def fresh(step):
    return _fresh(3, step, marks=step + np.arange(3) / 10)

  found = _run(6, fresh, room=9, past=3, max_age=2)
  seen = set()
  for step, (groups, buffer, numbers) in enumerate(found, start=1):
    marks = _marks(groups, 3)
    born = np.asarray(buffer.born)
    expected = sorted(range(max(1, step - 2), step + 1))  # room for three iterations
    assert sorted(set(born) - {0}) == expected
    assert all(step - 2 <= int(mark) < step for mark in marks)
    assert len(set(marks)) == len(marks) == (3 if step > 1 else 0)
    assert numbers['replay/size'] == 3 * min(step - 1, 2)
    ages = step - np.floor(marks)
    np.testing.assert_array_equal(np.asarray(groups.age)[3:][:len(marks)], ages)
    if step > 1:
      assert numbers['replay/age'] == pytest.approx(ages.mean())
    seen |= {int(age) for age in ages}
  assert seen == {1, 2}


def test_a_past_group_is_whole():
  """Prompt, responses, record and rewards come back together, padded on the left."""
  first = _fresh(4, marks=[0.1, 0.2, 0.3, 0.4])
  (_, _, _), (groups, _, _) = _run(
    2, lambda step: first if step == 1 else _fresh(4, 9), room=4, past=4)
  order = np.argsort(np.asarray(groups.rewards[4:, 0]))
  drawn = jax.tree.map(lambda x: np.asarray(x)[4:][order], groups)
  np.testing.assert_array_equal(drawn.rollouts.prompt[:, _WIDE - 6:],
                                first.rollouts.prompt)
  np.testing.assert_array_equal(drawn.rollouts.prompt_mask[:, _WIDE - 6:],
                                first.rollouts.prompt_mask)
  assert not drawn.rollouts.prompt_mask[:, :_WIDE - 6].any()
  for name in ('response', 'response_mask', 'logprobs'):
    np.testing.assert_array_equal(getattr(drawn.rollouts, name),
                                  getattr(first.rollouts, name))
  np.testing.assert_array_equal(drawn.rewards, first.rewards)


def test_a_group_whose_weights_have_gathered_does_not_count_and_leaves():
  stale, young = [0.1, 0.2], [0.3, 0.4]
  first = _fresh(4, marks=stale + young)
  record, mask = first.rollouts.logprobs.copy(), first.rollouts.response_mask
  record[:2, 0] -= 9.0 * mask[:2, 0]  # pi_t prefers one response by far
  first = first.replace(rollouts=first.rollouts.replace(logprobs=record))
  found = _run(3, lambda step: first if step == 1 else _fresh(4, step, marks=0.9),
               room=12, past=4, min_ess=0.5, max_age=9)
  second = found[1]
  np.testing.assert_allclose(sorted(_marks(second[0], 4)), young)
  assert second[2]['replay/stale_frac'] == 0.5
  assert second[2]['replay/fraction'] == pytest.approx(2 / 6)
  born, marks = np.asarray(second[1].born), np.asarray(second[1].rewards[:, 0])
  assert not np.isin(marks[born > 0], np.float32(stale)).any()
  assert found[2][2]['replay/size'] == 6  # two that stayed and four of the second
  kept = _run(2, lambda step: first if step == 1 else _fresh(4, step), room=12, past=4,
              min_ess=0.0)
  assert len(_marks(kept[1][0], 4)) == 4


def test_flat_groups_are_drawn_last_if_the_update_leaves_them_out():
  first = _fresh(4, marks=[0.1, 0.2, 0.3, 0.4])
  first.rewards[:2] = 1.0
  cut = dataclasses.replace(_CUT, skip_flat_groups=True)
  for seed in range(4):
    found = _run(2, lambda step, seed=seed: first if step == 1 else _fresh(4, seed + 5),
                 room=8, past=2, cut=cut)
    np.testing.assert_allclose(sorted(_marks(found[1][0], 4)), [0.3, 0.4])


@pytest.mark.parametrize('shape', [(8, 1, 1), (2, 2, 2)], ids=str)
def test_a_mixed_batch_is_the_same_on_every_mesh(shape):
  def two(mesh):
    policy, buffer = learner.policy(0.02), _empty(16)
    cut = dataclasses.replace(_CUT, micro_prompts=8)
    if mesh is not None:
      policy = jax.device_put(policy, sharding.state_shardings(policy, mesh))
      buffer = jax.device_put(buffer, sharding.replicated(mesh))
    step_fn = learner.jit(functools.partial(
      replay.mix, past=8, config=Staleness(fraction=0.5), cut=cut, score='sum'))
    for step in (1, 2):
      fresh = _fresh(8, step)
      if mesh is not None:
        fresh = sharding.shard_batch(fresh, mesh)
      groups, buffer, metrics = step_fn(policy, buffer, fresh, np.int32(step),
                                        jax.random.key(step))
    if mesh is not None:
      whole = sharding.replicated(mesh)
      assert buffer.born.sharding.is_equivalent_to(whole, 1)
      assert groups.rewards.sharding.shard_shape((16, learner.SAMPLES))[0] == (
        16 // sharding.batch_shards(mesh))
    return jax.device_get((groups, buffer, metrics_lib.reduce(metrics)))

  expected, mesh = two(None), sharding.make_mesh(shape)
  with jax.set_mesh(mesh):
    found = two(mesh)
  close = functools.partial(np.testing.assert_allclose, atol=2e-5)
  jax.tree.map(close, found, expected)
  assert np.abs(expected[0].anchor_scores[8:]).max() > 0.05


@pytest.mark.parametrize(('fields', 'given', 'message'), [
  (dict(async_rollouts=2), {}, 'async_rollouts=2: 0, or 1'),
  (dict(fraction=1.0), {}, r'replay.fraction=1.0: must lie in \[0, 1\)'),
  (dict(fraction=float('nan')), {}, 'replay.fraction=nan'),
  (dict(max_age=0), {}, 'replay.max_age=0'),
  (dict(min_ess=1.5), {}, 'replay.min_ess=1.5'),
  (dict(capacity=-1), {}, 'replay.capacity=-1'),
  (dict(fraction=0.3), {}, 'prompts_per_step=16 is no whole number.*use 0.3125'),
  (dict(fraction=0.01), {}, 'no whole number.*use 0.0625'),
  (dict(fraction=0.25), dict(behavior='learner'), 'set objective.behavior=sampler'),
  (dict(async_rollouts=1), dict(behavior='learner'), 'async_rollouts=1 with objective'),
  (dict(fraction=0.25), dict(samples=1), 'samples_per_prompt=1'),
  (dict(fraction=0.25), dict(shards=8), '4 past and 12 new groups.*8 batch shards'),
  (dict(fraction=0.25), dict(at_once=8), 'prompts_at_once=8 does not divide the 12'),
  (dict(fraction=0.25, capacity=8), {}, 'replay.capacity=8: must hold the 12 new'),
  (dict(fraction=0.25, async_rollouts=1, max_age=1), {}, 'replay.max_age=1 with async'),
  (dict(async_rollouts=1), dict(reads_images=True), 'reads images')])
def test_what_cannot_be_is_named_with_the_remedy(fields, given, message):
  given = dict(prompts=16, samples=4, behavior='sampler') | given
  with pytest.raises(ValueError, match=message):
    Staleness(**fields).check(**given)


def test_the_default_asks_for_nothing():
  Staleness().check(prompts=16, samples=1, behavior='learner', reads_images=True)
  assert not Staleness().off_policy and not Staleness().describe(16)
  leaves = jax.tree.leaves(Groups(*[jnp.zeros(1)] * 4))
  assert len(leaves) == 4  # without an age there is no array


def test_a_run_says_what_is_stale():
  both = Staleness(async_rollouts=1, fraction=0.25, max_age=3)
  assert both.describe(16) == [
    'replay: 4 of 16 groups are past ones, at most 3 iterations old, of 36 kept',
    'async_rollouts: batches are sampled a step ahead']
