"""Divergences: their values, their gradients in closed form, and the paper's claims."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lpo_jax import simplex

_ALPHAS = (-0.5, 0.0, 0.001, 0.3, 1.0, 2.0)


def _kl(a, b):
  return sum(x * np.log(x / y) for x, y in zip(a, b, strict=True))


def _alpha(w, p, a):
  if a == 0:
    return _kl(p, w)
  if a == 1:
    return _kl(w, p)
  return (np.sum(w**a * p**(1 - a)) - 1) / (a * (a - 1))


# Divergence -> its definition on probabilities w, P in float64.
_DEFINITIONS = {
  'forward_kl': (simplex.forward_kl, _kl),
  'reverse_kl': (simplex.reverse_kl, lambda w, p: _kl(p, w)),
  'jeffreys': (simplex.jeffreys, lambda w, p: _kl(w, p) + _kl(p, w)),
  'jensen_shannon': (simplex.jensen_shannon, lambda w, p: (
    _kl(w, (w + p) / 2) + _kl(p, (w + p) / 2)) / 2),
  'chi_square': (simplex.chi_square, lambda w, p: np.sum((w - p)**2 / p)),
  'hellinger': (simplex.hellinger, lambda w, p: np.sum(
    (np.sqrt(w) - np.sqrt(p))**2) / 2),
} | {
  f'alpha={a}': (functools.partial(simplex.alpha_divergence, alpha=a),
                 functools.partial(_alpha, a=a)) for a in _ALPHAS
}
# Those that stay finite wherever P and w* are.
_FINITE = [name for name in _DEFINITIONS
           if name not in ('chi_square', 'alpha=-0.5', 'alpha=2.0')]

every_divergence = pytest.mark.parametrize('name', _DEFINITIONS)


def _softmax(x):
  x = np.exp(x - np.max(x, axis=-1, keepdims=True))
  return x / x.sum(axis=-1, keepdims=True)


def _random(count, seed=0, groups=12):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(groups, count)), rng.normal(size=(groups, count))


@functools.cache
def _compiled(name):
  """Return a divergence's value, coefficients and autodiff gradient, over a batch."""
  function = _DEFINITIONS[name][0]

  def everything(scores, log_target):
    return (function(scores, log_target),
            simplex.coefficients(function, scores, log_target),
            jax.grad(function)(scores, log_target))

  return jax.jit(jax.vmap(everything))


def _values(name, scores, log_target):
  return np.asarray(_compiled(name)(scores, log_target)[0], np.float64)


def _coefficients(name, scores, log_target):
  return np.asarray(_compiled(name)(scores, log_target)[1], np.float64)


def _gradients(name, scores, log_target):
  return np.asarray(_compiled(name)(scores, log_target)[2], np.float64)


@every_divergence
def test_value_is_its_definition_in_float64(name):
  _, definition = _DEFINITIONS[name]
  for count in (8, 64):
    scores, phi = _random(count)
    expected = [definition(w, p)
                for w, p in zip(_softmax(phi), _softmax(scores), strict=True)]
    values = _values(name, scores, np.log(_softmax(phi)))
    np.testing.assert_allclose(values, expected, rtol=2e-4, atol=2e-6)
    assert np.all(values >= 0)


@every_divergence
def test_coefficients_equal_finite_differences_in_float64(name):
  _, definition = _DEFINITIONS[name]
  scores, phi = _random(8, seed=1)
  w, step = _softmax(phi), 1e-5
  numeric = np.zeros_like(scores)
  for k in range(8):
    shift = step * np.eye(8)[k]
    for b in range(len(scores)):
      numeric[b, k] = (definition(w[b], _softmax(scores[b] + shift)) - definition(
        w[b], _softmax(scores[b] - shift))) / (2 * step)
  np.testing.assert_allclose(_coefficients(name, scores, np.log(w)), numeric,
                             rtol=1e-4, atol=2e-6)


@every_divergence
@pytest.mark.parametrize('count', [1, 8, 64])
def test_coefficients_equal_autodiff(name, count):
  # Autodiff of a value divided by alpha (alpha - 1) keeps three digits fewer.
  atol = 2e-5 if name == 'alpha=0.001' else 2e-6
  scores, phi = _random(count, seed=2)
  log_target = np.log(_softmax(phi))
  gradient = _gradients(name, scores, log_target)
  np.testing.assert_allclose(_coefficients(name, scores, log_target), gradient,
                             rtol=1e-3, atol=atol)


@every_divergence
def test_coefficients_sum_to_zero_and_vanish_at_the_target(name):
  scores, phi = _random(8, seed=3)
  values = _coefficients(name, scores, np.log(_softmax(phi)))
  assert np.all(np.abs(values.sum(axis=1)) <= 1e-5 * (1 + np.abs(values).sum(axis=1)))
  assert np.abs(values).max() > 1e-3
  np.testing.assert_allclose(_coefficients(name, phi + 5, np.log(_softmax(phi))), 0,
                             atol=2e-6)


@every_divergence
def test_permuting_the_group_permutes_and_shifting_scores_changes_nothing(name):
  scores, phi = _random(8, seed=4)
  log_target = np.log(_softmax(phi))
  order = np.random.default_rng(5).permutation(8)
  expected = _coefficients(name, scores, log_target)
  permuted = _coefficients(name, scores[:, order], log_target[:, order])
  np.testing.assert_allclose(permuted, expected[:, order], rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(_coefficients(name, scores + 30, log_target), expected,
                             rtol=1e-3, atol=1e-5)


def test_names_meet_where_they_are_the_same_divergence():
  scores, phi = _random(5, seed=6, groups=1)
  arguments = scores[0], np.log(_softmax(phi[0]))
  alpha = functools.partial(simplex.alpha_divergence, *arguments)
  np.testing.assert_allclose(alpha(2), simplex.chi_square(*arguments) / 2, rtol=1e-5)
  np.testing.assert_allclose(alpha(0.5), 4 * simplex.hellinger(*arguments), rtol=1e-5)
  np.testing.assert_allclose(
    simplex.coefficients(simplex.alpha_divergence, *arguments, alpha=2),
    simplex.coefficients(simplex.chi_square, *arguments) / 2, rtol=1e-5)
  np.testing.assert_allclose(
    simplex.coefficients(lambda s, t: simplex.alpha_divergence(s, t, 0.3), *arguments),
    simplex.coefficients(simplex.alpha_divergence, *arguments, alpha=0.3), atol=1e-6)


def test_no_gradient_flows_into_the_target():
  for function, _ in _DEFINITIONS.values():
    log_target = jnp.log(jnp.array([0.5, 0.2, 0.3]))
    gradient = jax.jit(jax.grad(function, argnums=1))(jnp.arange(3.0), log_target)
    np.testing.assert_array_equal(gradient, 0)


# Extremes.


def _extremes(count):
  """Return scores of +-80 and targets of tau -> 0, equal rewards and exact zeros."""
  rng = np.random.default_rng(count)
  scores = np.stack([rng.choice([-80.0, 80.0], count), np.linspace(-80, 80, count),
                     np.zeros(count)])
  rewards = np.stack([rng.integers(0, 2, count), np.zeros(count), np.arange(count)])
  taus = jnp.array([1e-8, 0.0, 1e-8])
  log_targets = jax.vmap(simplex.gibbs_target)(rewards, taus, np.zeros_like(scores))
  zeros = jnp.where(jnp.arange(count) == 0, 0.0, -jnp.inf)
  log_targets = jnp.concatenate([log_targets, zeros[None]])
  pairs = [(s, t) for s in scores for t in log_targets]
  return tuple(jnp.stack(side) for side in zip(*pairs, strict=True))


@pytest.mark.parametrize('count', [1, 8, 64])
@pytest.mark.parametrize('name', _FINITE)
def test_extreme_groups_are_finite_in_float32(name, count):
  scores, log_targets = _extremes(count)
  values = _values(name, scores, log_targets)
  coefficients = _coefficients(name, scores, log_targets)
  assert np.all(np.isfinite(values)) and np.all(np.isfinite(coefficients))
  scale = 1 + np.abs(coefficients).sum(axis=1)
  assert np.all(np.abs(coefficients.sum(axis=1)) <= 1e-5 * scale)


@pytest.mark.parametrize('name', ['chi_square', 'alpha=-0.5', 'alpha=2.0'])
def test_divergences_that_blow_up_are_infinite_and_never_nan(name):
  scores, log_targets = _extremes(8)
  values = _values(name, scores, log_targets)
  coefficients = _coefficients(name, scores, log_targets)
  assert np.any(np.isinf(values))
  assert not np.any(np.isnan(values)) and not np.any(np.isnan(coefficients))


def test_chi_square_is_right_where_only_part_of_it_overflows():
  # w = (0, 1/2, 0, 1/2), log P = (0, -160, -77, -80): H = e^160 / 4 overflows, and
  # c_2 = P_2 H = e^83 / 4 does not.
  log_target = simplex.gibbs_target(jnp.array([0.0, 1, 0, 1]), 1e-8)
  values = simplex.coefficients(simplex.chi_square, jnp.array([80.0, -80, 3, 0]),
                                log_target)
  assert values[0] == jnp.inf and values[1] == -jnp.inf
  np.testing.assert_allclose(values[2], np.exp(83) / 4, rtol=1e-3)


# Forward KL.


def test_forward_kl_coefficients_are_p_minus_target_and_bounded():
  scores, phi = _random(12, seed=7, groups=500)
  scores, phi = 20 * scores, 20 * phi
  values = _coefficients('forward_kl', scores, np.log(_softmax(phi) + 1e-300))
  np.testing.assert_allclose(values, _softmax(scores) - _softmax(phi), atol=1e-5)
  assert np.all(np.abs(values) <= 1) and np.all(np.abs(values).sum(axis=1) <= 2 + 1e-5)


def test_forward_kl_is_optax_ranking_softmax_less_the_targets_entropy():
  scores, phi = (x.astype(np.float32) for x in _random(8, seed=8))
  w = _softmax(phi)
  cross_entropy = optax.losses.ranking_softmax_loss(
    jnp.asarray(scores), jnp.asarray(w), reduce_fn=None)
  entropy = -np.sum(w * np.log(w), axis=1)
  np.testing.assert_allclose(_values('forward_kl', scores, np.log(w)),
                             cross_entropy - entropy, atol=1e-5)


@pytest.mark.parametrize('tau', [0.3, 1.0])
def test_forward_kl_of_a_pair_is_soft_dpo(tau):
  """Eq. 55: -sigma(1/tau) log sigma(d) - sigma(-1/tau) log sigma(-d), d = s_w - s_l."""
  def sigma(x):
    return 1 / (1 + np.exp(-x))

  log_target = simplex.gibbs_target(jnp.array([1.0, 0.0]), tau)
  w = sigma(1 / tau)
  entropy = -w * np.log(w) - (1 - w) * np.log(1 - w)
  for d in (-2.0, 0.0, 0.7, 3.0):
    dpo = -w * np.log(sigma(d)) - (1 - w) * np.log(sigma(-d))
    value = simplex.forward_kl(jnp.array([d + 0.2, 0.2]), log_target)
    np.testing.assert_allclose(value, dpo - entropy, atol=1e-5)


def test_small_forward_kl_keeps_every_response_with_target_mass():
  """Corollary 2: w_k >= a and KL(w* || P) <= D imply P_k > a exp(-D/a - 1)."""
  scores, phi = _random(6, seed=9, groups=2000)
  scores = scores * 4
  w, p = _softmax(phi), _softmax(scores)
  kl = _values('forward_kl', scores, np.log(w))[:, None]
  assert np.all(p > w * np.exp(-kl / w - 1))


# Reverse KL and the policy gradient.


@pytest.mark.parametrize('rule', [simplex.temperature_constant,
                                  simplex.temperature_group_std,
                                  simplex.temperature_group_mean])
def test_reverse_kl_on_policy_is_the_policy_gradient(rule):
  """Proposition 1: c = -(R - mean) / (K tau) at s = s_t = 0."""
  rng = np.random.default_rng(10)
  for rewards in (rng.uniform(size=8), np.array([0.0, 1, 1, 0]), np.array([1.0, 0])):
    tau = float(rule(rewards))
    log_target = simplex.gibbs_target(rewards, tau)
    count = len(rewards)
    values = simplex.coefficients(simplex.reverse_kl, np.zeros(count), log_target)
    expected = -(rewards - rewards.mean()) / (count * tau)
    np.testing.assert_allclose(values, expected, atol=1e-6)


def _listwise_gap(scores, advantages):
  """Return the worst |c_k - off-policy policy gradient's|, and r_k A_k / K's size."""
  count = len(scores)
  c = -np.asarray(simplex.coefficients(simplex.reverse_kl, scores,
                                       simplex.gibbs_target(advantages, 1.0)))
  return np.abs(c - np.exp(scores) * advantages / count)


def test_reverse_kl_expands_to_first_order_as_eq_29():
  rng = np.random.default_rng(11)
  direction, count = rng.normal(size=8), 8
  rewards = rng.uniform(size=8)
  advantages = (rewards - rewards.mean()) / rewards.std()
  log_target = simplex.gibbs_target(advantages, 1.0)
  errors = []
  for size in (0.02, 0.04, 0.08):
    s = size * direction
    first_order = (advantages / count + s * advantages / count
                   - s.mean() * advantages / count - np.sum(s * advantages) / count**2
                   - (s - s.mean()) / count)
    exact = -np.asarray(simplex.coefficients(simplex.reverse_kl, s, log_target))
    errors.append(np.abs(exact - first_order).max())
  # What is left is of second order: doubling s quadruples it.
  np.testing.assert_allclose(np.divide(errors[1:], errors[:-1]), 4, rtol=0.2)


def test_off_policy_gap_to_the_policy_gradient_grows_linearly():
  """Eq. 22 to 28: the discrepancy is of order delta (1 + |A|) / K."""
  rng = np.random.default_rng(12)
  direction, rewards = rng.normal(size=8), rng.uniform(size=8)
  advantages = (rewards - rewards.mean()) / rewards.std()
  sizes = np.array([0.01, 0.02, 0.04])
  gaps = np.array([_listwise_gap(t * direction, advantages).max() for t in sizes])
  np.testing.assert_allclose(gaps[1:] / gaps[:-1], 2, rtol=0.1)
  delta = np.array([np.abs(np.exp(t * direction) - 1).max() for t in sizes])
  assert np.all(gaps <= 4 * delta * (1 + np.abs(advantages).max()) / 8)
  np.testing.assert_allclose(_listwise_gap(np.zeros(8), advantages), 0, atol=1e-6)
