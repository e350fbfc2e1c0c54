"""A minibatch's gradient is that of the written loss, however it is cut up."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpo_jax import metrics as metrics_lib
from lpo_jax import microbatch, objective, sharding
from lpo_jax.microbatch import UpdateConfig
from lpo_jax.types import Coefficients
from tests import learner

_SIZE = 4
_FAR = 0.02  # of the learning policy from the one that sampled

# The losses as published, of one group, from scratch.


def _target(group):
  tau = jnp.std(group.rewards)
  return jax.nn.log_softmax(group.rewards / tau + group.anchor_scores)


def _forward(scores, log_w):
  return jnp.sum(jnp.exp(log_w) * (log_w - jax.nn.log_softmax(scores)))


def _reverse(scores, log_w):
  log_p = jax.nn.log_softmax(scores)
  return jnp.sum(jnp.exp(log_p) * (log_p - log_w))


def _listwise(divergence, score, clip):
  def loss(logprobs, group):
    mask = group.rollouts.response_mask
    lengths = mask.sum(1) if score == 'mean' else 1
    delta = logprobs - group.rollouts.logprobs
    scores = jnp.sum(delta, axis=1, where=mask) / lengths
    if clip is None:
      return divergence(scores, _target(group))
    c = jax.lax.stop_gradient(jax.grad(divergence)(scores, _target(group)))
    held = jnp.clip(delta, np.log(1 - clip), np.log(1 + clip))
    return jnp.sum(c * jnp.sum(held, axis=1, where=mask) / lengths)
  return loss


def _ppo(low, high, mean):
  def loss(logprobs, group):
    mask = group.rollouts.response_mask
    advantage = (group.rewards - group.rewards.mean()) / (group.rewards.std() + 1e-6)
    ratio, advantage = mean(logprobs - group.rollouts.logprobs, mask, advantage)
    clipped = jnp.clip(ratio, 1 - low, 1 + high) * advantage
    return jnp.minimum(ratio * advantage, clipped)
  return loss


def _grpo(logprobs, group):
  tokens = _ppo(0.2, 0.2, lambda d, m, a: (jnp.exp(d), a[:, None]))(logprobs, group)
  mask = group.rollouts.response_mask
  return -jnp.mean(jnp.sum(tokens, axis=1, where=mask) / mask.sum(1))


def _dapo(logprobs, group):
  tokens = _ppo(0.2, 0.28, lambda d, m, a: (jnp.exp(d), a[:, None]))(logprobs, group)
  return -jnp.mean(tokens, where=group.rollouts.response_mask)


def _gspo(logprobs, group):
  return -jnp.mean(_ppo(
    0.01, 0.02, lambda d, m, a: (jnp.exp(jnp.mean(d, axis=1, where=m)), a),
  )(logprobs, group))


_LPO = {
  f'{name}_{score}_{clip}': (dict(name=name, score=score, token_clip=clip),
                             _listwise(divergence, score, clip))
  for name, divergence in (('lpo_fwd', _forward), ('lpo_rev', _reverse))
  for score in ('mean', 'sum') for clip in (None, 0.2)}
_WRITTEN = _LPO | {
  'grpo': (dict(name='grpo'), _grpo),
  'dapo': (dict(name='dapo'), _dapo),
  'gspo': (dict(name='gspo', clip_low=0.01, clip_high=0.02), _gspo),
}


def _any_of(which):
  """Return the objective with a traced number, so that one program serves all."""
  built = [objective.build(objective.ObjectiveConfig(**choices), learner.SAMPLES)
           for choices, _ in _WRITTEN.values()]

  def call(group):
    values, loss = jax.lax.switch(
      which, [lambda g, o=o: (o(g).values, o(g).loss) for o in built], group)
    return Coefficients(values, loss, {})

  return call


@functools.cache
def _program(make=None, **choices):
  plain = objective.build(objective.ObjectiveConfig(), learner.SAMPLES)

  def run(policy, groups, *arguments):
    chosen = make(*arguments) if make else plain
    return microbatch.gradient(chosen, policy, groups, groups.rollouts.logprobs,
                               (0.5, 0.3, 0), True, UpdateConfig(**choices))

  return learner.jit(run)


@functools.cache
def _groups():
  groups = learner.groups(_SIZE)
  anchor = 0.3 * np.random.default_rng(3).normal(size=groups.rewards.shape)
  return groups.replace(anchor_scores=anchor.astype(np.float32))


def test_part_of_the_tokens_is_outside_the_band():
  groups, policy = _groups(), learner.policy(_FAR)
  mask = groups.rollouts.response_mask
  delta = learner.logprobs(policy, groups.rollouts) - groups.rollouts.logprobs
  outside = np.asarray((delta < np.log(0.8)) | (delta > np.log(1.2)))[mask]
  assert 0.1 < outside.mean() < 0.9


@pytest.mark.parametrize('label', _WRITTEN)
def test_gradient_is_that_of_the_written_loss(label):
  groups, policy = _groups(), learner.policy(_FAR)
  loss = _WRITTEN[label][1]
  expected = learner.written_gradient(
    lambda logprobs: jnp.mean(jnp.stack([
      loss(logprobs[i], learner.rows(groups, i)) for i in range(_SIZE)])),
    policy, groups.rollouts)
  which = jnp.int32(list(_WRITTEN).index(label))
  actual = _program(_any_of, micro_prompts=_SIZE)(policy, groups, which)[0]
  learner.assert_close(actual, expected, 2e-5)


@functools.cache
def _partly_kept():
  """Return groups of unequal masks of which the third does not count."""
  return _groups().replace(keep=np.array([True, True, False, True]))


@functools.cache
def _cut(micro_prompts, micro_responses, pack=1):
  return _program(micro_prompts=micro_prompts, micro_responses=micro_responses,
                  pack=pack)(learner.policy(_FAR), _partly_kept())


_CUTS = pytest.mark.parametrize('cut', [
  (1, 0), (2, 0), (1, 1), (1, 2), (2, 1), (2, 2), (2, 4), (4, 4),
  (1, 0, 2), (2, 0, 2), (1, 0, 4), (1, 1, 3), (1, 2, 4), (2, 4, 2)], ids=str)


@_CUTS
def test_any_microbatching_gives_the_same_gradient(cut):
  learner.assert_close(_cut(*cut)[0], _cut(_SIZE, 0)[0])


@_CUTS
def test_any_microbatching_gives_the_same_metrics(cut):
  actual, expected = (metrics_lib.reduce(_cut(*c)[1]) for c in (cut, (_SIZE, 0)))
  assert actual.keys() == expected.keys()
  del expected['perf/pad_frac']  # of places, which depend on the cut
  for name, value in expected.items():
    np.testing.assert_allclose(actual[name], value, rtol=2e-5, err_msg=name)


@_CUTS
def test_coefficients_are_those_used_summed_over_tokens(cut):
  groups = _partly_kept()
  mask, rewards = groups.rollouts.response_mask, np.float64(groups.rewards)
  delta = np.asarray(learner.logprobs(learner.policy(_FAR), groups.rollouts), float)
  delta = np.where(mask, delta - groups.rollouts.logprobs, 0)
  scores = delta.sum(-1) / mask.sum(-1)
  tilted = np.exp(rewards / rewards.std(1, keepdims=True) + groups.anchor_scores)
  policy = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
  inside = (mask & (delta > np.log(0.8)) & (delta < np.log(1.2))).sum(-1)
  expected = (policy - tilted / tilted.sum(1, keepdims=True)) * inside / mask.sum(-1)
  np.testing.assert_allclose(_cut(*cut)[2], expected * groups.keep[:, None], atol=1e-5)
  assert np.abs(expected).max() > 0.02


def test_metrics_are_means_over_the_tokens_of_the_groups_that_count():
  groups, metrics = _partly_kept(), _cut(1, 0)[1]
  rollouts = learner.rows(groups.rollouts, groups.keep)
  mask = rollouts.response_mask
  delta = np.asarray(learner.logprobs(learner.policy(_FAR), rollouts), np.float64)
  delta = delta - rollouts.logprobs
  outside = (delta < np.log(0.8)) | (delta > np.log(1.2))
  found = metrics_lib.reduce(metrics)
  np.testing.assert_allclose(found['lpo/token_clip_frac'], outside[mask].mean(),
                             rtol=1e-5)
  np.testing.assert_allclose(found['mismatch/logp_abs_mean'],
                             np.abs(delta)[mask].mean(), rtol=1e-4)
  np.testing.assert_allclose(found['mismatch/seq_logratio_std'],
                             delta.sum(-1).std(-1).mean(), rtol=1e-4)


def test_order_of_the_responses_of_a_group_changes_nothing():
  order, groups = np.array([2, 0, 3, 1]), _partly_kept()
  rollouts = groups.rollouts
  shuffled = groups.replace(
    rollouts=rollouts.replace(**{
      name: getattr(rollouts, name)[:, order]
      for name in ('response', 'response_mask', 'logprobs')}),
    rewards=groups.rewards[:, order], anchor_scores=groups.anchor_scores[:, order])
  actual = _program(micro_prompts=1, micro_responses=0)(learner.policy(_FAR), shuffled)
  learner.assert_close(actual[0], _cut(1, 0)[0])


def test_groups_that_do_not_count_are_never_seen():
  groups = _partly_kept()
  rollouts = groups.rollouts
  wild = rollouts.response.copy()
  wild[2] = (wild[2] + 3) % learner.VOCAB
  changed = groups.replace(rollouts=rollouts.replace(response=wild),
                           rewards=groups.rewards * groups.keep[:, None])
  for cut in ((_SIZE, 0, 1), (2, 2, 1), (1, 0, 4)):
    program = _program(micro_prompts=cut[0], micro_responses=cut[1], pack=cut[2])
    actual = program(learner.policy(_FAR), changed)
    learner.assert_identical(actual, _cut(*cut))


def test_parts_take_every_nth_row():
  parts = sharding.split({'x': np.arange(12).reshape(6, 2)}, 3)
  np.testing.assert_array_equal(parts['x'][1, :, 0], [2, 8])


_deal = jax.jit(microbatch.deal, static_argnums=1)


@pytest.mark.parametrize('kept', [0, 1, 3, 5, 8, 12])
@pytest.mark.parametrize('updates,size', [(1, 2), (2, 3), (3, 2), (2, 1)])
def test_groups_that_count_are_dealt_evenly_and_tightly(kept, updates, size):
  keep = np.random.default_rng(kept).permutation(np.arange(12) < kept)
  config = UpdateConfig(updates_per_step=updates, micro_prompts=size)
  row = np.asarray(_deal(keep, config))
  assert sorted(row) == list(range(12))
  minibatches = sharding.split(keep[row], updates)
  counts = np.asarray(minibatches.sum(1))
  assert counts.max() - counts.min() <= 1
  for minibatch, count in zip(minibatches, counts, strict=True):
    live = sharding.split(minibatch, 12 // updates // size).any(1).sum()
    assert live == -(-count // size)


@pytest.mark.parametrize('choices,shards,message', [
  (dict(updates_per_step=3), 1, 'updates_per_step=3 .* prompts_per_step=16'),
  (dict(updates_per_step=2, micro_prompts=6), 1, 'micro_prompts=6 .* = 8'),
  (dict(micro_prompts=4), 8, 'micro_prompts=4 .* 8 batch shards'),
  (dict(micro_responses=3), 1, 'micro_responses=3 .* samples_per_prompt=4'),
  (dict(epochs=0), 1, 'epochs=0: must be at least 1'),
  (dict(updates_per_step=0), 1, 'updates_per_step=0: must be at least 1'),
  (dict(pack=0), 1, 'pack=0: must be at least 1'),
  (dict(micro_prompts=-1), 1, 'micro_prompts=-1: must be at least 1'),
  (dict(behavior='both'), 1, "behavior='both': choose learner or sampler"),
])
def test_sizes_that_do_not_divide_are_named(choices, shards, message):
  with pytest.raises(ValueError, match=message):
    UpdateConfig(**choices).check(16, 4, shards)


def test_sizes_that_divide_pass():
  UpdateConfig(updates_per_step=2, micro_prompts=4, micro_responses=2).check(16, 4, 4)
