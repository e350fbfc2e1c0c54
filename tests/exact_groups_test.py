"""Expectations over every group of K: chances, targets, and their limit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpo_jax.exact import groups

REWARDS = np.array([1.0, 0.0, 0.4])
LOG_P = jax.nn.log_softmax(jnp.array([-1.0, 1.0, 0.0]))
TAU = 0.7


def test_chances_are_those_of_drawing():
  listed = groups.listed(3, 4)
  assert listed.shape == (15, 4) and len(np.unique(listed, axis=0)) == 15
  chances = np.asarray(groups.chances(listed, LOG_P))
  assert chances.sum() == pytest.approx(1, abs=1e-5)
  drawn = np.sort(np.random.default_rng(0).choice(
    3, size=(40_000, 4), p=np.exp(np.asarray(LOG_P, np.float64)) /
    np.exp(np.asarray(LOG_P, np.float64)).sum()), axis=1)
  for group, chance in zip(listed, chances, strict=True):
    assert (drawn == group).all(axis=1).mean() == pytest.approx(chance, abs=0.01)


def test_a_groups_target_shares_out_by_copies():
  found = groups.targets(np.array([[0, 0, 1], [2, 2, 2]]), REWARDS, TAU)
  best = np.exp(1 / TAU)
  np.testing.assert_allclose(found[0], [2 * best / (2 * best + 1), 1 / (2 * best + 1),
                                        0], atol=1e-6)
  np.testing.assert_allclose(found[1], [0, 0, 1], atol=1e-6)


def test_the_group_target_becomes_that_of_the_full_space_as_k_grows():
  """Its bias falls like 1 / K, its spread like 1 / sqrt(K)."""
  truth = np.exp(np.asarray(LOG_P) + REWARDS / TAU)
  truth /= truth.sum()
  biases, spreads = [], []
  sizes = (1, 4, 16, 64)
  for samples in sizes:
    listed = groups.listed(3, samples)
    chances = np.asarray(groups.chances(listed, LOG_P), np.float64)
    chances /= chances.sum()
    found = np.asarray(groups.targets(listed, REWARDS, TAU), np.float64)
    biases.append(np.abs(chances @ found - truth).sum() / 2)
    spreads.append(np.sqrt(chances @ ((found - truth) ** 2).sum(axis=1)))
    if samples == 1:  # a group of one only says what was drawn
      np.testing.assert_allclose(chances @ found, np.exp(LOG_P), atol=1e-6)
  rates = np.diff(np.log([biases, spreads])) / np.diff(np.log(sizes))
  np.testing.assert_allclose(rates[0, -1], -1.0, atol=0.1)
  np.testing.assert_allclose(rates[1, -1], -0.5, atol=0.1)
  assert biases[-1] < 0.01 < biases[0]


def test_too_many_groups_are_refused():
  with pytest.raises(ValueError, match='samples=30 among responses=8 are more than'):
    groups.listed(8, 30)
