"""Tabular worlds: paths, probabilities, and tables that are any distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpo_jax.exact import worlds

RNG = np.random.default_rng(0)


def random_logits(world, scale=1.0):
  return jnp.asarray(scale * RNG.normal(size=world.shape), jnp.float32)


def all_worlds():
  return {
    'bandit': worlds.contexts(RNG.uniform(size=(1, 5))),
    'contexts': worlds.contexts(RNG.uniform(size=(4, 3))),
    'tree': worlds.tree(RNG.uniform(size=(2, 64))),
    'ternary': worlds.tree(RNG.uniform(size=(1, 27)), branching=3),
  }


@pytest.mark.parametrize('name', all_worlds())
def test_a_responses_probability_is_the_product_along_its_path(name):
  world = all_worlds()[name]
  logits = np.asarray(random_logits(world), np.float64)
  expected = np.zeros(world.rewards.shape)
  for x, table in enumerate(logits):
    for y, path in enumerate(zip(world.node, world.action, strict=True)):
      for node, action in zip(*path, strict=True):
        expected[x, y] += table[node, action] - np.log(np.exp(table[node]).sum())
  found = worlds.log_probs(world, jnp.asarray(logits))
  np.testing.assert_allclose(found, expected, atol=1e-5)
  np.testing.assert_allclose(np.exp(expected).sum(axis=1), 1, atol=1e-12)


@pytest.mark.parametrize('name', all_worlds())
def test_a_table_represents_any_distribution(name):
  world = all_worlds()[name]
  log_p = jax.nn.log_softmax(
    jnp.asarray(3 * RNG.normal(size=world.rewards.shape), jnp.float32), axis=1)
  logits = worlds.represent(world, log_p + 2.0)  # normalised or not
  assert logits.shape == world.shape
  np.testing.assert_allclose(worlds.log_probs(world, logits), log_p, atol=2e-5)


def test_a_binary_tree_of_64_responses_is_six_decisions_deep():
  world = worlds.tree(np.zeros((1, 64)))
  assert world.node.shape == (64, 6) and world.shape == (1, 63, 2)
  assert world.node[0].tolist() == [0, 1, 3, 7, 15, 31]
  assert world.node[63].tolist() == [0, 2, 6, 14, 30, 62]
  # Two responses share the nodes of their common decisions, and one more.
  for one in range(64):
    for two in range(64):
      shared = 0
      while shared < 6 and world.action[one, shared] == world.action[two, shared]:
        shared += 1
      same = world.node[one] == world.node[two]
      assert same.sum() == min(shared + 1, 6) and same[:shared + 1].all()


def test_expected_reward_is_the_sum_over_all_responses():
  world = all_worlds()['contexts']
  logits = random_logits(world)
  p = np.exp(np.asarray(logits[:, 0], np.float64))
  expected = (p * world.rewards).sum(axis=1) / p.sum(axis=1)
  np.testing.assert_allclose(worlds.expected_reward(world, logits), expected, rtol=1e-5)


def test_rewards_that_make_no_world_are_named():
  with pytest.raises(ValueError, match=r'shape \(3,\): give \[contexts, responses\]'):
    worlds.contexts(np.zeros(3))
  with pytest.raises(ValueError, match='6 responses are no complete tree of branch'):
    worlds.tree(np.zeros((1, 6)))
  with pytest.raises(ValueError, match='branching=1'):
    worlds.tree(np.zeros((1, 4)), branching=1)
