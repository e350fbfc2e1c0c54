"""Groups -> a better policy: E epochs of minibatches of whole groups, in one program.

Whatever the objective, the gradient of a minibatch of M kept groups is
  (1 / M) sum_groups sum_{k,i} c_{k,i} grad log pi(y_{k,i})        (paper, Algorithm 1)
so the update knows only stop_gradient(c) . log pi. Microbatches hold whole groups and
need one pass. Where K long responses do not fit, `micro_responses` splits a group: a
first pass finds log pi, and so c, without a gradient; a second accumulates the same
sum in any order. Both give the same gradient.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from lpo_jax import sequence, simplex
from lpo_jax.simplex import geometry
from lpo_jax.types import Coefficients, Group, Groups, Mean, Rollouts, TrainState

_GROUP_AXES = Group(0, 0, 0, 0, 0, None, None)  # the batch's statistics are shared


@dataclasses.dataclass(frozen=True)
class UpdateConfig:
  """How a batch of groups is cut up and how its log-probabilities are taken."""

  updates_per_step: int = 1  # minibatches
  epochs: int = 1
  micro_prompts: int = 1  # groups to a microbatch
  micro_responses: int = 0  # responses of a group to a microbatch; 0 for all K
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
    for name in ('updates_per_step', 'epochs', 'micro_prompts'):
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


def make_update(objective: Callable[[Group], Coefficients],
                optimizer: optax.GradientTransformation, learning_rate: optax.Schedule,
                config: UpdateConfig):
  """Return the pure function (TrainState, Groups) -> (TrainState, metrics).

  A non-finite gradient, or a minibatch in which no group counts, leaves parameters
  and moments as they were; the former is counted in `TrainState.skipped`.
  """

  def update(state: TrainState, groups: Groups):
    behavior, metrics = _behavior_logprobs(state.params, groups.rollouts, config)
    groups = _kept(groups, config)
    mean, std = _batch_statistics(groups)
    batches = split((groups, behavior), config.updates_per_step)

    def minibatch(state, batch):
      grads, metrics = _gradient(objective, state.params, *batch, mean, std, config)
      return _apply(optimizer, learning_rate, state, grads, metrics, batch[0].keep)

    def epoch(state, _):
      state, metrics = jax.lax.scan(minibatch, state, batches)
      return state, jax.tree.map(jnp.sum, metrics)

    state, learned = jax.lax.scan(epoch, state, None, length=config.epochs)
    metrics |= jax.tree.map(jnp.sum, learned)
    metrics |= _batch_metrics(groups, state.skipped)
    return state.replace(step=state.step + 1), metrics

  return update


def certify(policy, groups: Groups, temperature: Callable[[Group], jax.Array],
            config: UpdateConfig):
  """Measure an update with Theorem 2, from the policy after it.

  Args:
    policy: after the update.
    groups: what it learned from; their sampled log-probabilities stand for pi_b.
    temperature: the group's tau.
    config: of the update; scores are mean log-ratios.

  Returns:
    metrics over kept groups (`lpo/kl_fwd_after`, `lpo/gain`, `lpo/projection_error`,
    `lpo/improvement`), and log w*, log P before and log P after, each f32[B, K].
  """
  rollouts = groups.rollouts
  logprobs = _logprobs(policy, rollouts, config)
  groups = _kept(groups, config)
  mean, std = _batch_statistics(groups)

  def one(group: Group):
    scores = sequence.sequence_scores(group.logprobs, group.behavior_logprobs,
                                      group.mask)
    tau, anchor = temperature(group), group.anchor_scores
    target = simplex.gibbs_target(group.rewards, tau, anchor)
    found = simplex.certificate(anchor, scores, group.rewards, tau, anchor)
    values = {'lpo/kl_fwd_after': simplex.forward_kl(scores, target),
              'lpo/gain': found.gain, 'lpo/projection_error': found.projection_error,
              'lpo/improvement': found.improvement}
    return values, (target, jax.nn.log_softmax(anchor), jax.nn.log_softmax(scores))

  values, simplexes = jax.vmap(one, in_axes=(_GROUP_AXES,))(Group(
    logprobs, rollouts.logprobs, rollouts.response_mask, groups.rewards,
    groups.anchor_scores, mean, std))
  metrics = {name: _mean(value, groups.keep) for name, value in values.items()}
  return metrics, simplexes


def split(tree, count: int):
  """Return [B, ...] arrays as [count, B / count, ...], every count-th row to a part.

  The stride keeps each part spread over the devices as the whole is, so that cutting
  a sharded batch moves nothing.
  """
  return jax.tree.map(
    lambda x: jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0), tree)


def _join(tree):
  """Undo `split`."""
  return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:]), tree)


def _units(rollouts: Rollouts, per_response, config: UpdateConfig):
  """Cut groups into microbatches of m prompts with r of their K responses each.

  Returns:
    rollouts and `per_response` (arrays [M, K, ...]) with a leading axis of
    microbatches, and the function that puts [units, m, r, ...] back to [M, K, ...].
  """
  count = rollouts.prompt.shape[0] // config.micro_prompts
  samples = rollouts.response.shape[1]
  slices = samples // (config.micro_responses or samples)

  def prompts(x):
    return jnp.repeat(split(x, count), slices, axis=0)

  def responses(x):  # [M, K, ...] -> [count, m, slices, r, ...] -> [units, m, r, ...]
    x = split(x, count)
    x = x.reshape(*x.shape[:2], slices, -1, *x.shape[3:])
    return jnp.moveaxis(x, 2, 1).reshape(-1, x.shape[1], *x.shape[3:])

  def join(x):
    x = jnp.moveaxis(x.reshape(count, slices, *x.shape[1:]), 1, 2)
    return _join(x.reshape(*x.shape[:2], samples, *x.shape[4:]))

  units = Rollouts(prompts(rollouts.prompt), prompts(rollouts.prompt_mask),
                   responses(rollouts.response), responses(rollouts.response_mask),
                   responses(rollouts.logprobs))
  return units, jax.tree.map(responses, per_response), join


def _logprobs(policy, rollouts: Rollouts, config: UpdateConfig):
  """Return f32[B, K, N] under the policy, microbatch by microbatch, no gradient."""
  units, _, join = _units(rollouts, (), config)
  return jax.lax.stop_gradient(join(jax.lax.map(
    lambda unit: sequence.response_logprobs(
      policy, unit, temperature=config.temperature, chunk=config.logprob_chunk)[0],
    units)))


def _behavior_logprobs(policy, rollouts: Rollouts, config: UpdateConfig):
  """Return log pi_b, or None when it is the learner's own, and the sampler's gap."""
  if config.behavior == 'sampler':
    return rollouts.logprobs, {}
  if config.updates == 1:
    return None, {}
  behavior = _logprobs(policy, rollouts, config)
  return behavior, mismatch(behavior, rollouts)


def mismatch(logprobs, rollouts: Rollouts) -> dict:
  """Compare the learner's log-probabilities with those the sampler recorded."""
  gap = jnp.where(rollouts.response_mask, logprobs - rollouts.logprobs, 0.0)
  return {
    'mismatch/logp_abs_mean': _mean(jnp.abs(gap), rollouts.response_mask),
    'mismatch/seq_logratio_std': Mean(jnp.std(jnp.sum(gap, -1)), jnp.float32(1)),
  }


def _gradient(objective, policy, groups: Groups, behavior, mean, std, config):
  """Return the mean gradient over the kept groups of a minibatch, and metrics."""
  rollouts = groups.rollouts
  share = groups.keep / jnp.maximum(jnp.sum(groups.keep), 1)  # f32[M]

  def judge(logprobs, behavior, entropy, part):
    """Return each group's coefficients times its share, and the metrics."""
    groups, share = part
    logprobs = jax.lax.stop_gradient(logprobs)
    own = logprobs if behavior is None else behavior
    found = jax.vmap(objective, in_axes=(_GROUP_AXES,))(Group(
      logprobs, own, groups.rollouts.response_mask, groups.rewards,
      groups.anchor_scores, mean, std))
    metrics = {name: Mean(jnp.sum(value.total, where=groups.keep),
                          jnp.sum(value.count, where=groups.keep))
               for name, value in found.metrics.items()}
    metrics['actor/loss'] = _mean(found.loss, groups.keep)
    metrics['actor/entropy'] = _mean(entropy, groups.rollouts.response_mask)
    if behavior is None:
      metrics |= mismatch(logprobs, groups.rollouts)
    return jax.lax.stop_gradient(found.values * share[:, None, None]), metrics

  def surrogate(policy, unit: Rollouts, weigh):
    logprobs, entropy = sequence.response_logprobs(
      policy, unit, temperature=config.temperature, chunk=config.logprob_chunk)
    weights, aux = weigh(logprobs, entropy)
    return jnp.sum(weights * logprobs), aux

  def accumulate(weigh, units):
    def body(total, unit):
      rollouts, given = unit
      grads, aux = jax.grad(surrogate, has_aux=True)(
        policy, rollouts, lambda *found: weigh(given, *found))
      return jax.tree.map(jnp.add, total, grads), aux

    return jax.lax.scan(body, jax.tree.map(jnp.zeros_like, policy), units)

  if not config.micro_responses:
    count = groups.keep.shape[0] // config.micro_prompts
    parts = split((groups, behavior, share), count)
    grads, metrics = accumulate(
      lambda given, logprobs, entropy: judge(logprobs, given[1], entropy,
                                             (given[0], given[2])),
      (parts[0].rollouts, parts))
    return grads, jax.tree.map(jnp.sum, metrics)

  units, _, join = _units(rollouts, (), config)
  logprobs, entropy = jax.tree.map(join, jax.lax.map(
    lambda unit: sequence.response_logprobs(
      policy, unit, temperature=config.temperature, chunk=config.logprob_chunk), units))
  weights, metrics = judge(logprobs, behavior, entropy, (groups, share))
  units, weights, _ = _units(rollouts, weights, config)
  grads, _ = accumulate(lambda given, *_: (given, ()), (units, weights))
  return grads, metrics


def _apply(optimizer, learning_rate, state: TrainState, grads, metrics, keep):
  """Take one optimiser update unless the gradient is not finite or no group counts."""
  norm = optax.global_norm(grads)
  finite = jnp.isfinite(norm)
  useful = finite & jnp.any(keep)
  count = optax.tree_utils.tree_get_all_with_path(state.opt_state, 'count')[0][1]
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  params, opt_state = jax.tree.map(
    lambda new, old: jnp.where(useful, new, old), (params, opt_state),
    (state.params, state.opt_state))
  one = jnp.float32(1)
  metrics |= {
    'actor/grad_norm': Mean(jnp.where(finite, norm, 0.0), finite.astype(jnp.float32)),
    'actor/lr': Mean(learning_rate(count), one),
    'actor/skipped_frac': Mean(1.0 - finite, one),
    'actor/useful_frac': Mean(useful.astype(jnp.float32), one),
  }
  skipped = jnp.where(finite, 0, state.skipped + 1)
  return state.replace(params=params, opt_state=opt_state, skipped=skipped), metrics


def _kept(groups: Groups, config: UpdateConfig) -> Groups:
  """Return the groups with flat ones marked as not counting, if so configured."""
  if not config.skip_flat_groups:
    return groups
  return groups.replace(keep=groups.keep & ~jax.vmap(geometry.is_flat)(groups.rewards))


def _batch_statistics(groups: Groups):
  """Return the mean reward and the std of group-centred rewards over kept groups."""
  mean = sequence.masked_mean(groups.rewards, groups.keep[:, None]
                              & jnp.ones_like(groups.rewards, bool))
  return mean, simplex.temperature_batch_std(groups.rewards, where=groups.keep)


def _batch_metrics(groups: Groups, skipped) -> dict:
  rollouts = groups.rollouts
  lengths = jnp.sum(rollouts.response_mask, axis=-1)
  flat = jax.vmap(geometry.is_flat)(groups.rewards)
  everything = jnp.ones_like(lengths, bool)
  return {
    'reward/mean': _mean(groups.rewards, everything),
    'group/flat_frac': _mean(flat, jnp.ones_like(flat)),
    'group/kept_frac': _mean(groups.keep, jnp.ones_like(flat)),
    'response_length/mean': _mean(lengths, everything),
    'actor/skipped_in_row': Mean(skipped.astype(jnp.float32), jnp.float32(1)),
    'response_length/max': Mean(jnp.max(lengths).astype(jnp.float32), jnp.float32(1)),
  }


def _mean(values, mask) -> Mean:
  return Mean(jnp.sum(values, where=mask, dtype=jnp.float32),
              jnp.sum(mask, dtype=jnp.float32))
