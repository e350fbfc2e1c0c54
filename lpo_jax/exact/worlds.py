"""Tabular policies over responses that can all be listed.

A response is a path of decisions; each decision stands at a node and takes an action.
  log pi(y | x) = sum_d log softmax(logits[x, node[y, d]])[action[y, d]]
One decision is a bandit, several contexts a contextual one, and a path through a
complete tree is a language model of that depth with a free table for its weights.

Legend: X contexts, Y responses, J nodes, A actions, depth decisions a response.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from lpo_jax.types import Array


@dataclasses.dataclass(frozen=True, eq=False)  # by identity: a constant under jit
class World:
  """What can be answered in each context, and what it earns."""

  rewards: np.ndarray  # f[X, Y]
  node: np.ndarray  # i[Y, depth], in [0, J)
  action: np.ndarray  # i[Y, depth], in [0, A)

  @property
  def shape(self) -> tuple[int, int, int]:
    """Return (X, J, A), the shape of a policy's logits."""
    return len(self.rewards), int(self.node.max()) + 1, int(self.action.max()) + 1


def contexts(rewards) -> World:
  """Return a contextual bandit; one context makes it a bandit.

  Args:
    rewards: f[X, Y].

  Raises:
    ValueError: not two dimensions, or fewer than two responses.
  """
  rewards = _checked(rewards)
  count = rewards.shape[1]
  return World(rewards, np.zeros((count, 1), int), np.arange(count)[:, None])


def tree(rewards, branching: int = 2) -> World:
  """Return a complete tree whose leaves are the responses, first decision first.

  Args:
    rewards: f[X, branching ** depth].
    branching: actions at a node.

  Raises:
    ValueError: the number of responses is no power of `branching`.
  """
  rewards = _checked(rewards)
  count, depth = rewards.shape[1], 0
  while branching > 1 and branching ** depth < count:
    depth += 1
  if branching < 2 or branching ** depth != count:
    raise ValueError(f'{count} responses are no complete tree of branching={branching}')
  leaves = np.arange(count)
  action = np.stack([leaves // branching ** (depth - 1 - d) % branching
                     for d in range(depth)], axis=1)
  # Nodes level by level: those above level d are (b^d - 1) / (b - 1).
  node = np.stack([(branching ** d - 1) // (branching - 1)
                   + leaves // branching ** (depth - d) for d in range(depth)], axis=1)
  return World(rewards, node, action)


def _checked(rewards) -> np.ndarray:
  rewards = np.asarray(rewards, float)
  if rewards.ndim != 2 or rewards.shape[1] < 2:
    raise ValueError(f'rewards of shape {rewards.shape}: give [contexts, responses], '
                     'two responses or more')
  return rewards


def log_probs(world: World, logits: Array) -> Array:
  """Return f[X, Y] log pi(y | x) of a policy.

  Args:
    world: whose responses.
    logits: f[X, J, A], see `World.shape`.
  """
  choices = jax.nn.log_softmax(logits, axis=-1)
  return jnp.sum(choices[:, world.node, world.action], axis=-1)


def represent(world: World, log_p: Array) -> Array:
  """Return the logits f[X, J, A] of the policy that is the given distribution.

  A table for every node can be any distribution: an action's logit is the log of what
  all responses through it have together.

  Args:
    world: whose responses.
    log_p: f[X, Y], normalised or not.
  """
  _, nodes, actions = world.shape

  def choice(node, action):
    passed = ((world.node == node) & (world.action == action)).any(axis=1)
    return jax.nn.logsumexp(jnp.where(passed, log_p, -jnp.inf), axis=1)

  found = [jnp.stack([choice(node, action) for action in range(actions)], axis=-1)
           for node in range(nodes)]
  return jnp.stack(found, axis=1)


def expected_reward(world: World, logits: Array) -> Array:
  """Return f[X], the mean reward in each context."""
  return jnp.sum(jnp.exp(log_probs(world, logits)) * world.rewards, axis=1)
