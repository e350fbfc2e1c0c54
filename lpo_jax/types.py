"""The nouns that flow through the house, and the axis legend, once.

Axis legend, used in every docstring:
  B prompts      K responses per prompt   P prompt width   N response width
  T = P + N      V vocabulary             D model width    H heads
  L layers       S cached positions

Index t always means the token at t: `logprobs[..., t]` is the log-probability of
`response[..., t]`. The one shift between a model's outputs and the tokens they
predict lives in `sequence.py`.
"""

from typing import Any

import jax
from flax import struct

from lpo_jax.problem import Prefix as Prefix
from lpo_jax.problem import Problem as Problem  # one of the nouns, without jax

Array = jax.Array


@struct.dataclass
class Images:
  """Images of B prompts, one after the other in a row: patches, or what they became."""

  grid: Array  # i32[B, I, 3] frames, rows, columns of each, in patches; 0 for none
  patches: Array | None = None  # f32[B, M, patch_dim], until they are encoded
  features: Array | None = None  # [B, F, D], a vector for each image token


@struct.dataclass
class Rollouts:
  """K responses to each of B prompts, as sampled."""

  prompt: Array  # i32[B, P], left-padded
  prompt_mask: Array  # bool[B, P]
  response: Array  # i32[B, K, N], right-padded
  response_mask: Array  # bool[B, K, N]: sampled tokens, the stop token included
  logprobs: Array  # f32[B, K, N] under pi_b, the distribution sampled from; 0 off mask
  images: Images | None = None  # of the prompts


@struct.dataclass
class Responses:
  """What of Rollouts cannot be had again without pi_b."""

  tokens: Array  # i32[B, K, N]
  mask: Array  # bool[B, K, N]
  logprobs: Array  # f32[B, K, N]


@struct.dataclass
class Groups:
  """Verified rollouts: what one update learns from."""

  rollouts: Rollouts
  rewards: Array  # f32[B, K] in [0, 1]
  anchor_scores: Array  # f32[B, K]: s_t = log pi_t - log pi_b; 0 when pi_t = pi_b
  keep: Array  # bool[B]: groups that count
  age: Array | None = None  # i32[B]: iterations since pi_b was pi_t; None: all none


@struct.dataclass
class Group:
  """What an objective sees of one prompt: K responses, and what the batch shares."""

  logprobs: Array  # f32[K, N] under pi_theta, now
  behavior_logprobs: Array  # f32[K, N] under pi_b, fixed
  mask: Array  # bool[K, N]
  rewards: Array  # f32[K]
  anchor_scores: Array  # f32[K]
  batch_mean: Array  # f32[]: mean reward over the whole batch
  batch_std: Array  # f32[]: std of the group-centred rewards over the whole batch
  step: Array  # i32[]: finished iterations, for what is scheduled


@struct.dataclass
class Mean:
  """A mean that stays exact under unequal masks, microbatches and devices."""

  total: Array  # f32[]
  count: Array  # f32[]

  def __add__(self, other: 'Mean') -> 'Mean':
    return Mean(self.total + other.total, self.count + other.count)

  def __float__(self) -> float:
    """Return total / count; NaN when nothing was counted."""
    count = float(self.count)
    return float(self.total) / count if count else float('nan')


@struct.dataclass
class Coefficients:
  """An objective's answer for one group: sum_{k,i} values[k,i] grad log pi(y_{k,i})."""

  values: Array  # f32[K, N], zero off mask
  loss: Array  # f32[]: the objective's value, for the log only
  metrics: dict  # str -> Mean


@struct.dataclass
class TrainState:
  """Everything a resumed run needs, besides (seed, step)."""

  step: Array  # i32[]: finished iterations
  params: Any  # the policy, a pytree
  opt_state: Any  # of what is trained of it: see policy/lora.py
  skipped: Array  # i32[]: updates skipped in a row for a non-finite gradient
  data: Any = None  # in checkpoints: what batches to come are made of, see supply.py
