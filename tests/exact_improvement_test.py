"""Proposition 2, Theorem 2 and the corollaries, where nothing is sampled."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpo_jax import simplex
from lpo_jax.exact import improvement, worlds
from lpo_jax.simplex import geometry
from tests import exact_worlds_test

RNG = np.random.default_rng(1)
TAU = 0.5
WORLDS = exact_worlds_test.all_worlds()
DIVERGENCES = {
  'forward': simplex.forward_kl, 'reverse': simplex.reverse_kl,
  'jeffreys': simplex.jeffreys, 'jensen_shannon': simplex.jensen_shannon,
  'hellinger': simplex.hellinger, 'chi_square': simplex.chi_square,
  'alpha': functools.partial(simplex.alpha_divergence, alpha=0.5),
}


def start(world):
  return jnp.asarray(RNG.normal(size=world.shape), jnp.float32)


@pytest.mark.parametrize('name', WORLDS)
def test_exact_updates_follow_the_closed_form_and_never_lose(name):
  world = WORLDS[name]
  first = logits = start(world)
  rewards = [worlds.expected_reward(world, logits)]
  for step in range(1, 41):
    logits = improvement.project(world, logits, TAU)
    if step in (1, 7, 40):
      found = np.asarray(worlds.log_probs(world, logits), np.float64)
      expected = np.asarray(worlds.log_probs(world, first), np.float64) + (
        step * world.rewards / TAU)
      expected -= np.log(np.exp(expected).sum(axis=1, keepdims=True))
      np.testing.assert_allclose(found, expected, atol=5e-4)
      np.testing.assert_allclose(improvement.after(world, first, TAU, step), expected,
                                 atol=5e-4)
    rewards.append(worlds.expected_reward(world, logits))
  rewards = np.array(rewards)
  assert (np.diff(rewards, axis=0) > -1e-6).all() and (rewards[1] > rewards[0]).all()
  limit = worlds.expected_reward(world, worlds.represent(
    world, improvement.after(world, first, TAU, 10_000)))
  np.testing.assert_allclose(limit, world.rewards.max(axis=1), atol=1e-3)


def certificates(world, before, after):
  """Return each context's certificate of a move between two policies."""
  return jax.vmap(lambda s, t, r: simplex.certificate(s, t, r, TAU))(
    worlds.log_probs(world, before), worlds.log_probs(world, after),
    jnp.asarray(world.rewards, jnp.float32))


@pytest.mark.parametrize('name', WORLDS)
def test_theorem_2_is_an_equality_for_an_exact_update(name):
  world = WORLDS[name]
  logits = start(world)
  for _ in range(8):
    after = improvement.project(world, logits, TAU)
    found = certificates(world, logits, after)
    np.testing.assert_allclose(found.projection_error, 0, atol=2e-6)
    np.testing.assert_allclose(found.bound, found.improvement, atol=1e-5)
    log_p, log_w = (np.asarray(worlds.log_probs(world, x), np.float64)
                    for x in (logits, after))
    gain = TAU * ((np.exp(log_w) - np.exp(log_p)) * (log_w - log_p)).sum(axis=1)
    np.testing.assert_allclose(found.gain, gain, atol=1e-5)  # tau (KL + KL reversed)
    logits = after


@pytest.mark.parametrize('divergence', DIVERGENCES)
@pytest.mark.parametrize('name', ['contexts', 'tree'])
def test_theorem_2_holds_at_every_step_of_a_projection(name, divergence):
  world = WORLDS[name]
  before = start(world)
  log_target = improvement.targets(world, before, TAU)
  logits, errors = before, []
  for _ in range(6):
    logits, values = improvement.descend(world, logits, log_target,
                                         DIVERGENCES[divergence], 0.3, 40)
    assert np.diff(values).max() < 1e-5 and values[0] > values[-1] >= -1e-6
    found = certificates(world, before, logits)
    assert (found.improvement >= found.bound - 1e-6).all()
    errors.append(found.projection_error.max())
  assert errors[-1] < 0.7 * errors[0]  # it is on its way to the target


def test_pinsker_bounds_the_projection_error_by_either_divergence():
  world = WORLDS['contexts']
  before = start(world)
  log_target = improvement.targets(world, before, TAU)
  logits, _ = improvement.descend(world, before, log_target, simplex.forward_kl, 0.3,
                                  20)
  for scores, target in zip(worlds.log_probs(world, logits), log_target, strict=True):
    least = min(simplex.forward_kl(scores, target), simplex.reverse_kl(scores, target))
    assert 0.01 < geometry.total_variation(scores, target) <= math.sqrt(least / 2)


def test_on_policy_reverse_kl_is_the_policy_gradient_over_tau():
  # Proposition 3: <P, R> - tau KL(P || P_t) = -tau KL(P || w*) + tau log Z.
  world = WORLDS['tree']
  logits = start(world)
  log_target = improvement.targets(world, logits, TAU)

  def loss(logits):
    return jnp.mean(jax.vmap(simplex.reverse_kl)(worlds.log_probs(world, logits),
                                                 log_target))

  np.testing.assert_allclose(
    -TAU * jax.grad(loss)(logits), improvement.policy_gradient(world, logits),
    atol=1e-6)


def test_the_policy_gradient_is_the_slope_of_the_reward():
  world = worlds.tree(RNG.uniform(size=(2, 8)))
  logits = np.array(start(world), np.float64)
  gradient = np.asarray(improvement.policy_gradient(world, jnp.asarray(logits)))

  def reward(logits):
    table = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    log_p = table[:, world.node, world.action].sum(axis=-1)
    return (np.exp(log_p) * world.rewards).sum(axis=1).mean()

  for index in np.ndindex(logits.shape):
    moved = np.zeros_like(logits)
    moved[index] = 1e-5
    slope = (reward(logits + moved) - reward(logits - moved)) / 2e-5
    assert gradient[index] == pytest.approx(slope, abs=1e-6)


def drifted(delta: float, scale: float, samples: int = 8, tries: int = 200):
  """Return the largest gap of coefficients when ratios are within 1 +- delta, and |A|.

  Between the policy gradient's, -r A / K, and reverse KL's to w* = softmax(A).
  """
  rng, worst, largest = np.random.default_rng(2), 0.0, 0.0
  for _ in range(tries):
    ratio = 1 + delta * rng.uniform(-1, 1, samples)
    advantage = scale * rng.normal(size=samples)
    advantage -= advantage.mean()
    policy = ratio / ratio.sum()
    gap = np.log(ratio) - advantage
    exact = policy * (gap - policy @ gap)
    worst = max(worst, np.abs(exact + ratio * advantage / samples).max())
    largest = max(largest, np.abs(advantage).max())
  return worst, largest


@pytest.mark.parametrize('scale', [0.3, 1.0, 3.0])
def test_the_policy_gradients_error_grows_linearly_with_the_drift(scale):
  deltas = np.array([1e-4, 1e-3, 1e-2, 1e-1])
  errors, largest = np.array([drifted(delta, scale) for delta in deltas]).T
  slopes = np.diff(np.log(errors)) / np.diff(np.log(deltas))
  np.testing.assert_allclose(slopes, 1, atol=0.1)
  assert (errors <= 4 * deltas * (1 + largest) / 8).all()  # Eq. 22 to 28, K = 8


def test_the_drift_test_speaks_of_our_coefficients():
  rng = np.random.default_rng(3)
  scores, advantage = 0.1 * rng.normal(size=8), rng.normal(size=8)
  policy = np.exp(scores) / np.exp(scores).sum()
  gap = scores - advantage
  found = simplex.coefficients(simplex.reverse_kl, jnp.asarray(scores, jnp.float32),
                               jax.nn.log_softmax(jnp.asarray(advantage, jnp.float32)))
  np.testing.assert_allclose(found, policy * (gap - policy @ gap), atol=1e-6)


def test_forward_kl_covers_every_mode_of_the_target():
  """Corollary 2: w_k >= a and KL(w* || P) <= D imply P_k > a exp(-D / a - 1)."""
  world = WORLDS['contexts']
  logits = 3 * start(world)
  log_target = improvement.targets(world, jnp.zeros(world.shape), TAU)
  nearest = np.inf
  for _ in range(30):
    for scores, target in zip(worlds.log_probs(world, logits), log_target, strict=True):
      distance = float(simplex.forward_kl(scores, target))
      w = np.exp(np.asarray(target, np.float64))
      bound = w * np.exp(-distance / w - 1)
      p = np.exp(np.asarray(scores, np.float64))
      assert (p > bound).all()
      nearest = min(nearest, (p / bound).min())
    logits, _ = improvement.descend(world, logits, log_target, simplex.forward_kl, 0.2,
                                    10)
  assert nearest < 10  # the bound says something here


def test_reverse_kl_may_leave_a_mode_that_forward_kl_keeps():
  # A policy that nearly forgot the second of two equally good answers.
  world = worlds.contexts([[1.0, 1.0, 0.0]])
  logits = jnp.array([[[0.0, -12.0, 0.0]]])
  log_target = jax.nn.log_softmax(jnp.array([[2.0, 2.0, 0.0]]), axis=1)
  kept = {name: float(jnp.exp(worlds.log_probs(world, improvement.descend(
    world, logits, log_target, DIVERGENCES[name], 0.5, 60)[0]))[0, 1])
    for name in ('forward', 'reverse')}
  assert kept['forward'] > 0.3 and kept['reverse'] < 1e-3
