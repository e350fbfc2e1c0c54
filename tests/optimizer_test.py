"""Learning rates by hand, decay on matrices alone, and the clip."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lpo_jax import optimizer
from lpo_jax import policy as policies
from lpo_jax.optimizer import OptimizerConfig
from tests import learner, tiny

_NAMES_WITHOUT_DECAY = ('norm', 'bias')


def _rates(counts, **choices):
  schedule = optimizer.schedule(OptimizerConfig(learning_rate=2.0, **choices))
  return [float(schedule(count)) for count in counts]


@pytest.mark.parametrize('steps', [1, 2, 4])
def test_warm_up_takes_equal_steps_from_one_part_to_the_peak(steps):
  expected = [2.0 * (i + 1) / steps for i in range(steps)] + [2.0, 2.0]
  np.testing.assert_allclose(_rates(range(steps + 2), warmup_steps=steps), expected,
                             rtol=1e-6)


def test_constant_without_warm_up_is_the_peak_at_once():
  assert _rates([0, 1, 10_000]) == [2.0] * 3


@pytest.mark.parametrize('schedule,shape', [
  ('cosine', lambda x: 0.25 + 0.75 * (1 + math.cos(math.pi * x)) / 2),
  ('linear', lambda x: 1 - 0.75 * x)])
@pytest.mark.parametrize('warmup', [0, 3])
def test_decay_falls_from_the_peak_to_its_final_fraction(schedule, shape, warmup):
  counts = [warmup, warmup + 2, warmup + 4, warmup + 8, warmup + 50]
  expected = [2.0 * shape(min((count - warmup) / 8, 1)) for count in counts]
  np.testing.assert_allclose(
    _rates(counts, schedule=schedule, warmup_steps=warmup, decay_steps=warmup + 8,
           final_fraction=0.25), expected, rtol=1e-6)


def _updates(config, grads, params):
  transform = optimizer.build(config)
  return learner.jit(
    lambda grads, params: transform.update(grads, transform.init(params), params)[0]
  )(grads, params)


def test_weight_decay_acts_on_matrices_alone():
  params = tiny.policy(qkv_bias=True, qk_norm=True)
  config = OptimizerConfig(learning_rate=0.5, weight_decay=0.1)
  updates = _updates(config, jax.tree.map(jnp.zeros_like, params), params)
  spared = set()
  for (path, update), value in zip(jax.tree_util.tree_leaves_with_path(updates),
                                   jax.tree.leaves(params), strict=True):
    name = path[-2].name
    if any(word in name for word in _NAMES_WITHOUT_DECAY):
      spared.add(name)
      assert not np.any(update), name
    else:
      np.testing.assert_allclose(update, -0.05 * value, rtol=1e-6, err_msg=name)
  assert spared == {'attention_norm', 'mlp_norm', 'final_norm', 'query_norm',
                    'key_norm', 'query_bias', 'key_bias', 'value_bias'}


@pytest.mark.parametrize('clip', [None, 0.5, 100.0])
def test_gradients_are_clipped_by_their_global_norm(clip):
  params = {'a': jnp.zeros((2, 3)), 'b': jnp.zeros(2)}
  grads = {'a': jnp.full((2, 3), 2.0), 'b': jnp.array([3.0, -1.0])}
  norm = math.sqrt(6 * 4 + 9 + 1)
  factor = 1.0 if clip is None else min(1.0, clip / norm)
  # One step of Adam moves by g / (|g| + eps): with a large eps the size of g shows.
  config = OptimizerConfig(learning_rate=1.0, eps=10.0, weight_decay=0.0,
                           clip_norm=clip)
  actual = _updates(config, grads, params)
  for name, g in grads.items():
    g = np.float64(g) * factor
    np.testing.assert_allclose(actual[name], -g / (np.abs(g) + 10), rtol=1e-5)


def test_moments_follow_adam():
  config = OptimizerConfig(learning_rate=0.1, b1=0.8, b2=0.9, eps=1e-3,
                           weight_decay=0.0, clip_norm=None)
  transform, params = optimizer.build(config), {'a': jnp.zeros(())}
  state, expected, mean, square = transform.init(params), 0.0, 0.0, 0.0
  for i, g in enumerate([1.0, -0.5, 2.0], start=1):
    updates, state = transform.update({'a': jnp.float32(g)}, state, params)
    params = optax.apply_updates(params, updates)
    mean, square = 0.8 * mean + 0.2 * g, 0.9 * square + 0.1 * g * g
    step = (mean / (1 - 0.8 ** i)) / (math.sqrt(square / (1 - 0.9 ** i)) + 1e-3)
    expected -= 0.1 * step
  np.testing.assert_allclose(params['a'], expected, rtol=1e-5)


@pytest.mark.parametrize('choices,message', [
  (dict(schedule='cosin'), "schedule='cosin': choose one of constant, cosine, linear"),
  (dict(schedule='cosine', decay_steps=5, warmup_steps=5),
   'decay_steps=5 above warmup_steps=5'),
  (dict(schedule='linear'), 'decay_steps=0 above warmup_steps=0'),
  (dict(learning_rate=0.0), 'learning_rate=0.0: must be > 0'),
  (dict(learning_rate=float('nan')), 'learning_rate=nan: must be > 0'),
])
def test_a_schedule_that_cannot_be_is_named(choices, message):
  with pytest.raises(ValueError, match=message):
    OptimizerConfig(**choices)


# Sixteen bits.


def _many(config, params, grads, steps):
  """Return parameters and state after some steps of the same gradient."""
  transform = optimizer.build(config)

  @jax.jit
  def run(params, state):
    def step(count, carry):
      params, state = carry
      updates, state = transform.update(grads, state, params)
      return optimizer.apply_updates(params, updates, count), state
    return jax.lax.fori_loop(0, steps, step, (params, state))

  return run(params, transform.init(params))


def test_moments_in_bfloat16_follow_those_in_float32():
  config = OptimizerConfig(learning_rate=1e-3, weight_decay=0.0, clip_norm=None)
  params = {'a': jnp.ones(512)}
  grads = {'a': jnp.linspace(0.5, 2.0, 512)}
  short = dataclasses.replace(config, moment_dtype='bfloat16')
  (exact, state), (close, rounded) = (
    _many(choice, params, grads, 300) for choice in (config, short))
  for name in ('mu', 'nu'):
    wanted, actual = (optax.tree_utils.tree_get(s, name)['a'] for s in (state, rounded))
    assert actual.dtype == jnp.bfloat16 and wanted.dtype == jnp.float32
    # A moment rounded to nearest would stop growing: 0.999 is 1 in bfloat16.
    np.testing.assert_allclose(np.mean(np.float64(actual) / np.float64(wanted)), 1.0,
                               rtol=5e-3)
  np.testing.assert_allclose(np.mean(1 - close['a']), np.mean(1 - exact['a']),
                             rtol=1e-2)


def test_weights_in_bfloat16_move_by_steps_smaller_than_their_spacing():
  config = OptimizerConfig(learning_rate=1e-6, weight_decay=0.0, clip_norm=None)
  params = {'a': jnp.full(100_000, 0.02, jnp.bfloat16)}
  grads = {'a': jnp.ones(100_000, jnp.bfloat16)}
  after, state = _many(config, params, grads, 10)
  assert after['a'].dtype == jnp.bfloat16
  assert optax.tree_utils.tree_get(state, 'nu')['a'].dtype == jnp.float32
  moved = np.float64(params['a']) - np.float64(after['a'])
  assert 0 < np.mean(moved != 0) < 0.5  # few weights move, by a whole spacing
  np.testing.assert_allclose(moved.mean(), 10e-6, rtol=0.05)


def test_rounding_depends_on_the_step_and_on_nothing_else():
  params = {'a': jnp.full(1000, 0.02, jnp.bfloat16)}
  updates = {'a': jnp.full(1000, 2e-5)}
  first, again, later = (optimizer.apply_updates(params, updates, count)['a']
                         for count in (3, 3, 4))
  np.testing.assert_array_equal(first, again)
  assert (first != later).any()


def test_what_is_not_finite_stays_so_in_bfloat16():
  params = {'a': jnp.ones(4, jnp.bfloat16)}
  updates = {'a': jnp.array([jnp.nan, jnp.inf, -jnp.inf, 0.0])}
  found = np.asarray(optimizer.apply_updates(params, updates, 0)['a'], np.float32)
  np.testing.assert_array_equal(found, [np.nan, np.inf, -np.inf, 1.0])


def test_an_unknown_moment_dtype_is_named():
  with pytest.raises(ValueError, match="moment_dtype='int8': choose one of float32"):
    OptimizerConfig(moment_dtype='int8')


def test_a_vision_tower_takes_its_own_multiple_of_the_rate():
  tower = policies.VisionConfig(width=8, layers=1, heads=2, mlp_width=4, patch_size=2,
                                window_size=8, full_blocks=(), image_token=1)
  policy = tiny.policy(qkv_bias=True, rope_sections=(1, 2, 1), vision=tower)
  grads = jax.tree.map(lambda x: x + 1.0, policy)
  steps = {}
  for multiplier in (1.0, 0.25, 0.0):
    transform = optimizer.build(optimizer.OptimizerConfig(
      learning_rate=0.1, vision_multiplier=multiplier))
    steps[multiplier], _ = transform.update(grads, transform.init(policy), policy)
  for multiplier in (0.25, 0.0):
    for (path, whole), scaled in zip(
        jax.tree_util.tree_leaves_with_path(steps[1.0]),
        jax.tree.leaves(steps[multiplier]), strict=True):
      inside = jax.tree_util.keystr(path).startswith('.vision')
      np.testing.assert_allclose(scaled, whole * (multiplier if inside else 1.0),
                                 rtol=1e-6)
      assert np.abs(whole).max() > 0
  with pytest.raises(ValueError, match='vision_multiplier=-1'):
    optimizer.OptimizerConfig(vision_multiplier=-1)
