"""Every objective's coefficients against autodiff of its loss, written out here."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpo_jax import baselines, objective, simplex
from lpo_jax.types import Group

_K, _N = 6, 7
_LISTWISE = [name for name in objective.NAMES if name.startswith('lpo_')]
_PAIRED = [('grpo', 'group_std'), ('dr_grpo', 'constant'), ('maxrl', 'group_mean')]


def _group(seed=0, count=_K, spread=0.3, rewards=None):
  """Return a group off policy, with unequal lengths and, for K > 1, an empty row."""
  rng = np.random.default_rng(seed)
  old = -rng.uniform(0.1, 3, size=(count, _N))
  lengths = np.array([_N, 0, 1, 3, 5, _N - 1])[:count]
  mask = np.arange(_N)[None] < lengths[:, None]
  rewards = rng.uniform(size=count) if rewards is None else rewards
  group = Group(
    logprobs=old + spread * rng.normal(size=old.shape), behavior_logprobs=old,
    mask=mask, rewards=rewards, anchor_scores=0.3 * rng.normal(size=count),
    batch_mean=0.4, batch_std=0.3, step=0)
  return jax.tree.map(
    lambda x: np.asarray(x, bool if np.asarray(x).dtype == bool else np.float32), group)


@functools.cache
def _compiled(samples_per_prompt, choices):
  config = objective.ObjectiveConfig(**dict(choices))
  return jax.jit(objective.build(config, samples_per_prompt))


@functools.cache
def _batched(name):
  return jax.jit(jax.vmap(objective.build(objective.ObjectiveConfig(name=name), _K)))


def _answer(group, samples_per_prompt=_K, **choices):
  return _compiled(samples_per_prompt, tuple(choices.items()))(group)


def _stack(groups):
  return jax.tree.map(lambda *x: np.stack(x), *groups)


def _scores(logprobs, group, score, token_clip=None):
  """Return Eq. 3's sequence log-ratios, written with the paper's token clip."""
  delta = logprobs - group.behavior_logprobs
  if token_clip is not None:
    delta = jnp.clip(delta, np.log(1 - token_clip), np.log(1 + token_clip))
  total = jnp.sum(delta, axis=1, where=group.mask)
  lengths = jnp.maximum(jnp.sum(group.mask, axis=1), 1)
  return total / lengths if score == 'mean' else total


_WRITTEN = {
  'lpo_fwd': simplex.forward_kl, 'lpo_rev': simplex.reverse_kl,
  'lpo_js': simplex.jensen_shannon, 'lpo_jeffreys': simplex.jeffreys,
  'lpo_chi2': simplex.chi_square, 'lpo_hellinger': simplex.hellinger,
  'lpo_alpha': lambda s, t: simplex.alpha_divergence(s, t, 0.3),
  'pointwise': lambda s, t: -jnp.sum(jnp.exp(t) * s),
}


@pytest.mark.parametrize('name', _WRITTEN)
def test_listwise_coefficients_are_the_gradient_of_the_divergence(name):
  group = _group()
  for score in ('mean', 'sum') if name == 'lpo_fwd' else ('mean',):
    answer = _answer(group, name=name, score=score, token_clip=None, alpha=0.3,
                     temperature_rule='constant', temperature_value=0.5)
    log_target = jnp.log(jax.nn.softmax(group.rewards / 0.5 + group.anchor_scores))

    def loss(logprobs, score=score, log_target=log_target):
      return _WRITTEN[name](_scores(logprobs, group, score), log_target)

    value, gradient = jax.jit(jax.value_and_grad(loss))(group.logprobs)
    np.testing.assert_allclose(answer.values, gradient, rtol=1e-4, atol=2e-6)
    np.testing.assert_allclose(answer.loss, value, rtol=1e-4, atol=1e-6)
    assert not np.any(answer.values[~group.mask]) and np.any(answer.values)


@pytest.mark.parametrize('score', ['mean', 'sum'])
def test_token_clip_is_the_papers_loss_with_a_clipped_log_ratio(score):
  """D.3: c from the unclipped scores, times clipped log-ratios, c held fixed."""
  group = _group(seed=1)
  answer = _answer(group, score=score, token_clip=0.2, temperature_rule='constant')
  log_target = jax.nn.log_softmax(group.rewards + group.anchor_scores)
  s = _scores(group.logprobs, group, score)
  c = jax.nn.softmax(s) - jnp.exp(log_target)

  def loss(logprobs):
    return jnp.sum(c * _scores(logprobs, group, score, token_clip=0.2))

  np.testing.assert_allclose(answer.values, jax.grad(loss)(group.logprobs), atol=1e-6)
  delta = np.asarray(group.logprobs - group.behavior_logprobs)[group.mask]
  above, below = delta > np.log(1.2), delta < np.log(0.8)
  assert above.any() and below.any() and not (above | below).all()
  np.testing.assert_allclose(float(answer.metrics['lpo/token_clip_frac']),
                             (above | below).mean(), rtol=1e-6)


@pytest.mark.parametrize('tau,bonus', [(0.4, 0.0), (0.4, 0.3)])
def test_off_policy_both_projections_are_the_papers_in_float64(tau, bonus):
  """s_t != 0: w* = softmax((R + tau s_t) / (tau + gamma)); Eq. 10 and Eq. 11."""
  group = _group(seed=4)
  wide = jax.tree.map(np.float64, group)
  lengths = np.maximum(group.mask.sum(1), 1)
  delta = np.where(group.mask, wide.logprobs - wide.behavior_logprobs, 0)
  s = delta.sum(1) / lengths
  phi = (wide.rewards + tau * wide.anchor_scores) / (tau + bonus)
  p, w = (np.exp(x) / np.exp(x).sum() for x in (s, phi))
  d = s - phi
  for name, c in (('lpo_fwd', p - w), ('lpo_rev', p * (d - (p * d).sum()))):
    answer = _answer(group, name=name, token_clip=None, temperature_rule='constant',
                     temperature_value=tau, entropy_bonus=bonus)
    expected = np.where(group.mask, (c / lengths)[:, None], 0)
    np.testing.assert_allclose(answer.values, expected, atol=2e-7)
    assert abs(c.sum()) < 1e-12 and np.abs(c).max() > 0.02


@pytest.mark.parametrize('name', ['lpo_fwd', 'lpo_rev', 'lpo_js'])
def test_on_policy_an_entropy_bonus_is_a_warmer_temperature(name):
  group = _group(seed=2).replace(anchor_scores=np.zeros(_K, np.float32))
  choices = dict(name=name, temperature_rule='constant')
  bonus = _answer(group, temperature_value=0.5, entropy_bonus=0.25, **choices)
  warmer = _answer(group, temperature_value=0.75, **choices)
  np.testing.assert_array_equal(bonus.values, warmer.values)
  assert float(bonus.metrics['lpo/tau']) == 0.75


_PUBLISHED = {
  'grpo': ('ppo', 0.2, 0.2, 'seq_mean_token_mean'),
  'dr_grpo': ('ppo', 0.2, 0.2, 'seq_mean_const_len'),
  'maxrl': ('ppo', 0.2, 0.2, 'seq_mean_token_mean'),
  'rloo': ('ppo', 0.2, 0.2, 'seq_mean_token_sum'),
  'reinforce_pp': ('ppo', 0.2, 0.2, 'token_mean'),
  'dapo': ('ppo', 0.2, 0.28, 'token_mean'),
  'gspo': ('gspo', 3e-4, 4e-4, 'seq_mean_token_mean'),
  'cispo': ('cispo', 1.0, 0.28, 'token_mean'),
}


def _advantages(name, group):
  r = np.asarray(group.rewards, np.float64)
  centred = r - r.mean()
  return {'dr_grpo': centred, 'maxrl': centred / r.mean(),
          'rloo': centred * len(r) / (len(r) - 1),
          'reinforce_pp': centred / 0.3}.get(name, centred / r.std())


def _surrogate(logprobs, group, advantages, method, low, high, aggregation):
  """Return a baseline's loss, written apart from `baselines`."""
  mask, (count, width) = group.mask, group.mask.shape
  lengths = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
  weight = mask * {
    'token_mean': jnp.ones((count, 1)) / jnp.sum(mask),
    'seq_mean_token_mean': 1 / (count * lengths),
    'seq_mean_token_sum': jnp.ones((count, 1)) / count,
    'seq_mean_const_len': jnp.ones((count, 1)) / (count * width)}[aggregation]
  delta = jnp.where(mask, logprobs - group.behavior_logprobs, 0)
  if method == 'gspo':
    mean = jnp.sum(delta, axis=1, keepdims=True) / lengths
    delta = jnp.broadcast_to(mean, mask.shape)
  ratio, a = jnp.exp(delta), jnp.asarray(advantages, float)[:, None]
  held = jnp.clip(ratio, 1 - low, 1 + high)
  if method == 'cispo':
    return -jnp.sum(weight * jax.lax.stop_gradient(held) * a * logprobs)
  return -jnp.sum(weight * jnp.minimum(ratio * a, held * a))


@pytest.mark.parametrize('name,stated', [
  *((name, False) for name in _PUBLISHED), ('grpo', True), ('gspo', True),
  ('cispo', True)])
def test_baseline_coefficients_are_the_gradient_of_the_written_loss(name, stated):
  group = _group(seed=2)
  method, *choices = _PUBLISHED[name]
  if stated:
    choices = [0.02, 0.03, choices[2]]
    fields = ('clip_low', 'clip_high', 'aggregation')
    answer = _answer(group, name=name, **dict(zip(fields, choices, strict=True)))
  else:
    answer = _answer(group, name=name)
  arguments = (group, _advantages(name, group), method, *choices)
  loss = jax.jit(jax.value_and_grad(lambda logprobs: _surrogate(logprobs, *arguments)))
  value, gradient = loss(group.logprobs)
  np.testing.assert_allclose(answer.values, gradient, rtol=1e-4, atol=2e-6)
  np.testing.assert_allclose(answer.loss, value, rtol=1e-4, atol=1e-6)
  assert 0 < float(answer.metrics['actor/pg_clipfrac']) < 1
  delta = np.asarray(group.logprobs - group.behavior_logprobs)[group.mask]
  np.testing.assert_allclose(float(answer.metrics['actor/ppo_kl']), -delta.mean(),
                             rtol=1e-4)


# The paired temperatures.


def _on_policy(group):
  return dataclasses.replace(group, logprobs=group.behavior_logprobs,
                             anchor_scores=np.zeros_like(group.anchor_scores))


@pytest.mark.parametrize('name,rule', _PAIRED)
def test_reverse_kl_on_policy_is_its_paired_policy_gradient(name, rule):
  group = _on_policy(_group(rewards=np.array([0.0, 1, 1, 0, 1, 0.1])))
  for score, aggregation in (('mean', 'seq_mean_token_mean'),
                             ('sum', 'seq_mean_token_sum')):
    listwise = _answer(group, name='lpo_rev', score=score, temperature_rule=rule)
    paired = _answer(group, name=name, aggregation=aggregation)
    np.testing.assert_allclose(listwise.values, paired.values, rtol=1e-4, atol=1e-7)
    assert np.any(listwise.values)


@pytest.mark.parametrize('name,rule', _PAIRED)
def test_reverse_kl_moves_a_softmax_policy_as_its_paired_policy_gradient(name, rule):
  rng = np.random.default_rng(3)
  table = jnp.asarray(rng.normal(size=(5, 4)), jnp.float32)  # position, token
  tokens, lengths = rng.integers(0, 4, size=(_K, 5)), np.array([5, 3, 1, 4, 5, 2])
  group = _group()

  def logprobs(table):
    return jax.nn.log_softmax(table)[jnp.arange(5)[None], tokens]

  fixed = logprobs(table)
  group = dataclasses.replace(
    _on_policy(group), logprobs=fixed, behavior_logprobs=fixed,
    mask=jnp.asarray(np.arange(5)[None] < lengths[:, None]))
  advantages = _advantages(name, group)

  def policy_gradient(table):  # Eq. 3
    means = jnp.sum(logprobs(table), axis=1, where=group.mask) / lengths
    return -jnp.mean(jnp.asarray(advantages, float) * means)

  values = _answer(group, name='lpo_rev', temperature_rule=rule).values
  gradient = jax.grad(lambda table: jnp.sum(values * logprobs(table)))(table)
  np.testing.assert_allclose(gradient, jax.grad(policy_gradient)(table), rtol=1e-3,
                             atol=1e-6)


# Groups at the edges.


@pytest.mark.parametrize('name', [n for n in objective.NAMES if n != 'pointwise'])
def test_flat_group_has_no_gradient_on_policy(name):
  groups = [_on_policy(_group(rewards=np.full(_K, r))) for r in (0.0, 0.1, 1.0)]
  np.testing.assert_allclose(_batched(name)(_stack(groups)).values, 0, atol=1e-7)


def test_flat_group_off_policy_is_pulled_to_the_anchor():
  group = _group(rewards=np.full(_K, 0.1))
  s = _scores(group.logprobs, group, 'mean')
  pull = jax.nn.softmax(s) - jax.nn.softmax(group.anchor_scores)
  lengths = jnp.maximum(jnp.sum(group.mask, axis=1), 1)
  answer = _answer(group, token_clip=None)
  np.testing.assert_allclose(
    answer.values, np.where(group.mask, (pull / lengths)[:, None], 0), atol=1e-6)


@pytest.mark.parametrize('name', objective.NAMES)
def test_what_is_off_mask_does_not_matter(name):
  groups = [_group(seed) for seed in range(3)]
  spoilt = [dataclasses.replace(g, logprobs=np.where(g.mask, g.logprobs, np.nan))
            for g in groups]
  clean, answers = _batched(name)(_stack(groups)), _batched(name)(_stack(spoilt))
  jax.tree.map(np.testing.assert_array_equal, clean, answers)
  assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(answers))


@pytest.mark.parametrize('name', ['lpo_fwd', 'grpo', 'gspo'])
def test_groups_are_batched_with_vmap(name):
  groups = [_group(seed) for seed in range(3)]
  answers = _batched(name)(_stack(groups))
  for b, group in enumerate(groups):
    np.testing.assert_allclose(answers.values[b], _answer(group, name=name).values,
                               rtol=1e-4, atol=1e-6)


def test_metrics_are_those_of_the_target():
  group = _group()
  metrics = _answer(group, temperature_rule='constant', temperature_value=0.5).metrics
  phi = np.asarray(group.rewards / 0.5 + group.anchor_scores, np.float64)
  w = np.exp(phi) / np.exp(phi).sum()
  p = np.asarray(jax.nn.softmax(_scores(group.logprobs, group, 'mean')), np.float64)
  for name, expected in {
      'lpo/kl_fwd_before': np.sum(w * np.log(w / p)), 'lpo/tau': 0.5,
      'lpo/target_entropy': -np.sum(w * np.log(w)), 'lpo/target_ess': 1 / np.sum(w * w),
      'lpo/coef_abs_sum': np.abs(p - w).sum()}.items():
    np.testing.assert_allclose(float(metrics[name]), expected, rtol=1e-4)
  assert float(metrics['lpo/token_clip_frac'].count) == float(jnp.sum(group.mask))


@pytest.mark.parametrize('rule,value,expected', [
  ('constant', 0.7, 0.7), ('group_std', 2.0, None), ('group_mean', 0.5, None),
  ('batch_std', 2.0, 0.6)])
def test_temperature_is_the_statistic_times_the_value(rule, value, expected):
  group = _group()
  rewards = np.asarray(group.rewards)
  expected = expected or value * {'group_std': rewards.std(),
                                  'group_mean': rewards.mean()}[rule]
  metrics = _answer(group, temperature_rule=rule, temperature_value=value).metrics
  np.testing.assert_allclose(float(metrics['lpo/tau']), expected, rtol=1e-5)


@pytest.mark.parametrize('rule,value', [('target_kl', 0.2), ('target_ess', 3.0)])
def test_solved_temperature_reaches_its_value(rule, value):
  group = _on_policy(_group())
  metrics = _answer(group, temperature_rule=rule, temperature_value=value).metrics
  reached = {'target_kl': 'lpo/kl_fwd_before', 'target_ess': 'lpo/target_ess'}[rule]
  np.testing.assert_allclose(float(metrics[reached]), value, rtol=1e-3)


# K = 1.


@pytest.mark.parametrize('name,rule,tau', [
  *((name, 'constant', 1.0) for name in _LISTWISE), ('lpo_fwd', 'batch_std', 0.3)])
def test_one_response_is_paired_with_the_batchs_mean(name, rule, tau):
  group = _group(count=1, rewards=np.ones(1))
  answer = _answer(group, 1, name=name, temperature_rule=rule, token_clip=None)
  c = 0.5 - 1 / (1 + np.exp(-(1 - 0.4) / tau))
  np.testing.assert_allclose(answer.values, np.full((1, _N), c / _N), rtol=1e-5)


@pytest.mark.parametrize('choices', [
  {'temperature_rule': 'group_std'}, {'temperature_rule': 'target_ess',
                                      'temperature_value': 2.0}])
def test_one_response_has_no_group_temperature(choices):
  config = objective.ObjectiveConfig(**choices)
  with pytest.raises(ValueError, match=r'samples_per_prompt=1.*group rule.*constant'):
    objective.build(config, 1)


@pytest.mark.parametrize('name', [*_PUBLISHED, 'pointwise'])
def test_group_relative_methods_refuse_one_response(name):
  config = objective.ObjectiveConfig(name=name, temperature_rule='constant')
  with pytest.raises(ValueError, match=f'samples_per_prompt=1 with name={name}'):
    objective.build(config, 1)


# What is refused.


@pytest.mark.parametrize('choices,message', [
  ({'name': 'lpo_forward'}, "name='lpo_forward' is not one of .*did you mean 'lpo_"),
  ({'score': 'total'}, "score='total'"),
  ({'temperature_rule': 'groupstd'}, "did you mean 'group_std'"),
  ({'token_clip': 0.0}, 'token_clip=0.0.*None'),
  ({'token_clip': 1.0}, 'token_clip=1.0'),
  ({'temperature_value': 0.0}, 'temperature_value=0.0'),
  ({'temperature_value': float('nan')}, 'temperature_value=nan'),
  ({'temperature_rule': 'target_ess'}, 'temperature_value=1.0.*above 1'),
  ({'entropy_bonus': -1.0}, 'entropy_bonus=-1.0'),
  ({'entropy_bonus': 0.1, 'name': 'grpo'}, 'entropy_bonus=0.1 has no effect'),
  ({'alpha': float('inf')}, 'alpha=inf'),
  ({'name': 'grpo', 'clip_low': 2.0}, 'clip_low=2.0'),
  ({'name': 'grpo', 'clip_high': -0.1}, 'clip_high=-0.1'),
  ({'name': 'grpo', 'aggregation': 'token_means'}, "did you mean 'token_mean'"),
  ({'name': 'lpo_fwd', 'clip_high': 0.2}, 'clip_high=0.2 has no effect.*token_clip'),
])
def test_a_bad_choice_is_refused_by_name_and_value(choices, message):
  with pytest.raises(ValueError, match=message):
    objective.ObjectiveConfig(**choices)


def test_what_the_group_size_rules_out_is_refused_at_build():
  config = objective.ObjectiveConfig(temperature_rule='target_ess', temperature_value=9)
  with pytest.raises(ValueError, match='temperature_value=9.*samples_per_prompt=8'):
    objective.build(config, 8)
  with pytest.raises(ValueError, match='samples_per_prompt=0'):
    objective.build(objective.ObjectiveConfig(), 0)


def test_every_published_choice_is_one_of_the_aggregations():
  assert {choice[3] for choice in _PUBLISHED.values()} == set(baselines.AGGREGATIONS)


def test_a_mixture_is_the_sum_of_its_parts_and_moves_with_the_step():
  choices = dict(name='lpo_mix', mix=0.25, mix_end=0.75, schedule_steps=10)
  group = _group()
  forward, reverse = (_answer(group, name=name) for name in ('lpo_fwd', 'lpo_rev'))
  for step, share in ((0, 0.25), (5, 0.5), (10, 0.75), (99, 0.75)):
    found = _answer(group.replace(step=np.float32(step)), **choices)
    for field in ('values', 'loss'):
      np.testing.assert_allclose(
        getattr(found, field),
        (1 - share) * getattr(forward, field) + share * getattr(reverse, field),
        atol=1e-6)


def test_a_scheduled_temperature_is_that_of_its_step():
  moving = dict(temperature_value=2.0, temperature_end=0.5, schedule_steps=3)
  for step, value in ((0, 2.0), (1, 1.5), (3, 0.5), (7, 0.5)):
    group = _group().replace(step=np.float32(step))
    np.testing.assert_allclose(_answer(group, **moving).values,
                               _answer(group, temperature_value=value).values,
                               atol=1e-7)


@pytest.mark.parametrize(('choices', 'message'), [
  (dict(name='lpo_mix', mix=1.5), r'mix=1.5: must lie between 0.0 and 1.0'),
  (dict(name='lpo_mix', mix_end=1.0), r'mix goes from 0.0 to 1.0 in schedule_steps=0'),
  (dict(mix_end=1.0, schedule_steps=3), r'mix_end=1.0 has no effect on name=lpo_fwd'),
  (dict(temperature_end=0.0, schedule_steps=3), r'temperature_value=0.0: must lie'),
  (dict(temperature_end=2.0), r'temperature_value goes from 1.0 to 2.0'),
])
def test_a_schedule_that_cannot_be_is_named(choices, message):
  with pytest.raises(ValueError, match=message):
    objective.ObjectiveConfig(**choices)
