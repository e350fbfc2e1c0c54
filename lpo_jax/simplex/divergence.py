"""Projections of the policy P = softmax(s) onto the target w*, with their gradients.

Every divergence here is sum_k P_k f(w_k / P_k), and its gradient in the scores is
dL/ds_k = P_k (g_k - <P, g>), g = dL/dP (arXiv:2605.06139, Eq. 10, 11, 58, 59):
P - w* for forward KL, P (d - <P, d>) with d = log P - log w* for reverse KL.

Everything is computed from logarithms. Scores of +-80 and log targets of -1e8 are
finite, except chi_square and alpha_divergence with alpha outside [0, 1]: these truly
exceed float32 on such groups, and are then infinite, never NaN.
"""

import functools
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from lpo_jax.simplex import geometry
from lpo_jax.types import Array

# A target probability of exactly 0 is read as e^-1e30: 0 in any float, its log finite.
_LOWEST_LOG = -1e30


def forward_kl(scores: Array, log_target: Array) -> Array:
  """Return KL(w* || P) f32[] in nats for one group: mode-covering.

  Its gradient in `scores` is P - w*: bounded, zero-sum, zero exactly at the target
  (arXiv:2605.06139, Eq. 10, Corollary 1).

  Args:
    scores: f32[K] sequence log-ratios.
    log_target: f32[K] log w*; no gradient flows into it.
  """
  log_p, log_w = _pair(scores, log_target)
  return _kl(log_w, log_p)


def reverse_kl(scores: Array, log_target: Array) -> Array:
  """Return KL(P || w*) f32[] in nats for one group: mode-seeking.

  On-policy its gradient is the policy gradient's, -(R - mean) / (K tau)
  (arXiv:2605.06139, Eq. 11, Proposition 1).

  Args:
    scores: f32[K] sequence log-ratios.
    log_target: f32[K] log w*; no gradient flows into it.
  """
  log_p, log_w = _pair(scores, log_target)
  return _kl(log_p, log_w)


def jeffreys(scores: Array, log_target: Array) -> Array:
  """Return KL(w* || P) + KL(P || w*) f32[] for scores and log_target f32[K]."""
  log_p, log_w = _pair(scores, log_target)
  return _kl(log_w, log_p) + _kl(log_p, log_w)


def jensen_shannon(scores: Array, log_target: Array) -> Array:
  """Return (KL(w* || M) + KL(P || M)) / 2 f32[], M = (w* + P) / 2, at most log 2.

  Args:
    scores: f32[K] sequence log-ratios.
    log_target: f32[K] log w*; no gradient flows into it.
  """
  log_p, log_w = _pair(scores, log_target)
  log_middle = jnp.logaddexp(log_p, log_w) - jnp.log(2.0)
  return 0.5 * (_kl(log_w, log_middle) + _kl(log_p, log_middle))


def chi_square(scores: Array, log_target: Array) -> Array:
  """Return sum (w* - P)^2 / P f32[]: infinite once it exceeds float32.

  Args:
    scores: f32[K] sequence log-ratios.
    log_target: f32[K] log w*; no gradient flows into it.
  """
  log_p, log_w = _pair(scores, log_target)
  near, ratio = _log_ratio(log_w, log_p)
  close = jnp.exp(log_p) * jnp.square(jnp.expm1(ratio))
  far = jnp.exp(2 * log_w - log_p) - 2 * jnp.exp(log_w) + jnp.exp(log_p)
  return jnp.sum(jnp.where(near, close, far))


def hellinger(scores: Array, log_target: Array) -> Array:
  """Return (1/2) sum (sqrt w* - sqrt P)^2 f32[], at most 1.

  Args:
    scores: f32[K] sequence log-ratios.
    log_target: f32[K] log w*; no gradient flows into it.
  """
  log_p, log_w = _pair(scores, log_target)
  return 0.5 * jnp.sum(jnp.square(jnp.exp(0.5 * log_w) - jnp.exp(0.5 * log_p)))


def alpha_divergence(scores: Array, log_target: Array, alpha: float) -> Array:
  """Return (sum w*^a P^(1-a) - 1) / (a (a - 1)) f32[].

  Its limits are taken at their places: reverse KL at alpha = 0, forward KL at 1. Half
  of chi_square at 2, four times hellinger at 1/2.

  Args:
    scores: f32[K] sequence log-ratios.
    log_target: f32[K] log w*; no gradient flows into it.
    alpha: a Python number. Outside [0, 1] the value is infinite once it exceeds
      float32.
  """
  if alpha == 0:
    return reverse_kl(scores, log_target)
  if alpha == 1:
    return forward_kl(scores, log_target)
  log_p, log_w = _pair(scores, log_target)
  # sum w^a P^(1-a) - 1, written around whichever limit is nearer so that it cancels
  # before it is divided by a (a - 1).
  power, log_base, log_other = (
    (alpha, log_p, log_w) if alpha < 0.5 else (1 - alpha, log_w, log_p))
  tilted = power * log_other + (1 - power) * log_base
  terms = _difference(tilted, log_base) - power * _difference(log_other, log_base)
  return jnp.sum(terms) / (alpha * (alpha - 1))


def coefficients(divergence: Callable[..., Array], scores: Array, log_target: Array,
                 **parameters) -> Array:
  """Return dL/ds f32[K], in closed form, of a divergence of this module.

  Args:
    divergence: a function of this module, or functools.partial of one, for example
      `functools.partial(alpha_divergence, alpha=0.3)`. Any other function of (scores,
      log_target) is differentiated.
    scores: f32[K] sequence log-ratios.
    log_target: f32[K] log w*.
    **parameters: what the divergence takes besides, such as `alpha`.

  Returns:
    f32[K], zero-sum. Forward KL's are P - w*: at most 1 each, and 2 in sum of
    absolutes.
  """
  log_p, log_w = _pair(scores, log_target)
  function = divergence
  if isinstance(divergence, functools.partial) and not divergence.args:
    function, parameters = divergence.func, {**divergence.keywords, **parameters}
  if function in _COEFFICIENTS:
    return _COEFFICIENTS[function](log_p, log_w, **parameters)
  return jax.grad(divergence)(geometry.group_vector(scores), log_w, **parameters)


def _forward_coefficients(log_p: Array, log_w: Array) -> Array:
  return jnp.exp(log_p) - jnp.exp(log_w)


def _reverse_coefficients(log_p: Array, log_w: Array) -> Array:
  return geometry.zero_sum(log_p, log_p - log_w)


def _jeffreys_coefficients(log_p: Array, log_w: Array) -> Array:
  return _forward_coefficients(log_p, log_w) + _reverse_coefficients(log_p, log_w)


def _jensen_shannon_coefficients(log_p: Array, log_w: Array) -> Array:
  # g = (1/2) log(P / M) = (log 2 - log(1 + w/P)) / 2
  return geometry.zero_sum(log_p, -0.5 * jax.nn.softplus(log_w - log_p))


def _power_coefficients(log_p: Array, log_w: Array, power: float,
                        scale: float) -> Array:
  """Return P_k (g_k - <P, g>) for g = -scale (w / P)^power.

  That is scale (P_k H - h_k), h = w^power P^(1 - power), H = sum h: a difference of
  two exponentials, taken in logarithms so that only a true overflow overflows. Their
  gap is summed from differences of ratios: log w may be -1e8, where log P is lost.
  """
  tilt = power * (log_w - log_p)
  log_total = jax.nn.logsumexp(log_p + tilt)
  relative = tilt[None, :] - tilt[:, None]  # [k, m]
  near = jnp.all(jnp.abs(relative) < 1, axis=1)
  tilted = jnp.expm1(jnp.clip(relative, -1.0, 1.0))
  close = jnp.sum(jnp.exp(log_p)[None, :] * tilted, axis=1)
  far = jax.nn.logsumexp(log_p[None, :] + relative, axis=1)
  gap = jnp.where(near, jnp.log1p(close), far)  # log(P_k H) - log h_k
  log_one_minus = jnp.log(-jnp.expm1(-jnp.abs(gap)))  # -inf at gap 0: coefficient 0
  larger = log_p + jnp.where(gap > 0, log_total, tilt)
  return scale * jnp.sign(gap) * jnp.exp(larger + log_one_minus)


def _alpha_coefficients(log_p: Array, log_w: Array, alpha: float) -> Array:
  if alpha == 0:
    return _reverse_coefficients(log_p, log_w)
  return _power_coefficients(log_p, log_w, power=alpha, scale=1 / alpha)


# Which coefficients dL/ds(log P, log w*, parameters) belong to which divergence.
_COEFFICIENTS = {
  forward_kl: _forward_coefficients,
  reverse_kl: _reverse_coefficients,
  jeffreys: _jeffreys_coefficients,
  jensen_shannon: _jensen_shannon_coefficients,
  chi_square: functools.partial(_power_coefficients, power=2.0, scale=1.0),
  hellinger: functools.partial(_power_coefficients, power=0.5, scale=0.5),
  alpha_divergence: _alpha_coefficients,
}


def _pair(scores: Array, log_target: Array) -> tuple[Array, Array]:
  """Return log P and log w*, f32[K] each, the latter floored and held fixed."""
  log_p, log_w = geometry.log_policy(scores), geometry.group_vector(log_target)
  chex.assert_equal_shape([log_p, log_w])
  return log_p, jax.lax.stop_gradient(jnp.maximum(log_w, _LOWEST_LOG))


def _log_ratio(log_a: Array, log_b: Array) -> tuple[Array, Array]:
  """Return where a / b is within e of 1, and log(a / b), kept to +-1 elsewhere."""
  ratio = log_a - log_b
  return jnp.abs(ratio) < 1, jnp.clip(ratio, -1.0, 1.0)


def _difference(log_a: Array, log_b: Array) -> Array:
  """Return a - b, which does not cancel where a is near b."""
  near, ratio = _log_ratio(log_a, log_b)
  b = jnp.exp(log_b)
  return jnp.where(near, b * jnp.expm1(ratio), jnp.exp(log_a) - b)


def _kl(log_a: Array, log_b: Array) -> Array:
  """Return sum a log(a / b) - a + b: KL(a || b), each term at least 0.

  Near a = b a term is a (e^r - 1 - r), r = log(b / a), which does not cancel.
  """
  a, b = jnp.exp(log_a), jnp.exp(log_b)
  near, ratio = _log_ratio(log_b, log_a)
  close = a * (jnp.expm1(ratio) - ratio)
  far = a * (log_a - log_b) - a + b
  return jnp.sum(jnp.where(near, close, far))
