"""A number that moves over a run: temperatures, mixtures of divergences.

A function of the iteration alone, by optax, so that a resumed run has the same values.
It is checked when it is built; under jit it is a constant where it does not move.
"""

import dataclasses
import math

import jax.numpy as jnp
import optax

from lpo_jax.types import Array

SHAPES = ('linear', 'cosine')


@dataclasses.dataclass(frozen=True)
class Schedule:
  """From `start` at the first iteration to `end` after `steps`, and there from then on.
  """

  start: float
  end: float | None = None  # None: it does not move
  steps: int = 0  # iterations
  shape: str = 'linear'

  def check(self, name: str, low: float, high: float = math.inf) -> None:
    """Raise a ValueError unless all values it takes lie in [low, high].

    Args:
      name: the field's, for the message.
      low: least allowed value.
      high: largest; infinity itself is never allowed.
    """
    for value in (self.start, *([] if self.end is None else [self.end])):
      if not (low <= value <= high and math.isfinite(value)):
        raise ValueError(f'{name}={value}: must lie between {low} and {high}')
    if self.shape not in SHAPES:
      raise ValueError(f'schedule={self.shape!r}: choose one of {", ".join(SHAPES)}')
    if (self.end is None) != (self.steps == 0) or self.steps < 0:
      raise ValueError(
        f'{name} goes from {self.start} to {self.end} in schedule_steps={self.steps}: '
        'give both an end and a positive number of iterations, or neither')

  def __call__(self, step: Array) -> Array:
    """Return its value f32[] at an iteration, i32[] from 0."""
    if self.end is None:
      return jnp.asarray(self.start, jnp.float32)
    if self.shape == 'linear':
      return optax.linear_schedule(self.start, self.end, self.steps)(step)
    passed = 1.0 - optax.cosine_decay_schedule(1.0, self.steps)(step)
    return self.start + (self.end - self.start) * passed
