"""Gradient transformation and learning-rate schedule, from optax.

AdamW behind a global-norm clip. Decay acts on matrices only: norms and biases are
named, not guessed from their rank, because stacked layers raise every rank by one.
A vision tower takes its own multiple of the learning rate.
Moments and weights in bfloat16 are computed in float32 and rounded stochastically, up
or down with probabilities that make the mean exact: rounded to nearest, a step of 1e-6
would never move a weight of 0.02, nor a decay of 0.999 a moment.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

SCHEDULES = ('constant', 'cosine', 'linear')
MOMENT_DTYPES = ('float32', 'bfloat16')
_MOMENTS, _WEIGHTS = 0, 1  # streams of rounding


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
  moment_dtype: str = 'float32'
  weight_decay: float = 0.1
  clip_norm: float | None = 1.0
  vision_multiplier: float = 1.0  # of the learning rate, for a vision tower

  def __post_init__(self):
    if self.schedule not in SCHEDULES:
      raise ValueError(f'optimizer.schedule={self.schedule!r}: choose one of '
                       f'{", ".join(SCHEDULES)}')
    if self.schedule != 'constant' and self.decay_steps <= self.warmup_steps:
      raise ValueError(
        f'optimizer.schedule={self.schedule!r} needs decay_steps={self.decay_steps} '
        f'above warmup_steps={self.warmup_steps}'
      )
    if self.moment_dtype not in MOMENT_DTYPES:
      raise ValueError(f'optimizer.moment_dtype={self.moment_dtype!r}: choose one of '
                       f'{", ".join(MOMENT_DTYPES)}')
    if self.vision_multiplier < 0:
      raise ValueError(f'optimizer.vision_multiplier={self.vision_multiplier}: must be '
                       'at least 0')
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
  adamw = _with_moments_in(adamw, jnp.dtype(config.moment_dtype))
  if config.vision_multiplier != 1:
    adamw = optax.chain(adamw, _scaled_vision(config.vision_multiplier))
  if config.clip_norm is None:
    return adamw
  return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)


def decays(params):
  """Return a tree of bools, True where weight decay acts: all but norms and biases."""
  def leaf(path, _):
    name = jax.tree_util.keystr(path)
    return 'norm' not in name and 'bias' not in name

  return jax.tree_util.tree_map_with_path(leaf, params)


def _scaled_vision(multiplier: float) -> optax.GradientTransformation:
  """Multiply the updates of a policy's vision tower."""
  def leaf(path, update):
    inside = getattr(path[0], 'name', None) == 'vision'
    return update * multiplier if inside else update

  return optax.stateless(
    lambda updates, _: jax.tree_util.tree_map_with_path(leaf, updates))


def apply_updates(params, updates, count):
  """Return params + updates in the dtype of each; bfloat16 is rounded stochastically.

  Args:
    params: a pytree.
    updates: likewise.
    count: i32[], decides the rounding: the optimiser's update count.
  """
  added = jax.tree.map(lambda p, u: p.astype(jnp.float32) + u.astype(jnp.float32),
                       params, updates)
  return _rounded(added, params, jax.random.fold_in(jax.random.key(_WEIGHTS), count))


def _with_moments_in(transform, dtype) -> optax.GradientTransformation:
  """Return Adam that keeps both moments in `dtype` and computes in float32."""
  def moments(state):
    return tuple(optax.tree_utils.tree_get(state, name) for name in ('mu', 'nu'))

  def replace(state, mu, nu):
    return optax.tree_utils.tree_set(state, mu=mu, nu=nu)

  def cast(tree, dtype):
    return jax.tree.map(lambda x: x.astype(dtype), tree)

  def init(params):
    state = transform.init(params)
    return replace(state, *cast(moments(state), dtype))

  def update(grads, state, params=None):
    before = moments(state)
    count = optax.tree_utils.tree_get_all_with_path(state, 'count')[0][1]
    updates, state = transform.update(
      cast(grads, jnp.float32), replace(state, *cast(before, jnp.float32)), params)
    key = jax.random.fold_in(jax.random.key(_MOMENTS), count)
    return updates, replace(state, *_rounded(moments(state), before, key))

  return optax.GradientTransformation(init, update)


def _rounded(tree, like, key):
  """Return the float32 leaves of `tree` in the dtypes of those of `like`."""
  leaves, structure = jax.tree.flatten(tree)
  dtypes = [leaf.dtype for leaf in jax.tree.leaves(like)]
  return jax.tree.unflatten(structure, [
    _stochastic(leaf, jax.random.fold_in(key, i)) if dtype == jnp.bfloat16
    else leaf.astype(dtype) for i, (leaf, dtype) in enumerate(zip(leaves, dtypes,
                                                                  strict=True))])


def _stochastic(x, key):
  """Round float32 to bfloat16, up or down so that the mean is x.

  A bfloat16 is the upper half of a float32: add random bits to the lower half and cut
  it. What is not finite is rounded as usual.
  """
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
  cut = jax.lax.bitcast_convert_type((bits + noise) & jnp.uint32(0xFFFF0000),
                                     jnp.float32)
  return jnp.where(jnp.isfinite(x), cut, x).astype(jnp.bfloat16)
