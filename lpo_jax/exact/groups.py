"""Every group of K responses at once: expectations over sampling, without sampling.

A group is a multiset of responses; with n_y copies of y its chance is multinomial and
its target puts n_y exp(R_y / tau) / sum_z n_z exp(R_z / tau) on y. As K grows that
self-normalised estimate becomes the target of the full space, pi exp(R / tau) / Z.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from lpo_jax import simplex
from lpo_jax.types import Array

MOST = 100_000  # groups that are listed


def listed(responses: int, samples: int) -> np.ndarray:
  """Return every group of K samples among Y responses, i[groups, K], each ascending.

  Args:
    responses: Y.
    samples: K.

  Raises:
    ValueError: there are more than MOST.
  """
  count = math.comb(responses + samples - 1, samples)
  if count > MOST:
    raise ValueError(f'{count} groups of samples={samples} among responses={responses} '
                     f'are more than {MOST}: take fewer')
  return np.array(list(itertools.combinations_with_replacement(
    range(responses), samples)))


def chances(groups: np.ndarray, log_p: Array) -> Array:
  """Return f[groups], the probability of drawing each group from a distribution.

  Args:
    groups: i[groups, K] of `listed`.
    log_p: f[Y].
  """
  counts = np.stack([(groups == y).sum(axis=1) for y in range(len(log_p))], axis=1)
  log_orders = jax.scipy.special.gammaln(groups.shape[1] + 1.0) - jnp.sum(
    jax.scipy.special.gammaln(counts + 1.0), axis=1)
  return jnp.exp(log_orders + jnp.sum(log_p[groups], axis=1))


def spread(groups: np.ndarray, weights: Array, responses: int) -> Array:
  """Return f[groups, Y], what each group's weights f[groups, K] put where."""
  return jnp.sum(jax.nn.one_hot(groups, responses) * weights[..., None], axis=1)


def targets(groups: np.ndarray, rewards: Array, temperature: Array) -> Array:
  """Return f[groups, Y], each group's target w* as a distribution over responses.

  Args:
    groups: i[groups, K] of `listed`.
    rewards: f[Y].
    temperature: f[] tau.
  """
  rewards = jnp.asarray(rewards, float)
  log_targets = jax.vmap(lambda values: simplex.gibbs_target(values, temperature))(
    rewards[groups])
  return spread(groups, jnp.exp(log_targets), len(rewards))
