"""Proximal steps without sampling, and what a gradient makes of them.

  w*_t = argmax_w <w, R> - tau KL(w || pi_t) = pi_t exp(R / tau) / Z
  pi_{t+1} = w*_t for every t   =>   pi_t = pi_0 exp(t R / tau) / Z_t
                                     (arXiv:2605.06139, Theorem 1 and Proposition 2)

On the full space a response's score is log pi itself: it differs from the log-ratio to
any fixed distribution by what the target has in it as well.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from lpo_jax import simplex
from lpo_jax.exact import worlds
from lpo_jax.types import Array


def targets(world: worlds.World, logits: Array, temperature: Array) -> Array:
  """Return f[X, Y] log w*, the best distribution near the policy in each context.

  Args:
    world: what is earned.
    logits: f[X, J, A] of the policy.
    temperature: f[] tau.
  """
  return jax.vmap(lambda rewards, scores: simplex.gibbs_target(
    rewards, temperature, scores))(jnp.asarray(world.rewards, float),
                                   worlds.log_probs(world, logits))


@functools.partial(jax.jit, static_argnames='world')
def project(world: worlds.World, logits: Array, temperature: Array) -> Array:
  """Return the logits of the policy that is the target: one exact update."""
  return worlds.represent(world, targets(world, logits, temperature))


def after(world: worlds.World, logits: Array, temperature: Array, steps: int) -> Array:
  """Return f[X, Y] log pi_t in closed form: log pi_0 + t R / tau, normalised."""
  tilt = steps * jnp.asarray(world.rewards, float) / temperature
  return jax.nn.log_softmax(worlds.log_probs(world, logits) + tilt, axis=1)


@functools.partial(jax.jit, static_argnames=('world', 'divergence', 'steps'))
def descend(world: worlds.World, logits: Array, log_target: Array,
            divergence: Callable[[Array, Array], Array], learning_rate: float,
            steps: int) -> tuple[Array, Array]:
  """Follow the exact gradient of a divergence to a fixed target.

  Args:
    world: whose responses.
    logits: f[X, J, A] to start from.
    log_target: f[X, Y] log w*.
    divergence: of `simplex`, (scores f[Y], log_target f[Y]) -> f[].
    learning_rate: of plain gradient descent.
    steps: of it.

  Returns:
    The logits after, and f[steps + 1] the divergence, summed over contexts, before
    each step and after the last.
  """
  def loss(logits):
    return jnp.sum(jax.vmap(divergence)(worlds.log_probs(world, logits), log_target))

  def step(logits, _):
    value, gradient = jax.value_and_grad(loss)(logits)
    return logits - learning_rate * gradient, value

  logits, values = jax.lax.scan(step, logits, length=steps)
  return logits, jnp.append(values, loss(logits))


def policy_gradient(world: worlds.World, logits: Array) -> Array:
  """Return the exact gradient f[X, J, A] of the mean reward over all contexts."""
  return jax.grad(lambda logits: jnp.mean(worlds.expected_reward(world, logits)))(
    logits)
