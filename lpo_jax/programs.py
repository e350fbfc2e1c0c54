"""The programs of a run: each a pure function, jitted once, with its placement.

Gradient and update are one program, with `out_shardings`: a gradient taken outside it
would lose its placement. The state is donated, so one copy of it lives. Nothing is
compiled until a program is first called.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from lpo_jax import (
  build,
  compilation,
  cores,
  objective,
  optimizer,
  policy,
  sharding,
  update,
  warmstart,
)
from lpo_jax.policy import lora
from lpo_jax.types import Array, TrainState


class Programs:
  """What the parts of a run compile to.

  Attributes:
    abstract: the train state as shapes, dtypes and placements.
    fresh_params: key -> a new policy, without adapters.
    state_of: (params, key) -> TrainState around given parameters, step 0; donates
      them. Those without adapters get such as the configuration asks for.
    update: (TrainState, Groups) -> (TrainState, metrics, coefficients); donates
      the state.
    certify: (policy, step, Groups) -> see `update.certify`.
  """

  def __init__(self, parts: build.Parts):
    self._parts, self._optimizer = parts, optimizer.build(parts.optimizer)
    shapes = jax.eval_shape(lambda key: self._state_of(self._fresh_params(key), key),
                            jax.random.key(0))
    placement = sharding.state_shardings(shapes, parts.mesh)
    copied = sharding.replicated(parts.mesh)
    self._options = compilation.of_an_update(
      parts.mesh.devices.flat[0].platform, cores.are_devices(parts.mesh.size))
    self.abstract = _placed(shapes, placement)
    self.fresh_params = jax.jit(self._fresh_params,
                                out_shardings=lora.remove(placement.params))
    self.state_of = jax.jit(self._state_of, donate_argnums=0, out_shardings=placement)
    self.update = jax.jit(
      update.make_update(
        objective.build(parts.objective, parts.sampling.samples_per_prompt),
        self._optimizer, optimizer.schedule(parts.optimizer), parts.update),
      donate_argnums=0, out_shardings=(placement, copied, copied),
      compiler_options=self._options)
    self.certify = jax.jit(functools.partial(
      update.certify, target=objective.target(parts.objective), config=parts.update,
      score=parts.objective.score), out_shardings=copied)

  @functools.cached_property
  def warm_start(self):
    """Return two programs of the warm start, and its optimiser's state as shapes.

    The first makes that state of parameters; the second maps (params, opt_state,
    demonstrations) to (params, opt_state, loss Mean) and donates the first two.
    """
    transform, mesh = optimizer.build(self._parts.warmstart), self._parts.mesh
    params = lora.remove(self.abstract.params)
    shapes = jax.eval_shape(transform.init, params)
    placement = sharding.state_shardings(shapes, mesh)
    out = (sharding.state_shardings(params, mesh), placement, sharding.replicated(mesh))
    step = jax.jit(warmstart.make_step(transform, self._parts.update.logprob_chunk),
                   donate_argnums=(0, 1), out_shardings=out,
                   compiler_options=self._options)
    return jax.jit(transform.init, out_shardings=placement), step, _placed(
      shapes, placement)

  def _fresh_params(self, key: Array) -> policy.Policy:
    plain = dataclasses.replace(self._parts.policy_config, lora=None)
    return policy.Policy(plain, key)

  def _state_of(self, params, key: Array) -> TrainState:
    params = lora.add(params, self._parts.policy_config.lora, key)
    opt_state = self._optimizer.init(lora.split(params)[0])
    return TrainState(jnp.int32(0), params, opt_state, jnp.int32(0))


def _placed(shapes, placement):
  """Return shapes with their placement."""
  return jax.tree.map(
    lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes,
    placement)
