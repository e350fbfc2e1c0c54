"""Where a step's groups come from, each a pure function of (seed, step, policy).

Sampled to the training problems, all of them or with a share of local groups
(`step_level`); or taken from the fixed lists of a file (`offline`). And the
demonstrations of the warm start.
"""

import dataclasses
import os
from collections.abc import Sequence

import jax
import numpy as np

from lpo_jax import (
  hosts,
  microbatch,
  offline,
  prompts,
  rollout,
  step_level,
  tasks,
  warmstart,
  workdir,
)
from lpo_jax.types import Groups, Problem, Rollouts

REFERENCE = 'reference.npz'  # of a run: log pi_b of its lists, where they do not say
_LOCAL = 2**32 - 1  # no row of a batch has this number


@dataclasses.dataclass(frozen=True)
class Batch:
  """What one step learns from."""

  problems: Sequence[Problem]  # B of them; of local groups with their prefix
  groups: Groups
  graded: rollout.Graded  # what the host knows of the new ones
  local: int = 0  # the last so many are local
  new: Groups | None = None  # of `groups`, those that come with it; None for all
  metrics: dict = dataclasses.field(default_factory=dict)  # str -> Mean, on the device

  @property
  def fresh(self) -> Groups:
    """Return the groups that were sampled for this step, which come first."""
    return self.groups if self.new is None else self.new

  def shown(self, count: int) -> list[int]:
    """Return about `count` rows to look at: local ones in their share."""
    size = len(self.problems)
    count = min(count, size)
    local = -(-count * self.local // size)
    return [*range(count - local), *range(size - local, size)]

  def texts(self, rows: Sequence[int]) -> list[list[str]]:
    """Return the texts of some rows, ascending; see `rollout.texts`."""
    return rollout.texts(self.graded, rows)


def collect(config, parts, params, step: int, key: jax.Array, phases,
            log_behavior: np.ndarray | None = None) -> Batch:
  """Return the groups of one step.

  Args:
    config: of the run.
    parts: of the run, see `build.Parts`.
    params: the policy, pi_b of what is sampled.
    step: from 1.
    key: PRNG key of this step.
    phases: timer.
    log_behavior: of fixed lists, see `reference`.
  """
  if parts.lists is not None:
    return _listed(config, parts, step, log_behavior)

  def sample(problems, key, sampling):
    return rollout.collect(params, problems, key, parts.task, parts.tokenizer, sampling,
                           parts.mesh, phases, parts.reward)

  problems, level = training_problems(config, parts, step), parts.step_level
  groups, graded = sample(problems, key, parts.sampling)
  if level is None:
    return Batch(problems, groups, graded)
  begun = step_level.begin(problems, groups, parts.task, parts.tokenizer, level,
                           config.seed, step)
  local, more = sample(begun, jax.random.fold_in(key, _LOCAL),
                       step_level.widened(parts.sampling, level))
  return Batch([*problems, *begun],
               step_level.join(groups, local, parts.tokenizer.pad_id),
               step_level.merge(graded, more, begun), level.local)


def training_problems(config, parts, step: int) -> list[Problem]:
  """Return the problems that one step, from 1, samples whole responses to."""
  prompts = config.prompts_per_step
  count = prompts - (parts.step_level.local if parts.step_level else
                     parts.staleness.past(prompts))
  indices = tasks.base.problem_indices(len(parts.train_problems), config.seed, step - 1,
                                       prompts)
  return [parts.train_problems[int(i)] for i in indices[:count]]


def check_task(parts, task: tasks.base.Task, problem) -> None:
  """Raise a ValueError unless the task says of a problem what the run asks it for."""
  asked = []
  if parts.warmstart is not None:
    asked.append(('warmstart.steps', lambda: task.demonstration(problem)))
  if parts.step_level is not None:
    asked.append(('step_level.fraction', lambda: task.step_ends(problem, '')))
  for field, ask in asked:
    try:
      ask()
    except NotImplementedError as error:
      raise ValueError(f'{field}: {error}') from error


def warmstart_batch(config, parts, step: int) -> Rollouts:
  """Return the demonstrations of one warm-start step, from a stream of their own."""
  stream = int(jax.random.bits(jax.random.fold_in(jax.random.key(config.seed), 1)))
  indices = tasks.base.problem_indices(len(parts.train_problems), stream, step,
                                       config.warmstart.batch)
  return warmstart.demonstrations(
    [parts.train_problems[int(i)] for i in indices], parts.task, parts.tokenizer,
    parts.sampling.prompt_buckets, parts.sampling.max_new_tokens,
    parts.sampling.processor)


def lists(config, parts, tokenizer) -> offline.Lists | None:
  """Return the fixed lists of a run; None where it samples.

  Raises:
    ValueError: the file, or what is to be learned from it, cannot be.
  """
  if not config.offline.path:
    return None
  if parts.step_level or parts.sampling.processor:
    raise ValueError(f'offline.path={config.offline.path!r} takes neither '
                     'step_level.fraction > 0 nor a policy that reads images')
  found = offline.read(config.offline.path, tokenizer, config.samples_per_prompt,
                       config.sampling.max_new_tokens, config.offline.rewards)
  offline.check(found, parts.objective, config.objective.behavior)
  prompts.encode_text(found.problems, tokenizer, parts.sampling.prompt_buckets)
  return found


def reference(config, parts, params, step: int, folder: str) -> np.ndarray | None:
  """Return log pi_b of the lists, f32[M, K, N]; None where the run samples.

  Where the lists do not say, it is the policy before the first step: computed there,
  and kept in the run's folder.

  Args:
    config: of the run.
    parts: of the run.
    params: the policy after `step` steps.
    step: from which the run goes on.
    folder: of the run.

  Raises:
    ValueError: the folder does not hold it any more.
  """
  if parts.lists is None or parts.lists.logprobs is not None:
    return parts.lists and parts.lists.logprobs
  path = os.path.join(folder, REFERENCE)
  if step:
    return workdir.read_array(path, parts.lists.mask.shape)
  measure = jax.jit(lambda params, rollouts: microbatch.logprobs(
    params, rollouts, parts.update))
  size, found = config.prompts_per_step, np.zeros(parts.lists.mask.shape, np.float32)
  for start in range(0, len(found), size):
    rows = np.arange(start, start + size) % len(found)  # one shape: the last goes on
    rollouts = hosts.place(_rollouts(parts, rows, found), parts.mesh)
    found[rows] = hosts.fetch(measure(params, rollouts))
  workdir.write_array(path, found)
  return found


def _listed(config, parts, step: int, log_behavior: np.ndarray) -> Batch:
  """Return the lists of one step as groups: anchored where pi_b stands."""
  lists = parts.lists
  rows = tasks.base.problem_indices(len(lists.texts), config.seed, step - 1,
                                    config.prompts_per_step)
  rewards = lists.rewards[rows]
  groups = Groups(_rollouts(parts, rows, log_behavior), rewards, np.zeros_like(rewards),
                  np.ones(len(rows), bool))
  return Batch([lists.problems[row] for row in rows], hosts.place(groups, parts.mesh),
               rollout.Graded([lists.texts[row] for row in rows], rewards, {}))


def _rollouts(parts, rows: np.ndarray, log_behavior: np.ndarray) -> Rollouts:
  lists = parts.lists
  encoded = prompts.encode([lists.problems[row] for row in rows], parts.tokenizer,
                           parts.sampling.prompt_buckets)
  return Rollouts(encoded.tokens, encoded.mask, lists.response[rows], lists.mask[rows],
                  log_behavior[rows])
