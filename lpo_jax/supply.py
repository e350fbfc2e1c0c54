"""Where each iteration's groups come from: the policy itself, a step before, the past.

On-policy, pi_t samples and is updated. With `async_rollouts` the batch of iteration
t + 1 is sampled from the policy before update t, and judged while the device updates:
its groups are one step old. With `replay.fraction`, some groups are past ones
(`replay`). What a resumed run cannot sample again, the buffer and the responses that
wait, belongs to the checkpoint; verdicts are given again, being functions of a text.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from lpo_jax import batches, build, hosts, microbatch, replay, rollout, sharding
from lpo_jax.types import Groups, Responses, TrainState


@struct.dataclass
class Data:
  """What batches to come are made of."""

  buffer: replay.Buffer | None  # with replay
  ahead: Responses | None  # with async_rollouts: to the problems of the step after


class Supply:
  """The batches of a run, in order."""

  def __init__(self, config, parts: build.Parts, sample_key, replay_key, phases):
    """Compile nothing; allocate the buffer, if there is one.

    Args:
      config: of the run.
      parts: of the run.
      sample_key: of the stream that samples.
      replay_key: of the stream that draws past groups.
      phases: timer.
    """
    self._config, self._parts = config, parts
    self._prompts, self._steps = config.prompts_per_step, config.num_steps
    self._sample_key, self._replay_key = sample_key, replay_key
    self._phases = phases
    self._stale, self._next, self._log_behavior = parts.staleness, None, None
    self._past = self._stale.past(self._prompts)
    self._shapes = self._describe()
    self.abstract = self._shapes if self._stale.off_policy else None
    self._buffer = self._zeros(self._shapes.buffer)
    choices = dict(cut=parts.update, score=parts.objective.score)
    self._anchor = jax.jit(functools.partial(_anchor, **choices))
    self._mix = jax.jit(functools.partial(
      replay.mix, past=self._past, config=self._stale, **choices), donate_argnums=1)

  def refer(self, policy, step: int, folder: str) -> None:
    """Find log pi_b of fixed lists, see `batches.reference`."""
    self._log_behavior = batches.reference(self._config, self._parts, policy, step,
                                           folder)

  def take(self, policy, step: int) -> batches.Batch:
    """Return the batch of one iteration; the next may be sampled meanwhile.

    Args:
      policy: pi_t; its arrays may be donated afterwards.
      step: the iteration, from 1; they are taken in order.
    """
    if not self._stale.off_policy:
      return batches.collect(
        self._config, self._parts, policy, step,
        jax.random.fold_in(self._sample_key, step), self._phases, self._log_behavior)
    fresh, graded = (self._next or self._begin(policy, step))()
    self._next = None
    if self._stale.async_rollouts and step < self._steps:
      self._next = self._begin(policy, step + 1)
    age = np.full(len(graded.rewards), self._stale.async_rollouts * (step > 1))
    age = hosts.place(age.astype(np.int32), self._parts.mesh)
    groups = fresh = fresh.replace(age=age)
    metrics = {}
    if self._stale.async_rollouts:
      groups, metrics = self._anchor(policy, fresh)
    if self._past:
      groups, self._buffer, found = self._mix(
        policy, self._buffer, groups, np.int32(step),
        jax.random.fold_in(self._replay_key, step))
      metrics |= found
    return batches.Batch(self._problems(step), groups, graded, new=fresh,
                         metrics=metrics)

  def finish(self) -> None:
    """Wait for the verdicts on what was sampled ahead."""
    if self._next is not None:
      found = self._next()
      self._next = lambda: found

  def kept(self) -> Data | None:
    """Return what a checkpoint must hold for the iterations after the last taken."""
    if self.abstract is None:
      return None
    ahead = self._zeros(self._shapes.ahead)
    if self._next is not None:
      rollouts = self._next()[0].rollouts
      ahead = Responses(rollouts.response, rollouts.response_mask, rollouts.logprobs)
    return Data(self._buffer, ahead)

  def restore(self, state: TrainState, step: int) -> TrainState:
    """Go on after iteration `step`; return the state without its `data`."""
    if state.data is not None:
      self._buffer = state.data.buffer
      if state.data.ahead is not None and 0 < step < self._steps:
        self._next = self._begin(None, step + 1, state.data.ahead)
    return state.replace(data=None)

  def _problems(self, step: int) -> list:
    return batches.training_problems(self._config, self._parts, step)

  def _begin(self, policy, step: int, recorded: Responses | None = None):
    parts, key = self._parts, jax.random.fold_in(self._sample_key, step)
    return rollout.begin(
      policy, self._problems(step), key, parts.task, parts.tokenizer, parts.sampling,
      parts.mesh, self._phases, parts.reward, recorded)

  def _describe(self) -> Data:
    """Return shapes and placements of what is kept."""
    sampling, mesh = self._parts.sampling, self._parts.mesh
    buffer = ahead = None
    if self._past:
      shapes = jax.eval_shape(functools.partial(
        replay.empty, self._stale.room(self._prompts), sampling.samples_per_prompt,
        max(sampling.prompt_buckets), sampling.max_new_tokens))
      whole = sharding.replicated(mesh)
      buffer = jax.tree.map(lambda x: jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=whole), shapes)
    if self._stale.async_rollouts:
      shape = (self._prompts - self._past, sampling.samples_per_prompt,
               sampling.max_new_tokens)
      place = sharding.placement(shape, ('batch', None, None), mesh)
      ahead = Responses(*(jax.ShapeDtypeStruct(shape, dtype, sharding=place)
                          for dtype in (jnp.int32, jnp.bool_, jnp.float32)))
    return Data(buffer, ahead)

  def _zeros(self, shapes):
    """Return zeros of such shapes and placements; None for none."""
    if shapes is None:
      return None
    places = jax.tree.map(lambda x: x.sharding, shapes)
    return jax.jit(lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes),
                   out_shardings=places)()


def _anchor(policy, groups: Groups, cut: microbatch.UpdateConfig, score: str):
  """Return groups sampled a step ago with s_t, and how far pi_t is from them."""
  groups = replay.anchored(policy, groups, cut, score)
  share = replay.effective_share(groups.anchor_scores)
  return groups, {'async/age': microbatch.mean(groups.age, groups.keep),
                  'async/ess': microbatch.mean(share, groups.keep)}
