"""Local simplices: groups whose K responses share the first steps of a sampled one.

From a response y to x take a prefix y_<i that ends where the task says a step ends,
sample K continuations z_k of it, and judge y_<i z_k as a whole. The simplex is that of
the continuations, s_k = log pi_theta(z_k | x, y_<i) - log pi_b(z_k | x, y_<i), so the
group is one like any other whose prompt is x y_<i: target, projection, coefficients and
flat groups are those of `objective`. What differs is what is compared: responses that
agree up to a step, so that what they earn is due to what follows it.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lpo_jax import hosts, rollout, sharding, tasks
from lpo_jax import metrics as metrics_lib
from lpo_jax import tokenizer as tokenizers
from lpo_jax.types import Groups, Mean, Prefix, Problem

_STREAM = 5  # beside those of `train`


@dataclasses.dataclass(frozen=True)
class StepLevel:
  """How many groups of a batch are local, and how far they may share."""

  local: int  # groups; the others are at the sequence level
  prefix: int  # most tokens of a prefix


def plan(fraction: float, prefix: int, prompts: int, width: int, at_once: int = 0,
         shards: int = 1) -> StepLevel | None:
  """Return the choices of a run; None where every group is at the sequence level.

  Args:
    fraction: share of the groups that are local.
    prefix: most tokens of a prefix; 0 for half of N.
    prompts: B.
    width: N.
    at_once: prompts decoded at once; 0 for all.
    shards: parts that the mesh splits a batch into.

  Raises:
    ValueError: names the value that cannot be, and the remedy.
  """
  if not 0 <= fraction < 1:
    raise ValueError(f'step_level.fraction={fraction}: must be at least 0 and below 1, '
                     'since prefixes come from responses of the sequence level')
  if prefix < 0 or prefix >= width:
    raise ValueError(f'step_level.prefix={prefix}: must be from 0 (half of it) to '
                     f'below sampling.max_new_tokens={width}')
  if not fraction:
    return None
  local = round(fraction * prompts)
  for name, count in (('local', local), ('other', prompts - local)):
    if count < 1 or count % shards or (at_once and count % at_once):
      raise ValueError(
        f'step_level.fraction={fraction} of prompts_per_step={prompts} makes {count} '
        f'{name} groups: need at least 1, split over the {shards} batch shards of the '
        f'mesh and divided by sampling.prompts_at_once={at_once or count}')
  return StepLevel(local, prefix or max(width // 2, 1))


def widened(config: rollout.SamplingConfig, level: StepLevel) -> rollout.SamplingConfig:
  """Return how continuations are drawn: prompts may be longer by a prefix."""
  return dataclasses.replace(config, prompt_buckets=tuple(
    bucket + level.prefix for bucket in config.prompt_buckets))


def begin(problems: Sequence[Problem], groups: Groups, task: tasks.base.Task,
          tokenizer: tokenizers.Tokenizer, level: StepLevel, seed: int,
          step: int) -> list[Problem]:
  """Return the problems of the local groups, each with the prefix of a response.

  Problems whose responses earned unlike rewards are taken in a random order, each once
  before any twice: from where all fail, or none, little is learned. Of a problem a
  random response, better than its group's mean where one of those has a step that ends,
  and of that a random step. Without any such problem the others serve; where no
  response has a step, the local groups begin at the prompt.

  Args:
    problems: of the sequence level, B - L.
    groups: their responses and rewards.
    task: says where steps end.
    tokenizer: of the policy.
    level: how many, and how far.
    seed: of the run; with `step` it decides what is taken.
    step: from 1.
  """
  rng = np.random.default_rng([seed, step, _STREAM])
  rollouts, found = groups.rollouts, []
  response, mask, rewards = hosts.fetch(
    (rollouts.response, rollouts.response_mask, groups.rewards))
  order = [int(row) for row in rng.permutation(len(problems))]
  unlike = [row for row in order if np.ptp(rewards[row]) > 0]
  for able in (unlike, order):
    while able and len(found) < level.local:
      rows, able = able, []
      for row in rows:
        prefix = len(found) < level.local and _prefix(
          problems[row], response[row], mask[row], rewards[row], task, tokenizer,
          level.prefix, rng)
        if prefix:
          able.append(row)
          found.append(dataclasses.replace(problems[row], prefix=prefix))
  return found or [problems[order[i % len(order)]] for i in range(level.local)]


def _prefix(problem: Problem, response, mask, rewards, task, tokenizer, most: int,
            rng) -> Prefix | None:
  """Return the beginning of one of a problem's K responses, up to a step's end."""
  order = rng.permutation(len(response))
  worse = rewards[order] <= rewards.mean()
  for k in order[np.argsort(worse, kind='stable')]:
    tokens = response[k][mask[k]].tolist()
    text = tokenizer.decode(tokens)
    ends = [end for end in task.step_ends(problem, text) if 0 < end < len(text)]
    for end in rng.permutation(np.array(ends, int)):
      count = count_tokens(tokens, text[:end], tokenizer)
      if count is not None and count <= most and count < len(tokens):
        return Prefix(tuple(tokens[:count]), text[:end])
  return None


def count_tokens(tokens: Sequence[int], text: str,
                 tokenizer: tokenizers.Tokenizer) -> int | None:
  """Return how many of the first tokens decode to `text`; None if no number does."""
  low, high = 0, len(tokens)
  while low < high:  # the fewest whose text is as long
    middle = (low + high) // 2
    if len(tokenizer.decode(tokens[:middle])) < len(text):
      low = middle + 1
    else:
      high = middle
  return low if tokenizer.decode(tokens[:low]) == text else None


def join(groups: Groups, local: Groups, pad_token: int) -> Groups:
  """Return both as one batch, the local ones last, prompts as wide as the widest."""
  width = max(part.rollouts.prompt.shape[1] for part in (groups, local))
  return _join(groups, local, width=width, pad_token=pad_token)


@functools.partial(jax.jit, static_argnames=('width', 'pad_token'))
def _join(*parts: Groups, width: int, pad_token: int) -> Groups:
  def padded(groups: Groups) -> Groups:
    rollouts = groups.rollouts
    room = ((0, 0), (width - rollouts.prompt.shape[1], 0))
    return groups.replace(rollouts=rollouts.replace(
      prompt=jnp.pad(rollouts.prompt, room, constant_values=pad_token),
      prompt_mask=jnp.pad(rollouts.prompt_mask, room)))

  return jax.tree.map(lambda *x: sharding.constrain_batch(jnp.concatenate(x)),
                      *map(padded, parts))


def merge(graded: rollout.Graded, local: rollout.Graded,
          problems: Sequence[Problem]) -> rollout.Graded:
  """Return what the host knows of both; `reward/*` stays the sequence level's.

  Args:
    graded: of the sequence level.
    local: of the local groups; its `reward/*` become `step_level/*`.
    problems: of the local groups.
  """
  found, judging = {}, {}
  for name, mean in local.metrics.items():
    room, _, own = name.partition('/')
    if room in ('reward', 'response_length'):
      found[f'step_level/{own}'] = mean
    else:
      judging[name] = mean
  lengths = np.array([len(problem.prefix.tokens) if problem.prefix else 0
                      for problem in problems])
  flat = np.ptp(local.rewards, axis=1) == 0
  for name, values in (('flat_frac', flat), ('prefixed_frac', lengths > 0),
                       ('prefix_tokens', lengths)):
    found[f'step_level/{name}'] = Mean(np.float32(values.sum()),
                                       np.float32(len(problems)))
  rows = None if graded.rows is None else np.concatenate(
    [graded.rows, len(graded.rewards) + local.rows])
  return rollout.Graded(graded.texts + local.texts,
                        np.concatenate([graded.rewards, local.rewards]),
                        metrics_lib.merge(graded.metrics, judging) | found, rows)
