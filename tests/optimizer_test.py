"""Learning rates by hand, decay on matrices alone, and the clip."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lpo_jax import optimizer
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
