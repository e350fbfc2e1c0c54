"""Groups of earlier iterations, learned from again: a buffer, and what is too stale.

A past group keeps pi_b, the record of what it was sampled from. At the start of an
iteration pi_t stands at s_t = log pi_t - log pi_b from it, and the target is anchored
there, w* = softmax(R / tau + s_t) (arXiv:2605.06139, Theorem 1): no other correction.
The baselines' ratios are against the same record. A group is too stale by age, in
iterations, or when the self-normalised weights w_k ~ exp(s_t,k) of its K responses,
which are P_t, have too small an effective sample size 1 / sum w^2 (Kong 1992): then
few of its responses still speak for pi_t. s is the objective's score, mean or sum.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from lpo_jax import microbatch, sequence, sharding
from lpo_jax.microbatch import UpdateConfig
from lpo_jax.simplex import geometry
from lpo_jax.types import Array, Groups, Mean, Rollouts


@dataclasses.dataclass(frozen=True)
class Staleness:
  """How old what is learned from may be."""

  async_rollouts: int = 0  # 1: a batch is sampled while the one before is learned from
  fraction: float = 0.0  # of a batch's groups that come from the buffer; 0: no buffer
  capacity: int = 0  # groups in the buffer; 0: as many as max_age lets be of use
  max_age: int = 4  # iterations
  min_ess: float = 0.5  # least effective sample size, as a share of K; 0: any

  @property
  def off_policy(self) -> bool:
    """Return whether anything but pi_t's own responses is learned from."""
    return bool(self.fraction or self.async_rollouts)

  def past(self, prompts: int) -> int:
    """Return how many of a batch's groups come from the buffer."""
    return round(self.fraction * prompts)

  def room(self, prompts: int) -> int:
    """Return how many groups the buffer holds."""
    return self.capacity or self.max_age * (prompts - self.past(prompts))

  def describe(self, prompts: int) -> list[str]:
    """Return what a run's opening says of it, a line each."""
    past, said = self.past(prompts), []
    if past:
      said.append(f'replay: {past} of {prompts} groups are past ones, at most '
                  f'{self.max_age} iterations old, of {self.room(prompts)} kept')
    if self.async_rollouts:
      said.append('async_rollouts: batches are sampled a step ahead')
    return said

  def check(self, prompts: int, samples: int, behavior: str, shards: int = 1,
            at_once: int = 0, reads_images: bool = False) -> None:
    """Raise a ValueError unless a batch can be made so.

    Args:
      prompts: B, groups in a batch.
      samples: K.
      behavior: who says log pi_b, see `UpdateConfig`.
      shards: parts the mesh splits the batch into.
      at_once: prompts decoded at once; 0 for all.
      reads_images: whether the policy does.
    """
    if self.async_rollouts not in (0, 1):
      raise ValueError(f'async_rollouts={self.async_rollouts}: 0, or 1 for batches '
                       'sampled one step ahead')
    if not 0 <= self.fraction < 1:
      raise ValueError(f'replay.fraction={self.fraction}: must lie in [0, 1)')
    if self.capacity < 0 or self.max_age < 1 or not 0 <= self.min_ess <= 1:
      raise ValueError(
        f'replay.capacity={self.capacity}, replay.max_age={self.max_age}, '
        f'replay.min_ess={self.min_ess}: need capacity >= 0, max_age >= 1 and min_ess '
        'in [0, 1], a share of samples_per_prompt')
    if not self.off_policy:
      return
    if self.fraction and self.max_age <= self.async_rollouts:
      raise ValueError(f'replay.max_age={self.max_age} with async_rollouts='
                       f'{self.async_rollouts}: new groups are that old already, past '
                       'ones older; raise replay.max_age')
    asked = (f'replay.fraction={self.fraction}' if self.fraction
             else f'async_rollouts={self.async_rollouts}')
    if behavior != 'sampler':
      raise ValueError(
        f'{asked} with objective.behavior={behavior}: of a past policy only the '
        "sampler's record is left; set objective.behavior=sampler")
    if samples == 1:
      raise ValueError(f'{asked} with samples_per_prompt=1: one response has no '
                       'simplex to anchor the target in; use samples_per_prompt >= 2')
    if reads_images:
      raise ValueError(f'{asked} with a policy that reads images: past responses are '
                       'kept without them; set it to 0')
    self._check_counts(prompts, shards, at_once)

  def _check_counts(self, prompts: int, shards: int, at_once: int) -> None:
    past = self.past(prompts)
    if abs(past - self.fraction * prompts) > 1e-6 or bool(past) != bool(self.fraction):
      raise ValueError(f'replay.fraction={self.fraction} of prompts_per_step={prompts} '
                       f'is no whole number of groups: use {max(past, 1) / prompts}')
    fresh = prompts - past
    if past % shards or fresh % shards:
      raise ValueError(f'replay.fraction={self.fraction} makes {past} past and {fresh} '
                       f'new groups: both must split over the {shards} batch shards of '
                       'the mesh')
    if at_once and fresh % at_once:
      raise ValueError(f'sampling.prompts_at_once={at_once} does not divide the '
                       f'{fresh} new groups that replay.fraction={self.fraction} '
                       'leaves')
    if past and self.room(prompts) < max(past, fresh):
      raise ValueError(f'replay.capacity={self.capacity}: must hold the {fresh} new '
                       f'groups of a step and the {past} past ones that it takes')


@struct.dataclass
class Buffer:
  """Up to C past groups."""

  rollouts: Rollouts  # [C, ...], prompts padded to the widest bucket
  rewards: Array  # f32[C, K]
  born: Array  # i32[C]: the iteration, from 1, whose pi_t sampled it; 0: no group


def empty(room: int, samples: int, prompt_width: int, new_tokens: int) -> Buffer:
  """Return a buffer without groups.

  Args:
    room: C.
    samples: K.
    prompt_width: P, the widest bucket.
    new_tokens: N.
  """
  prompt, response = (room, prompt_width), (room, samples, new_tokens)
  rollouts = Rollouts(
    jnp.zeros(prompt, jnp.int32), jnp.zeros(prompt, bool),
    jnp.zeros(response, jnp.int32), jnp.zeros(response, bool), jnp.zeros(response))
  return Buffer(rollouts, jnp.zeros((room, samples)), jnp.zeros(room, jnp.int32))


def anchored(policy, groups: Groups, cut: UpdateConfig, score: str) -> Groups:
  """Return the groups with s_t, where they are older than the policy.

  Args:
    policy: pi_t.
    groups: with their ages; those that do not count stay at 0.
    cut: how log-probabilities are taken; microbatches are made to fit.
    score: `mean` or `sum` over tokens.
  """
  count, shards = groups.keep.shape[0], sharding.batch_shards()
  fitting = max(size for size in range(1, min(cut.micro_prompts, count) + 1)
                if count % size == 0 and (size % shards == 0 or size == 1))
  rollouts, stale = groups.rollouts, groups.keep & (groups.age > 0)
  logprobs = microbatch.logprobs(
    policy, rollouts, dataclasses.replace(cut, micro_prompts=fitting), stale)
  scores = jax.vmap(lambda *group: sequence.sequence_scores(*group, score))(
    logprobs, rollouts.logprobs, rollouts.response_mask)
  return groups.replace(anchor_scores=jnp.where(stale[:, None], scores, 0.0))


def effective_share(scores: Array) -> Array:
  """Return the effective sample size of weights ~ exp(scores), over K: f32[B].

  Args:
    scores: f32[B, K].
  """
  size = jax.vmap(lambda s: geometry.effective_sample_size(geometry.log_policy(s)))
  return size(scores) / scores.shape[1]


def mix(policy, buffer: Buffer, fresh: Groups, step: Array, key: Array, *, past: int,
        config: Staleness, cut: UpdateConfig, score: str):
  """Return a batch of new and past groups, the buffer after it, and metrics.

  Past groups are drawn without replacement among those young enough; if the update
  leaves out flat groups, others come first. Those whose effective sample size is too
  small do not count, and leave the buffer; where the buffer has too few, the rest of
  the batch does not count either.

  Args:
    policy: pi_t.
    buffer: of the iterations before.
    fresh: B' new groups with their ages, which come first and enter the buffer.
    step: i32[], this iteration, from 1.
    key: of this iteration.
    past: groups to draw.
    config: which are too stale.
    cut: of the update.
    score: of the objective.
  """
  fresh = fresh.replace(rollouts=_widened(fresh.rollouts, buffer))
  rows, there = _draw(buffer, step, key, past, config.max_age, cut.skip_flat_groups)
  drawn = jax.tree.map(lambda x: x[rows], buffer)
  # In place of a group that is missing, one that can be computed.
  stand_in = jax.tree.map(lambda x: x[jnp.arange(past) % x.shape[0]],
                          (fresh.rollouts, fresh.rewards))
  rollouts, rewards = jax.tree.map(
    lambda x, y: jnp.where(there.reshape(-1, *[1] * (x.ndim - 1)), x, y),
    (drawn.rollouts, drawn.rewards), stand_in)
  old = anchored(policy, jax.tree.map(sharding.constrain_batch, Groups(
    rollouts, rewards, jnp.zeros_like(rewards), there, step - drawn.born)), cut, score)
  share = effective_share(old.anchor_scores)
  old = old.replace(keep=there & (share >= config.min_ess))
  metrics = {
    'replay/fraction': Mean(jnp.sum(old.keep, dtype=jnp.float32), jnp.sum(
      fresh.keep, dtype=jnp.float32) + jnp.sum(old.keep, dtype=jnp.float32)),
    'replay/age': microbatch.mean(old.age, old.keep),
    'replay/ess': microbatch.mean(share, there),
    'replay/stale_frac': microbatch.mean(~old.keep, there),
    'replay/size': Mean(jnp.sum(_usable(buffer, step, config.max_age),
                                dtype=jnp.float32), jnp.ones(()))}
  born = buffer.born.at[rows].set(jnp.where(there & ~old.keep, 0, drawn.born))
  groups = jax.tree.map(
    lambda *x: sharding.constrain_batch(jnp.concatenate(x)), fresh, old)
  return groups, _push(buffer.replace(born=born), fresh, step), metrics


def _widened(rollouts: Rollouts, buffer: Buffer) -> Rollouts:
  """Return rollouts whose prompts are as wide as the buffer's."""
  missing = buffer.rollouts.prompt.shape[1] - rollouts.prompt.shape[1]
  prompt, mask = (jnp.pad(x, ((0, 0), (missing, 0)))
                  for x in (rollouts.prompt, rollouts.prompt_mask))
  return rollouts.replace(prompt=prompt, prompt_mask=mask)


def _usable(buffer: Buffer, step: Array, max_age: int) -> Array:
  return (buffer.born > 0) & (step - buffer.born <= max_age)


def _draw(buffer: Buffer, step, key, count: int, max_age: int, flat_last: bool):
  """Return rows i32[count] of the buffer, and whether each is a usable group."""
  usable = _usable(buffer, step, max_age)
  rank = jax.random.uniform(key, usable.shape)
  if flat_last:
    rank += jax.vmap(geometry.is_flat)(buffer.rewards)
  rows = jnp.argsort(jnp.where(usable, rank, jnp.inf))[:count]
  return rows, usable[rows]


def _push(buffer: Buffer, fresh: Groups, step) -> Buffer:
  """Return the buffer with new groups in empty places, then in those of the oldest."""
  rows = jnp.argsort(buffer.born, stable=True)[:fresh.keep.shape[0]]
  new = Buffer(fresh.rollouts, fresh.rewards, step - fresh.age)
  # Every device has the whole buffer, so that drawing from it moves nothing.
  return jax.tree.map(
    lambda x, y: sharding.constrain(x.at[rows].set(y), *[None] * x.ndim), buffer, new)
