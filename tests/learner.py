"""Tiny batches, the update as a program, and the written loss's gradient beside it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lpo_jax import objective, optimizer, update
from lpo_jax.microbatch import UpdateConfig
from lpo_jax.types import Groups, TrainState
from tests import tiny

SAMPLES, WIDTH, VOCAB = 4, 5, 14
OPTIMIZER = optimizer.OptimizerConfig(learning_rate=0.02, warmup_steps=3, eps=1e-3)

# What is compiled here runs once: several times less time for the compiler.
jit = functools.partial(jax.jit, compiler_options={
  'xla_backend_optimization_level': 0, 'xla_cpu_use_fusion_emitters': False})


@functools.cache
def _drawn(distance):
  rng = np.random.default_rng(7)
  return jax.tree.map(
    lambda x: x + distance * jnp.asarray(rng.normal(size=x.shape), x.dtype),
    tiny.policy(vocab_size=VOCAB))


def policy(distance: float = 0.0):
  """Return a copy of the tiny policy, or of one at some distance from it."""
  return jax.tree.map(lambda x: x, _drawn(distance))


def groups(size: int, seed: int = 0, exact: bool = True) -> Groups:
  """Return verified rollouts; their record is exact for `policy()`, or else noise."""
  rng = np.random.default_rng(seed + 5)
  lengths = tuple(int(n) for n in rng.integers(1, 7, size=size))
  rollouts = tiny.rollouts(lengths, SAMPLES, WIDTH, VOCAB, seed)
  if exact:
    rollouts = rollouts.replace(logprobs=np.asarray(logprobs(policy(), rollouts)))
  rewards = rng.uniform(size=(size, SAMPLES)).astype(np.float32)
  return Groups(rollouts, rewards, np.zeros_like(rewards), np.ones(size, bool))


def rows(tree, which):
  """Return some rows of every array."""
  return jax.tree.map(lambda x: np.asarray(x)[which], tree)


def _logprobs(policy, sequences, response, mask):
  logits = policy(*sequences)[:, -WIDTH - 1:-1].reshape(*response.shape, -1)
  chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), response[..., None], -1)
  return jnp.where(mask, chosen[..., 0], 0.0)


_forward = jit(_logprobs)
_pull = jit(lambda policy, cotangent, *data: jax.grad(
  lambda policy: jnp.sum(cotangent * _logprobs(policy, *data)))(policy))


def _data(rollouts):
  return tiny.sequences(rollouts), rollouts.response, rollouts.response_mask


def logprobs(policy, rollouts):
  """Return f32[B, K, N], teacher-forced on whole plain sequences."""
  return _forward(policy, *_data(rollouts))


def written_gradient(loss, policy, rollouts):
  """Return autodiff of `loss(logprobs[B, K, N])` through the policy, by chain rule."""
  cotangent = jit(jax.grad(loss))(logprobs(policy, rollouts))
  return _pull(policy, cotangent, *_data(rollouts))


def record() -> optax.GradientTransformation:
  """Return a transformation whose state is the gradient that it last passed on."""
  return optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params),
    lambda grads, state, params=None: (grads, grads))


_TRANSFORM = optax.chain(record(), optimizer.build(OPTIMIZER))


def fresh(params) -> TrainState:
  """Return the state before the first update."""
  return TrainState(jnp.int32(0), params, _TRANSFORM.init(params), jnp.int32(0))


def gradient(state: TrainState):
  """Return the gradient of the last update."""
  return state.opt_state[0]


@functools.cache
def program(make=None, **choices):
  """Return the jitted update of lpo_fwd; `make(*arguments)` gives another objective.

  It maps (*arguments, TrainState, Groups) to (TrainState, metrics).
  """
  config = UpdateConfig(**choices)
  plain = objective.build(objective.ObjectiveConfig(), SAMPLES)

  def step(*arguments):
    *arguments, state, groups = arguments
    chosen = make(*arguments) if make else plain
    return update.make_update(chosen, _TRANSFORM, optimizer.schedule(OPTIMIZER),
                              config)(state, groups)[:2]

  return jit(step)


def assert_close(actual, expected, relative=1e-5):
  """Compare trees leaf by leaf, relative to the largest entry of the whole tree."""
  actual, expected = jax.device_get((actual, expected))
  scale = max(np.abs(x).max() for x in jax.tree.leaves(expected))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(
    a, b, rtol=0, atol=relative * scale), actual, expected)


def assert_identical(actual, expected):
  """Compare trees bit by bit; NaN equals NaN."""
  jax.tree.map(np.testing.assert_array_equal, *jax.device_get((actual, expected)))
