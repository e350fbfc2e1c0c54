"""The baselines as published: advantage, loss, clip and aggregation of each.

`baselines` has the mathematics; this is the table that a name stands for. What a
configuration states replaces a field.
"""

from collections.abc import Callable
from typing import NamedTuple

from lpo_jax import baselines
from lpo_jax.types import Array, Group


class Method(NamedTuple):
  """A baseline as published: what `None` in the config stands for."""

  advantage: Callable[[Group], Array]
  loss: Callable[..., Array]
  coefficients: Callable[..., tuple[Array, Array]]
  clip_low: float
  clip_high: float
  aggregation: str


def _on_rewards(advantage):
  return lambda group: advantage(group.rewards)


def _reinforce_pp(group: Group) -> Array:
  return baselines.advantage_reinforce_pp(group.rewards, group.batch_std)


_GRPO = _on_rewards(baselines.advantage_grpo)
_PPO = (baselines.clipped_policy_gradient,
        baselines.clipped_policy_gradient_coefficients)
_GSPO = (baselines.gspo, baselines.gspo_coefficients)
_CISPO = (baselines.cispo, baselines.cispo_coefficients)

# arXiv ids, in order: 2402.03300, 2503.20783, 2602.02710, 2402.14740 (with PPO's clip
# for the updates after the first), 2501.03262 (with baseline), 2503.14476, 2507.18071,
# 2506.13585 (no lower bound: 1 - 1; the upper one is not printed there, here DAPO's).
METHODS = {
  'grpo': Method(_GRPO, *_PPO, 0.2, 0.2, 'seq_mean_token_mean'),
  'dr_grpo': Method(_on_rewards(baselines.advantage_dr_grpo), *_PPO, 0.2, 0.2,
                    'seq_mean_const_len'),
  'maxrl': Method(_on_rewards(baselines.advantage_maxrl), *_PPO, 0.2, 0.2,
                  'seq_mean_token_mean'),
  'rloo': Method(_on_rewards(baselines.advantage_rloo), *_PPO, 0.2, 0.2,
                 'seq_mean_token_sum'),
  'reinforce_pp': Method(_reinforce_pp, *_PPO, 0.2, 0.2, 'token_mean'),
  'dapo': Method(_GRPO, *_PPO, 0.2, 0.28, 'token_mean'),
  'gspo': Method(_GRPO, *_GSPO, 3e-4, 4e-4, 'seq_mean_token_mean'),
  'cispo': Method(_GRPO, *_CISPO, 1.0, 0.28, 'token_mean'),
}
