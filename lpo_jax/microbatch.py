"""The gradient of one minibatch, accumulated over microbatches that fit in memory.

Whatever the objective, the gradient of M kept groups is
  (1 / M) sum_groups sum_{k,i} c_{k,i} grad log pi(y_{k,i})        (paper, Algorithm 1)
so only stop_gradient(c) . log pi is ever differentiated. Microbatches hold whole
groups and need one pass. Where K long responses do not fit, `micro_responses` splits a
group: a first pass finds log pi, and so c, without a gradient; a second accumulates
the same sum in any order. Both give the same gradient. Groups that count in no mean
are brought together, and a microbatch of none but these is not computed at all.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lpo_jax import cut, sequence, sharding
from lpo_jax.policy import lora
from lpo_jax.types import Coefficients, Group, Groups, Mean, Rollouts

GROUP_AXES = Group(0, 0, 0, 0, 0, None, None, None)  # the batch shares the last


@dataclasses.dataclass(frozen=True)
class UpdateConfig:
  """How a batch of groups is cut up and how its log-probabilities are taken."""

  updates_per_step: int = 1  # minibatches
  epochs: int = 1
  micro_prompts: int = 1  # groups to a microbatch
  micro_responses: int = 0  # responses of a group to a microbatch; 0 for all K
  pack: int = 1  # up to so many times more of them where they are short; 1: padded
  temperature: float = 1.0  # of sampling: pi is what was sampled from
  logprob_chunk: int = 0  # positions whose logits exist at once; 0 for all
  behavior: str = 'learner'  # who says log pi_b: the learner again, or the sampler
  skip_flat_groups: bool = False

  @property
  def updates(self) -> int:
    """Return optimiser updates per batch."""
    return self.epochs * self.updates_per_step

  def check(self, prompts: int, samples: int, shards: int = 1) -> None:
    """Raise a ValueError unless `prompts` groups of `samples` divide as asked.

    Args:
      prompts: B, groups in a batch.
      samples: K.
      shards: parts the mesh splits the batch into.
    """
    for name in ('updates_per_step', 'epochs', 'micro_prompts', 'pack'):
      if getattr(self, name) < 1:
        raise ValueError(f'{name}={getattr(self, name)}: must be at least 1')
    if prompts % self.updates_per_step:
      raise ValueError(f'updates_per_step={self.updates_per_step} does not divide '
                       f'prompts_per_step={prompts}')
    minibatch = prompts // self.updates_per_step
    if minibatch % self.micro_prompts:
      raise ValueError(
        f'micro_prompts={self.micro_prompts} does not divide the minibatch of '
        f'prompts_per_step / updates_per_step = {minibatch}')
    if self.micro_prompts % shards:
      raise ValueError(f'micro_prompts={self.micro_prompts} does not split over the '
                       f'{shards} batch shards of the mesh')
    if self.micro_responses and samples % self.micro_responses:
      raise ValueError(f'micro_responses={self.micro_responses} does not divide '
                       f'samples_per_prompt={samples}')
    if self.behavior not in ('learner', 'sampler'):
      raise ValueError(f'behavior={self.behavior!r}: choose learner or sampler')


def deal(keep: jax.Array, config: UpdateConfig) -> jax.Array:
  """Return i32[B], the order in which groups fill as few microbatches as can be.

  Those that count (bool[B]) are dealt evenly over the minibatches, then fill
  microbatch after microbatch.
  With p the place of a group when those that count come first: minibatch p mod U,
  microbatch (p div U) div m of it.
  """
  batch = keep.shape[0]
  minibatches, size = config.updates_per_step, config.micro_prompts
  count = batch // minibatches // size
  place = jnp.arange(batch)
  minibatch, within = place % minibatches, place // minibatches
  row = ((within % size) * count + within // size) * minibatches + minibatch
  order = jnp.argsort(~keep, stable=True)
  return jnp.zeros(batch, order.dtype).at[row].set(order)


def logprobs(policy, rollouts: Rollouts, config: UpdateConfig, keep=None) -> jax.Array:
  """Return f32[B, K, N] under the policy, microbatch by microbatch, no gradient.

  Args:
    policy: any pi.
    rollouts: of B prompts.
    config: how they are cut up.
    keep: bool[B]; a microbatch without any of them is left 0.
  """
  keep = jnp.ones(rollouts.prompt.shape[0], bool) if keep is None else keep
  units = _cut(rollouts, keep, config)
  forward = _where_live(lambda unit: _forward(policy, unit, units, config)[0])
  return units.join(jax.lax.map(forward, (units.prompts(keep), units(rollouts))))


def gradient(objective: Callable[[Group], Coefficients], policy, groups: Groups,
             behavior, statistics: tuple, first, config: UpdateConfig):
  """Return the mean gradient over the kept groups of a minibatch, and what it is of.

  Args:
    objective: one group -> Coefficients.
    policy: pi_theta.
    groups: M of them.
    behavior: f32[M, K, N] log pi_b; None when pi_theta is pi_b.
    statistics: mean and std of the whole batch's rewards, and the step, see `Group`.
    first: bool, whether pi_theta still is pi_b, so that its gap to the sampler's
      record is the sampler's error.
    config: how the minibatch is cut up.

  Returns:
    the gradient, metrics, and f32[M, K], each response's coefficients summed over its
    tokens; 0 in groups that do not count.
  """
  share = groups.keep / jnp.maximum(jnp.sum(groups.keep), 1)  # f32[M]
  judge = functools.partial(_judge, objective, statistics, first)
  units = _cut(groups.rollouts, groups.keep, config)
  live, rollouts = units.prompts(groups.keep), units(groups.rollouts)
  padding = _padding(units, live, rollouts)
  if not config.micro_responses:
    def one_pass(policy, unit):
      found = _forward(policy, unit[0].rollouts, units, config)
      weights, *seen = judge(*found, *unit)
      return jnp.sum(weights * found[0]), seen

    grads, metrics, coefficients = _accumulate(
      one_pass, policy, live, units((groups, behavior, share)))
    return grads, metrics | padding, units.join(coefficients)

  found = jax.lax.map(_where_live(lambda unit: _forward(policy, unit, units, config)),
                      (live, rollouts))
  weights, metrics, coefficients = judge(*map(units.join, found), groups, behavior,
                                         share)

  def second_pass(policy, unit):
    rollouts, weights = unit
    return jnp.sum(weights * _forward(policy, rollouts, units, config)[0]), ({}, ())

  grads, *_ = _accumulate(second_pass, policy, live, (rollouts, units(weights)))
  return grads, metrics | padding, coefficients


def _cut(rollouts, keep, config: UpdateConfig) -> cut.Cut:
  return cut.plan(rollouts, keep, config.micro_prompts, config.micro_responses,
                  config.pack)


def _forward(policy, rollouts: Rollouts, units: cut.Cut, config: UpdateConfig):
  return sequence.response_logprobs(
    policy, rollouts, temperature=config.temperature, chunk=config.logprob_chunk,
    room=units.room)


def _padding(units: cut.Cut, live, rollouts: Rollouts) -> dict:
  """Return the share of the computed places that hold no token of a kept group."""
  masks = rollouts.prompt_mask, rollouts.response_mask.reshape(*live.shape, -1)
  real = sum(jnp.sum(mask & live[..., None], dtype=jnp.float32) for mask in masks)
  computed = jnp.sum(jnp.any(live, axis=1), dtype=jnp.float32) * units.places
  return {'perf/pad_frac': Mean(computed - real, computed)}


def _judge(objective, statistics, first, logprobs, entropy, groups: Groups, behavior,
           share):
  """Return coefficients times their group's share, metrics, and sums over tokens."""
  logprobs = jax.lax.stop_gradient(logprobs)
  own = logprobs if behavior is None else behavior
  mask = groups.rollouts.response_mask
  found = jax.vmap(objective, in_axes=(GROUP_AXES,))(Group(
    logprobs, own, mask, groups.rewards, groups.anchor_scores, *statistics))
  metrics = {name: Mean(jnp.sum(value.total, where=groups.keep),
                        jnp.sum(value.count, where=groups.keep))
             for name, value in found.metrics.items()}
  seen = mask & groups.keep[:, None, None]
  gap = jnp.where(seen, logprobs - groups.rollouts.logprobs, 0.0)
  first = jnp.asarray(first, jnp.float32)
  now = groups.keep & (first > 0)  # the rest of the gap is the policy's own way
  if groups.age is not None:
    now &= groups.age == 0
  metrics |= {
    'actor/loss': mean(found.loss, groups.keep),
    'actor/token_entropy': mean(entropy, seen),
    'mismatch/logp_abs_mean': mean(jnp.abs(gap), mask & now[:, None, None]),
    # Within each group, so that it does not depend on how groups are cut up.
    'mismatch/seq_logratio_std': mean(jnp.std(jnp.sum(gap, axis=-1), axis=-1), now),
  }
  return (jax.lax.stop_gradient(found.values * share[:, None, None]), metrics,
          jnp.sum(found.values, axis=-1) * groups.keep[:, None])


def _accumulate(function, policy, keep, units):
  """Sum the gradients of `function(policy, unit)` over the units that count.

  They are those of what is trained, see `lora.split`. Layers that run unrolled are
  unstacked here, once, so that each has a sum of its own. Each shard of the batch adds
  up its own where it can, and all of them are added up once.

  Args:
    function: also returns metrics, and what is kept of a unit's rows.
    policy: pi_theta.
    keep: bool[units, b].
    units: tree of [units, b, ...].

  Returns:
    the gradient, the metrics' sums, and what was kept, [units, b, ...].
  """
  def accumulated(policy, keep, units):
    unroll = policy.config.unroll
    trained, frozen = lora.split(policy.unstack() if unroll else policy)
    gradient_of = jax.grad(
      lambda trained, unit: function(lora.join(trained, frozen), unit), has_aux=True)
    unit_gradient = _where_live(lambda unit: gradient_of(trained, unit))

    def body(total, unit):
      grads, aux = unit_gradient(unit)
      return jax.tree.map(jnp.add, total, grads), aux

    total, (metrics, kept) = jax.lax.scan(
      body, jax.tree.map(jnp.zeros_like, trained), (keep, units))
    total = total.stack() if unroll else total
    return *sharding.total((total, jax.tree.map(jnp.sum, metrics))), kept

  whole, rows = PartitionSpec(), PartitionSpec(None, sharding.BATCH)
  return sharding.by_shard(accumulated, (whole, rows, rows), (whole, whole, rows))(
    policy, keep, units)


def _where_live(function):
  """Make `function` of (keep, unit) skip units in which nothing counts: zeros."""
  function = jax.jit(function)  # traced once, for its shapes and for its values

  def call(pair):
    keep, unit = pair
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype),
                         jax.eval_shape(function, unit))
    return jax.lax.cond(jnp.any(keep), function, lambda _: zeros, unit)

  return call


def mean(values, mask) -> Mean:
  """Return the Mean of `values` where `mask`."""
  return Mean(jnp.sum(values, where=mask, dtype=jnp.float32),
              jnp.sum(mask, dtype=jnp.float32))
