"""The simplex spanned by one group's K responses.

  P = softmax(s)                                (arXiv:2605.06139, Eq. 4)
  dL/ds_k = P_k (g_k - <P, g>),  g = dL/dP      (Eq. 58, 59)

Distributions travel as logarithms, so that a probability too small for float32 keeps
its place in the gradient.
"""

import chex
import jax
import jax.numpy as jnp

from lpo_jax.types import Array


def group_vector(values) -> Array:
  """Return anything array-like as f32[K] (f64[K] where JAX is set to x64), K >= 1.

  Raises:
    AssertionError: if it is not one group's vector of at least one entry.
  """
  values = jnp.asarray(values, float)
  chex.assert_rank(values, 1)
  chex.assert_axis_dimension_gt(values, 0, 0)
  return values


def is_flat(rewards: Array) -> Array:
  """Return bool[]: all K rewards are equal, so the group ranks nothing.

  Args:
    rewards: f32[K].
  """
  rewards = group_vector(rewards)
  return jnp.all(rewards == rewards[0])


def log_policy(scores: Array) -> Array:
  """Return f32[K] log P, P = softmax(scores): uniform where all scores are equal.

  Args:
    scores: f32[K] sequence log-ratios in nats.
  """
  return jax.nn.log_softmax(group_vector(scores))


def entropy(log_p: Array) -> Array:
  """Return the entropy f32[] of P in nats, between 0 and log K.

  Args:
    log_p: f32[K] log P.
  """
  log_p = group_vector(log_p)
  p = jnp.exp(log_p)
  return -jnp.sum(p * jnp.where(p > 0, log_p, 0.0))


def effective_sample_size(log_p: Array) -> Array:
  """Return 1 / sum P^2 f32[], between 1 (one response has it all) and K (uniform).

  Args:
    log_p: f32[K] log P.
  """
  return jnp.exp(-jax.nn.logsumexp(2 * group_vector(log_p)))


def total_variation(log_p: Array, log_q: Array) -> Array:
  """Return TV(P, Q) = (1/2) sum |P - Q| f32[], between 0 and 1.

  Args:
    log_p: f32[K] log P.
    log_q: f32[K] log Q.
  """
  log_p, log_q = group_vector(log_p), group_vector(log_q)
  chex.assert_equal_shape([log_p, log_q])
  return 0.5 * jnp.sum(jnp.abs(jnp.exp(log_p) - jnp.exp(log_q)))


def zero_sum(log_p: Array, derivative: Array) -> Array:
  """Return dL/ds from dL/dP: P_k (g_k - <P, g>), which sums to zero.

  Summed as sum_m P_k P_m (g_k - g_m): antisymmetric term by term, so a g of 1e8 on a
  response of probability 1e-9 neither vanishes nor breaks the zero sum, as it would
  once <P, g> is rounded.

  Args:
    log_p: f32[K] log P.
    derivative: f32[K] g = dL/dP, up to a common constant; finite.

  Returns:
    f32[K] coefficients dL/ds (arXiv:2605.06139, Eq. 58).
  """
  log_p, derivative = group_vector(log_p), group_vector(derivative)
  chex.assert_equal_shape([log_p, derivative])
  p = jnp.exp(log_p)
  differences = derivative[:, None] - derivative[None, :]
  return jnp.sum(p[:, None] * p[None, :] * differences, axis=1)
