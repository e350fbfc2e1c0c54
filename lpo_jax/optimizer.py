"""Gradient transformation and learning-rate schedule, from optax.

AdamW behind a global-norm clip. Decay acts on matrices only: norms and biases are
named, not guessed from their rank, because stacked layers raise every rank by one.
"""

import dataclasses

import jax
import optax

SCHEDULES = ('constant', 'cosine', 'linear')


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """AdamW and its learning-rate schedule; steps count optimiser updates."""

  learning_rate: float = 1e-6
  warmup_steps: int = 0
  schedule: str = 'constant'
  decay_steps: int = 0  # updates over which cosine and linear fall
  final_fraction: float = 0.1  # of learning_rate, at the end of the decay
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8
  weight_decay: float = 0.1
  clip_norm: float | None = 1.0

  def __post_init__(self):
    if self.schedule not in SCHEDULES:
      raise ValueError(f'optimizer.schedule={self.schedule!r}: choose one of '
                       f'{", ".join(SCHEDULES)}')
    if self.schedule != 'constant' and self.decay_steps <= self.warmup_steps:
      raise ValueError(
        f'optimizer.schedule={self.schedule!r} needs decay_steps={self.decay_steps} '
        f'above warmup_steps={self.warmup_steps}'
      )
    if not self.learning_rate > 0:
      raise ValueError(f'optimizer.learning_rate={self.learning_rate}: must be > 0')


def schedule(config: OptimizerConfig) -> optax.Schedule:
  """Return the learning rate as a function of the update count."""
  peak, end = config.learning_rate, config.learning_rate * config.final_fraction
  steps = config.decay_steps - config.warmup_steps
  after = {
    'constant': lambda: optax.constant_schedule(peak),
    'cosine': lambda: optax.cosine_decay_schedule(peak, steps, config.final_fraction),
    'linear': lambda: optax.linear_schedule(peak, end, steps),
  }[config.schedule]()
  if not config.warmup_steps:
    return after
  # The first update already moves: the ramp is 1/w, 2/w, ..., 1.
  ramp = optax.linear_schedule(peak / config.warmup_steps, peak,
                               max(config.warmup_steps - 1, 1))
  return optax.join_schedules([ramp, after], [config.warmup_steps])


def build(config: OptimizerConfig) -> optax.GradientTransformation:
  """Return clip-by-global-norm, then AdamW with decay on matrices only."""
  adamw = optax.adamw(schedule(config), b1=config.b1, b2=config.b2, eps=config.eps,
                      weight_decay=config.weight_decay, mask=decays)
  if config.clip_norm is None:
    return adamw
  return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)


def decays(params):
  """Return a tree of bools, True where weight decay acts: all but norms and biases."""
  def leaf(path, _):
    name = jax.tree_util.keystr(path)
    return 'norm' not in name and 'bias' not in name

  return jax.tree_util.tree_map_with_path(leaf, params)
