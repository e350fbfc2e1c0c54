"""What a response earns: named parts, weighed.

  reward = correct * c + format * f + length * l      in [0, 1]

`c` is the task's verdict in [0, 1]; `f` is 1 where the response gives an answer in the
form asked for; `l` is 1 up to a share of N tokens, falls linearly from there and is 0
at N, where responses are cut (after DAPO's overlong penalty, arXiv:2503.14476). Weights
sum to at most 1. Evaluation looks at `c` alone.
"""

import dataclasses
import math

import numpy as np

PARTS = ('correct', 'format', 'length')


@dataclasses.dataclass(frozen=True)
class Weights:
  """What the parts of a reward weigh."""

  correct: float = 1.0
  format: float = 0.0
  length: float = 0.0
  full_length: float = 0.5  # share of N up to which a response's length earns all

  def __post_init__(self):
    """Raise a ValueError, with the values, on weights that could leave [0, 1]."""
    weights = {f'task.reward.{part}': getattr(self, part) for part in PARTS}
    total = math.fsum(weights.values())
    if not all(weight >= 0 for weight in weights.values()) or not 0 < total <= 1 + 1e-9:
      said = ', '.join(f'{name}={weight}' for name, weight in weights.items())
      raise ValueError(f'{said}: weights must be at least 0 and sum to at most 1, so '
                       'that the reward lies in [0, 1], and not all be 0')
    if not 0 <= self.full_length < 1:
      raise ValueError(f'task.reward.full_length={self.full_length}: must be at least '
                       '0 and below 1')


def length_part(lengths: np.ndarray, most: int, full: float) -> np.ndarray:
  """Return what lengths earn, f32 in [0, 1].

  Args:
    lengths: i[...] tokens.
    most: N, the length at which responses are cut.
    full: share of N up to which a length earns 1.
  """
  left = (most - np.asarray(lengths)) / (most - full * most)
  return np.clip(left, 0.0, 1.0).astype(np.float32)


def total(parts: dict[str, np.ndarray], weights: Weights) -> np.ndarray:
  """Return the weighted sum f32[B, K] of parts f32[B, K] in [0, 1]."""
  found = sum(np.float32(getattr(weights, part)) * parts[part] for part in PARTS)
  return np.clip(found, 0.0, 1.0).astype(np.float32)
