"""Groups -> a better policy: E epochs of minibatches of whole groups, in one program.

pi_t is the policy as it comes in, and so is pi_b but for groups of some age (`replay`);
w* and the advantages are fixed by the batch's rewards, while P moves with theta from
one minibatch to the next (paper, Algorithm 1). `microbatch` finds each minibatch's
gradient; here it becomes a step of the optimiser, or is refused when it is not finite.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from lpo_jax import microbatch, sequence, sharding, simplex
from lpo_jax import optimizer as optimizers
from lpo_jax.microbatch import UpdateConfig
from lpo_jax.policy import lora
from lpo_jax.simplex import geometry
from lpo_jax.types import Coefficients, Group, Groups, Mean, TrainState


def make_update(objective: Callable[[Group], Coefficients],
                optimizer: optax.GradientTransformation, learning_rate: optax.Schedule,
                config: UpdateConfig):
  """Return the pure function (TrainState, Groups) -> (TrainState, metrics, c).

  c is f32[B, K], each response's coefficients summed over its tokens, as the first
  epoch used them; 0 in groups that do not count.

  A non-finite gradient, or a minibatch in which no group counts, leaves parameters
  and moments as they were; the former is counted in `TrainState.skipped`.
  """

  def update(state: TrainState, groups: Groups):
    groups = kept(groups, config)
    order = jnp.arange(groups.keep.shape[0])
    if config.skip_flat_groups:
      order = microbatch.deal(groups.keep, config)
      groups = jax.tree.map(lambda x: x[order], groups)
    statistics = (*batch_statistics(groups), state.step)
    behavior = _behavior_logprobs(state.params, groups, config)
    batches = sharding.split((groups, behavior), config.updates_per_step)

    def minibatch(state, batch):
      index, (groups, behavior) = batch
      grads, metrics, coefficients = microbatch.gradient(
        objective, state.params, groups, behavior, statistics, index == 0, config)
      state, metrics = _apply(optimizer, learning_rate, state, grads, metrics,
                              groups.keep)
      return state, (metrics, coefficients)

    def epoch(state, number):
      index = number * config.updates_per_step + jnp.arange(config.updates_per_step)
      state, (metrics, coefficients) = jax.lax.scan(minibatch, state, (index, batches))
      return state, (jax.tree.map(jnp.sum, metrics), sharding.joined(coefficients))

    state, (learned, coefficients) = jax.lax.scan(epoch, state,
                                                  jnp.arange(config.epochs))
    metrics = jax.tree.map(jnp.sum, learned) | _batch_metrics(groups, state.skipped)
    coefficients = jnp.zeros_like(coefficients[0]).at[order].set(coefficients[0])
    return state.replace(step=state.step + 1), metrics, coefficients

  return update


def certify(policy, step, groups: Groups,
            target: Callable[[Group], tuple[jax.Array, jax.Array]],
            config: UpdateConfig, score: str = 'mean'):
  """Measure an update with Theorem 2, from the policy after it.

  Args:
    policy: after the update.
    step: i32[], finished iterations before it.
    groups: what it learned from; their sampled log-probabilities stand for pi_b.
    target: the temperature and the anchor of a group's target, see `tilt`.
    config: of the update.
    score: of the objective, `mean` or `sum`.

  Returns:
    metrics over kept groups (`lpo/kl_fwd_after`, `lpo/gain`, `lpo/projection_error`,
    `lpo/improvement`), and log w*, log P before and log P after, each f32[B, K].
  """
  rollouts = groups.rollouts
  logprobs = microbatch.logprobs(policy, rollouts, config)
  groups = kept(groups, config)
  statistics = (*batch_statistics(groups), step)

  def one(group: Group):
    scores = sequence.sequence_scores(group.logprobs, group.behavior_logprobs,
                                      group.mask, score)
    before, (tau, anchor) = group.anchor_scores, target(group)
    log_target = simplex.gibbs_target(group.rewards, tau, anchor)
    found = simplex.certificate(before, scores, group.rewards, tau, anchor)
    values = {'lpo/kl_fwd_after': simplex.forward_kl(scores, log_target),
              'lpo/gain': found.gain, 'lpo/projection_error': found.projection_error,
              'lpo/improvement': found.improvement}
    return values, (log_target, jax.nn.log_softmax(before), jax.nn.log_softmax(scores))

  values, simplexes = jax.vmap(one, in_axes=(microbatch.GROUP_AXES,))(Group(
    logprobs, rollouts.logprobs, rollouts.response_mask, groups.rewards,
    groups.anchor_scores, *statistics))
  metrics = {name: microbatch.mean(value, groups.keep)
             for name, value in values.items()}
  return metrics, simplexes


def _behavior_logprobs(policy, groups: Groups, config: UpdateConfig):
  """Return log pi_b, f32[B, K, N]; None when one update alone uses the batch."""
  if config.behavior == 'sampler':
    return groups.rollouts.logprobs
  if config.updates == 1:
    return None
  return microbatch.logprobs(policy, groups.rollouts, config, groups.keep)


def _apply(optimizer, learning_rate, state: TrainState, grads, metrics, keep):
  """Take one optimiser update unless the gradient is not finite or no group counts."""
  norm = optax.global_norm(grads)
  finite = jnp.isfinite(norm)
  useful = finite & jnp.any(keep)
  count = optax.tree_utils.tree_get_all_with_path(state.opt_state, 'count')[0][1]
  trained, frozen = lora.split(state.params)
  updates, opt_state = optimizer.update(grads, state.opt_state, trained)
  params = optimizers.apply_updates(trained, updates, count)
  params, opt_state = jax.tree.map(
    lambda new, old: jnp.where(useful, new, old), (params, opt_state),
    (trained, state.opt_state))
  params = lora.join(params, frozen)
  one = jnp.float32(1)
  metrics |= {
    'actor/grad_norm': Mean(jnp.where(finite, norm, 0.0), finite.astype(jnp.float32)),
    'actor/lr': Mean(learning_rate(count), one),
    'actor/skipped_frac': Mean(1.0 - finite, one),
    'actor/useful_frac': Mean(useful.astype(jnp.float32), one),
  }
  skipped = jnp.where(finite, 0, state.skipped + 1)
  return state.replace(params=params, opt_state=opt_state, skipped=skipped), metrics


def kept(groups: Groups, config: UpdateConfig) -> Groups:
  """Return the groups with flat ones marked as not counting, if so configured."""
  if not config.skip_flat_groups:
    return groups
  return groups.replace(keep=groups.keep & ~jax.vmap(geometry.is_flat)(groups.rewards))


def batch_statistics(groups: Groups):
  """Return the mean reward and the std of group-centred rewards over kept groups."""
  mean = sequence.masked_mean(groups.rewards, groups.keep[:, None]
                              & jnp.ones_like(groups.rewards, bool))
  return mean, simplex.temperature_batch_std(groups.rewards, where=groups.keep)


def _batch_metrics(groups: Groups, skipped) -> dict:
  rollouts = groups.rollouts
  lengths = jnp.sum(rollouts.response_mask, axis=-1)
  flat = jax.vmap(geometry.is_flat)(groups.rewards)
  newest = jnp.ones_like(flat)  # what the policy does now, not in past groups
  if groups.age is not None:
    newest = groups.age == jnp.min(groups.age)
  everything = newest[:, None] & jnp.ones_like(lengths, bool)
  return {
    # An unbiased estimate of the entropy per token at pi_b, over every response.
    'actor/entropy': microbatch.mean(
      -rollouts.logprobs, newest[:, None, None] & rollouts.response_mask),
    'reward/mean': microbatch.mean(groups.rewards, everything),
    'group/flat_frac': microbatch.mean(flat, newest),
    'group/kept_frac': microbatch.mean(groups.keep, jnp.ones_like(flat)),
    'response_length/mean': microbatch.mean(lengths, everything),
    'actor/skipped_in_row': Mean(skipped.astype(jnp.float32), jnp.float32(1)),
    'response_length/max': Mean(jnp.max(jnp.where(everything, lengths, 0)).astype(
      jnp.float32), jnp.float32(1)),
  }
