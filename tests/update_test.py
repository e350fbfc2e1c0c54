"""One update: what it learns from, what it refuses, and the same on any mesh."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lpo_jax import metrics as metrics_lib
from lpo_jax import (
  microbatch,
  objective,
  optimizer,
  sequence,
  sharding,
  simplex,
  update,
)
from lpo_jax.microbatch import UpdateConfig
from lpo_jax.types import Coefficients, Mean, TrainState
from tests import learner, tiny

_FLAT = np.array([0, 1, 1, 0, 1, 1, 0, 1], bool)


def _start(distance=0.0):
  return learner.fresh(learner.policy(distance))


def _forward_kl_loss(groups):
  """Return lpo_fwd's written loss, token clip and all, of whole minibatches."""
  mask, rewards = groups.rollouts.response_mask, groups.rewards
  lengths = mask.sum(-1)
  target = jax.nn.softmax(rewards / rewards.std(1, keepdims=True), axis=1)

  def loss(logprobs, behavior):
    delta = logprobs - behavior
    scores = jnp.sum(delta, axis=-1, where=mask) / lengths
    c = jax.lax.stop_gradient(jax.nn.softmax(scores, axis=1) - target)
    held = jnp.clip(delta, np.log(0.8), np.log(1.2))
    return jnp.mean(jnp.sum(c * jnp.sum(held, axis=-1, where=mask) / lengths, axis=1))

  return loss


# On-policy: one update, so that log pi_b is the learner's own.

_PAIRED = {
  'grpo': dict(temperature_rule='group_std'),
  'dr_grpo': dict(temperature_rule='constant', temperature_value=1.0),
  'maxrl': dict(temperature_rule='group_mean'),
}
_CHOICES = [dict(name='lpo_fwd'), *(
  choices for name, rule in _PAIRED.items() for choices in (
    dict(name='lpo_rev', **rule), dict(name=name, aggregation='seq_mean_token_mean')))]


def _any_of(which):
  """Return one of _CHOICES, which also logs what it was given and what it answered."""
  built = [objective.build(objective.ObjectiveConfig(**choices), learner.SAMPLES)
           for choices in _CHOICES]

  def call(group):
    values = jax.lax.switch(which, [lambda g, o=o: o(g).values for o in built], group)
    scores = sequence.sequence_scores(group.logprobs, group.behavior_logprobs,
                                      group.mask)
    one = jnp.ones(())
    return Coefficients(values, one, {
      'scores': Mean(jnp.sum(jnp.abs(scores)), one),
      **{f'c{k}': Mean(jnp.sum(values[k]), one) for k in range(learner.SAMPLES)}})

  return call


@functools.cache
def _on_policy(index):
  groups = learner.groups(4, exact=False)  # nobody may read the sampler's record
  return learner.program(_any_of, micro_prompts=4)(
    jnp.int32(index), _start(), groups)


def test_one_update_alone_finds_its_own_log_probabilities():
  groups, metrics = learner.groups(4, exact=False), _on_policy(0)[1]
  assert float(metrics['scores'].total) == 0.0
  rewards = np.float64(groups.rewards)
  tilted = np.exp(rewards / rewards.std(1, keepdims=True))
  expected = 1 / learner.SAMPLES - tilted / tilted.sum(1, keepdims=True)
  actual = [float(metrics[f'c{k}']) for k in range(learner.SAMPLES)]
  np.testing.assert_allclose(actual, expected.mean(0), atol=2e-7)


@pytest.mark.parametrize('name', _PAIRED)
def test_reverse_kl_on_policy_is_the_policy_gradient_at_its_temperature(name):
  index = 1 + 2 * list(_PAIRED).index(name)
  reverse, policy_gradient = (
    learner.gradient(_on_policy(i)[0]) for i in (index, index + 1))
  learner.assert_close(reverse, policy_gradient)


def test_paired_gradients_differ_between_the_pairs():
  first, *others = (jax.tree.leaves(learner.gradient(_on_policy(i)[0]))
                    for i in (1, 3, 5))
  assert all(np.abs(a - b).max() > 1e-3 for other in others
             for a, b in [(first[-1], other[-1])])


# Several updates on one batch.

_TWICE = dict(updates_per_step=2, epochs=2, micro_prompts=4)


def _by_hand(state, groups):
  """Return losses, norms and parameters of four updates in a plain loop over optax."""
  transform, params = optimizer.build(learner.OPTIMIZER), state.params
  behavior = np.asarray(learner.logprobs(params, groups.rollouts))
  moments, norms = transform.init(params), []
  for _, part in itertools.product(range(2), range(2)):
    batch = learner.rows(groups, slice(part, None, 2))
    loss = _forward_kl_loss(batch)
    grads = learner.written_gradient(
      functools.partial(loss, behavior=behavior[part::2]), params, batch.rollouts)
    updates, moments = transform.update(grads, moments, params)
    params = optax.apply_updates(params, updates)
    norms.append(float(optax.global_norm(grads)))
  return params, norms


@functools.cache
def _four_updates(behavior='learner'):
  return learner.program(**_TWICE, behavior=behavior)(_start(), learner.groups(8))


def test_two_epochs_are_a_plain_loop_whose_target_stays_and_whose_policy_moves():
  params, norms = _by_hand(_start(), learner.groups(8))
  state, metrics = _four_updates()
  learner.assert_close(state.params, params)
  np.testing.assert_allclose(float(metrics['actor/grad_norm']), np.mean(norms),
                             rtol=1e-4)
  rates = [optimizer.schedule(learner.OPTIMIZER)(i) for i in range(4)]
  np.testing.assert_allclose(float(metrics['actor/lr']), np.mean(rates), rtol=1e-6)
  assert int(state.step) == 1 and int(state.skipped) == 0


def test_learner_and_sampler_agree_when_the_record_is_exact():
  learner.assert_close(_four_updates('sampler')[0].params, _four_updates()[0].params)
  metrics = metrics_lib.reduce(_four_updates('sampler')[1])
  assert metrics['mismatch/logp_abs_mean'] < 1e-6
  assert metrics['mismatch/seq_logratio_std'] < 2e-6


def test_mismatch_is_the_gap_to_the_record_before_anything_was_learned():
  groups = learner.groups(8)
  mask = groups.rollouts.response_mask
  wrong = groups.rollouts.logprobs - np.float32(0.1) * mask
  wrong = groups.replace(rollouts=groups.rollouts.replace(logprobs=wrong))
  state, metrics = learner.program(**_TWICE, behavior='learner')(_start(), wrong)
  first = mask[::2]  # the first minibatch of the first epoch
  found = metrics['mismatch/logp_abs_mean']
  assert int(found.count) == first.sum()
  np.testing.assert_allclose(float(found), 0.1, rtol=1e-4)
  np.testing.assert_allclose(float(metrics['mismatch/seq_logratio_std']),
                             (0.1 * first.sum(-1)).std(-1).mean(), rtol=1e-4)
  learner.assert_identical(state, _four_updates()[0])  # and nothing reads the record


def test_batch_metrics_are_those_of_the_batch():
  groups = learner.groups(8)
  metrics = metrics_lib.reduce(_four_updates()[1])
  mask = groups.rollouts.response_mask
  expected = {
    'reward/mean': groups.rewards.mean(), 'group/flat_frac': 0.0,
    'group/kept_frac': 1.0, 'response_length/mean': mask.sum(-1).mean(),
    'response_length/max': mask.sum(-1).max(), 'actor/skipped_frac': 0.0,
    'actor/useful_frac': 1.0, 'actor/entropy': -groups.rollouts.logprobs[mask].mean()}
  for name, value in expected.items():
    np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)


# What is refused.


def _spoiled(kind):
  """Return a state and a batch whose every gradient is not finite."""
  groups, state = learner.groups(8), _start()
  if kind == 'parameter':
    norm = state.params.final_norm[...].at[0].set(jnp.nan)
    state.params.final_norm = type(state.params.final_norm)(norm)
    return state, groups
  record = groups.rollouts.logprobs.copy()
  record[..., 0] = float(kind)  # the other tokens stay inside the band
  return state, groups.replace(rollouts=groups.rollouts.replace(logprobs=record))


@pytest.mark.parametrize('kind', ['nan', '-inf', 'parameter'])
def test_a_gradient_that_is_not_finite_is_skipped_and_counted(kind):
  before, groups = _spoiled(kind)
  run = learner.program(**_TWICE, behavior='sampler')
  state, metrics = run(before, groups)
  learner.assert_identical((state.params, state.opt_state),
                           (before.params, before.opt_state))
  assert int(state.skipped) == 4 and int(state.step) == 1
  metrics = metrics_lib.reduce(metrics)
  assert metrics['actor/skipped_frac'] == 1.0
  assert metrics['actor/useful_frac'] == 0.0
  assert metrics['actor/skipped_in_row'] == 4
  assert np.isnan(metrics['actor/grad_norm'])  # a mean over none
  if kind != 'parameter':
    state, _ = run(state, learner.groups(8))
    assert int(state.skipped) == 0
    learner.assert_identical(state.params, _four_updates('sampler')[0].params)


def test_one_spoiled_minibatch_leaves_the_other_to_be_learned_from():
  groups = learner.groups(8)
  record = groups.rollouts.logprobs.copy()
  record[1, 0, 0] = np.nan  # row 1 is in the second minibatch
  groups = groups.replace(rollouts=groups.rollouts.replace(logprobs=record))
  state, metrics = learner.program(**_TWICE, behavior='sampler')(_start(), groups)
  assert float(metrics['actor/skipped_frac']) == 0.5
  assert int(state.skipped) == 1
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))


def _partly_flat(flat=_FLAT):
  """Return eight groups, some of equal rewards."""
  groups = learner.groups(8)
  return groups.replace(
    rewards=np.where(flat[:, None], np.float32(0.7), groups.rewards))


_SKIP = dict(updates_per_step=1, micro_prompts=2, skip_flat_groups=True,
             behavior='sampler')


def test_skipping_flat_groups_is_learning_from_the_others_alone():
  groups = _partly_flat()
  kept = learner.rows(groups, ~_FLAT)
  start = _start(0.02)
  expected = learner.written_gradient(
    functools.partial(_forward_kl_loss(kept), behavior=kept.rollouts.logprobs),
    start.params, kept.rollouts)
  state, metrics = learner.program(**_SKIP)(start, groups)
  learner.assert_close(learner.gradient(state), expected, 2e-5)
  np.testing.assert_allclose(float(metrics['group/kept_frac']), 3 / 8)
  np.testing.assert_allclose(float(metrics['group/flat_frac']), 5 / 8)
  assert float(metrics['lpo/tau'].count) == 3


def test_groups_left_out_before_stay_out_when_flat_ones_are_skipped():
  groups = _partly_flat()
  out = np.flatnonzero(~_FLAT)[1]
  keep = np.arange(8) != out
  state, metrics = learner.program(**_SKIP)(_start(0.02), groups.replace(
    keep=jnp.asarray(keep)))
  expected, _ = learner.program(**_SKIP)(_start(0.02), groups.replace(
    rewards=jnp.asarray(groups.rewards).at[out].set(1.0)))  # flat: left out as well
  learner.assert_close(learner.gradient(state), learner.gradient(expected))
  np.testing.assert_allclose(float(metrics['group/kept_frac']), 2 / 8)


def test_a_batch_of_flat_groups_changes_nothing_and_is_no_failure():
  before = _start().replace(skipped=jnp.int32(2))
  groups = _partly_flat(np.ones(8, bool))
  state, metrics = learner.program(**_SKIP)(before, groups)
  learner.assert_identical((state.params, state.opt_state),
                           (before.params, before.opt_state))
  assert int(state.skipped) == 0 and int(state.step) == 1
  assert float(metrics['actor/useful_frac']) == 0.0


@pytest.mark.parametrize('responses,expected', [(0, 2 + 2), (2, 2 * 2 + 2 * 2 * 2)])
def test_microbatches_of_groups_that_do_not_count_are_not_computed(
    monkeypatch, responses, expected):
  # Three groups count: two in one minibatch, one in the other, so two microbatches of
  # four. Each runs for log pi_b and for its gradient; halves run twice for that.
  forwards = []

  def counted(*args, **kwargs):
    jax.debug.callback(lambda: forwards.append(1))
    return sequence.response_logprobs(*args, **kwargs)

  fake = type('sequence', (), {'response_logprobs': staticmethod(counted)})
  monkeypatch.setattr(microbatch, 'sequence', fake)
  program = learner.program.__wrapped__(
    updates_per_step=2, micro_prompts=2, micro_responses=responses,
    skip_flat_groups=True)
  state, _ = program(_start(), _partly_flat())
  jax.block_until_ready(state)
  jax.effects_barrier()
  assert len(forwards) == expected


# Meshes.

_MESHES = [(1, 1, 1), (8, 1, 1), (2, 2, 2), (1, 4, 2)]


def _rewarded(group):
  """Return an objective whose coefficients are rewards, plus how far the policy is."""
  far = jnp.max(jnp.abs(jnp.where(group.mask, group.logprobs - group.behavior_logprobs,
                                  0)))
  values = jnp.where(group.mask, (group.rewards + far)[:, None]
                     / jnp.sum(group.mask, axis=1, keepdims=True), 0)
  return Coefficients(values, jnp.zeros(()), {})


def test_coefficients_come_in_the_groups_order_as_the_first_epoch_used_them():
  groups = learner.groups(8)
  groups = groups.replace(rewards=np.where(_FLAT[:, None], 0.5, groups.rewards))
  step = learner.jit(update.make_update(
    _rewarded, learner._TRANSFORM, optimizer.schedule(learner.OPTIMIZER),
    UpdateConfig(updates_per_step=2, epochs=2, micro_prompts=2, skip_flat_groups=True,
                 behavior='sampler')))
  gap = np.asarray(step(_start(), groups)[2]) - groups.rewards
  np.testing.assert_array_equal(gap[_FLAT], -0.5)  # left out: 0
  first, second = np.flatnonzero(~_FLAT)[::2], np.flatnonzero(~_FLAT)[1::2]
  np.testing.assert_allclose(gap[first], 0, atol=1e-5)  # the policy had not moved
  assert (gap[second] > 1e-3).all()  # by one step


@functools.cache
def _curve(shape, responses, pack=1):
  """Return losses, gradient norms and final parameters of three iterations."""
  mesh = sharding.make_mesh(shape)
  transform = optimizer.build(learner.OPTIMIZER)
  config = UpdateConfig(updates_per_step=2, micro_prompts=8, micro_responses=responses,
                        pack=pack, behavior='sampler')
  params = learner.policy(0.02)
  state = TrainState(jnp.int32(0), params, transform.init(params), jnp.int32(0))
  placement = sharding.state_shardings(state, mesh)
  step = learner.jit(
    update.make_update(objective.build(objective.ObjectiveConfig(), learner.SAMPLES),
                       transform, optimizer.schedule(learner.OPTIMIZER), config),
    out_shardings=(placement, *[sharding.replicated(mesh)] * 2))
  curve = []
  with jax.set_mesh(mesh):
    state = jax.device_put(state, placement)
    for seed in range(3):
      batch = sharding.shard_batch(learner.groups(16, seed), mesh)
      state, metrics, _ = step(state, batch)
      curve.append(metrics_lib.reduce(metrics))
  for leaf, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(placement),
                          strict=True):
    assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim)
  return curve, jax.device_get(state.params)


@pytest.mark.parametrize('cut', [(0, 1), (2, 1), (0, 2), (2, 2)], ids=[
  'one_pass', 'two_pass', 'packed', 'packed_two_pass'])
@pytest.mark.parametrize('shape', _MESHES, ids=str)
def test_the_curve_is_the_same_on_every_mesh_however_it_is_cut(shape, cut):
  (curve, params), (expected, reference) = (
    _curve(shape, *cut), _curve(_MESHES[0], 0))
  for numbers, wanted in zip(curve, expected, strict=True):
    for name, value in wanted.items():
      if name == 'perf/pad_frac' and cut != (0, 1):
        continue  # of places, which depend on the cut
      np.testing.assert_allclose(numbers[name], value, rtol=1e-4, atol=1e-6,
                                 err_msg=name)
  learner.assert_close(params, reference)
  assert curve[0]['actor/grad_norm'] > 0.01


# Theorem 2.

_certify = learner.jit(functools.partial(
  update.certify, config=UpdateConfig(micro_prompts=4),
  target=objective.target(objective.ObjectiveConfig())))


def test_certificate_is_theorem_2_measured_after_the_update():
  groups = learner.groups(8).replace(keep=np.arange(8) != 3)
  policy = _four_updates()[0].params
  metrics, simplexes = _certify(policy, 0, groups)
  mask = groups.rollouts.response_mask
  delta = np.float64(learner.logprobs(policy, groups.rollouts))
  delta = (delta - groups.rollouts.logprobs) * mask
  after = np.exp(tiny.log_softmax(delta.sum(-1) / mask.sum(-1)))
  rewards = np.float64(groups.rewards)
  target = np.exp(tiny.log_softmax(rewards / rewards.std(1, keepdims=True)))
  before = np.full_like(target, 1 / learner.SAMPLES)
  for actual, expected in zip(simplexes, (target, before, after), strict=True):
    np.testing.assert_allclose(np.exp(actual), expected, rtol=2e-5)
  gain, improvement = ((p - before) * rewards for p in (target, after))
  error = 0.5 * np.abs(after - target).sum(1)
  expected = {
    'lpo/gain': gain.sum(1), 'lpo/improvement': improvement.sum(1),
    'lpo/projection_error': error,
    'lpo/kl_fwd_after': (target * np.log(target / after)).sum(1)}
  for name, values in expected.items():
    np.testing.assert_allclose(float(metrics[name]), values[groups.keep].mean(),
                               rtol=1e-4, err_msg=name)
  tau = rewards.std(1)
  divergence = tau * (target * np.log(target / before)
                      + before * np.log(before / target)).sum(1).T
  np.testing.assert_allclose(gain.sum(1), divergence, rtol=1e-6)
  bound = divergence - 2 * rewards.max(1) * error
  assert np.all(improvement.sum(1) >= bound)
  assert improvement.sum(1).mean() > 0


def test_certificate_of_no_update_gains_nothing():
  groups = learner.groups(8)
  metrics, _ = _certify(learner.policy(), 0, groups)
  assert abs(float(metrics['lpo/improvement'])) < 1e-6
  gibbs = jax.vmap(simplex.gibbs_target)(groups.rewards, groups.rewards.std(1))
  expected = 0.5 * np.abs(np.exp(gibbs) - 1 / learner.SAMPLES).sum(1).mean()
  np.testing.assert_allclose(float(metrics['lpo/projection_error']), expected,
                             rtol=1e-4)
