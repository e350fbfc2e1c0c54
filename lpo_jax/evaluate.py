"""How good a policy is on held-out problems: mean@n, pass@k, maj@k.

  pass@k = 1 - C(n - c, k) / C(n, k)     c right among n samples, unbiased
                                         (Chen et al. 2021, arXiv:2107.03374)
  maj@n  = is the most frequent answer right?
Standard errors are over problems: sd / sqrt(problems). A response counts as right when
its reward is 1. `val/average/` is the mean over sets, which weigh alike, of what all
have; its mean@n, pass@n and maj@n, written with the letter, take each set at its own n.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence

import jax
import numpy as np

from lpo_jax import metrics as metrics_lib
from lpo_jax import outcomes as outcomes_lib
from lpo_jax import policy as policies
from lpo_jax import resharding, rollout, tasks
from lpo_jax import tokenizer as tokenizers
from lpo_jax.types import Problem

RIGHT = 1.0


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """What is measured."""

  samples: int = 16  # n
  drawn: int = 0  # responses to each problem, if more than n
  pass_at: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)  # k; those above `drawn` left out
  batch: int = 64  # problems decoded at once

  @property
  def responses(self) -> int:
    """Responses to each problem."""
    return max(self.samples, self.drawn)

  def narrow(self) -> 'EvalConfig':
    """Return the same with n responses to each problem and no more."""
    return dataclasses.replace(self, drawn=0)


def held_out(task: tasks.base.Task, most: int,
             shuffle_images: bool = False) -> dict[str, tasks.base.EvalSet]:
  """Return the task's evaluation sets, each of its first `most` problems.

  With `shuffle_images` they are called NAME_shuffled: see `with_images_of_others`.

  Raises:
    ValueError: a set without problems, with a name that no file or metric can have,
      or with an n or temperature that cannot be.
  """
  sets = {name: dataclasses.replace(found, problems=found.problems[:most])
          for name, found in task.eval_sets().items()}
  for name, found in sets.items():
    if name == 'average' or not re.fullmatch(r'\w[\w.-]*', name):
      raise ValueError(f'evaluation set {name!r}: give it a name of letters, digits, '
                       "'_', '.' and '-', and not 'average'")
    samples, temperature = found.samples, found.temperature
    if not len(found.problems) or (samples is not None and samples < 1) or (
        temperature is not None and temperature < 0):
      raise ValueError(
        f'evaluation set {name!r} has {len(found.problems)} problems, samples={samples}'
        f', temperature={temperature}: need at least one problem, samples >= 1 and '
        "temperature >= 0, or None for the run's own")
  if not shuffle_images:
    return sets
  return {f'{name}_shuffled': dataclasses.replace(
    found, problems=with_images_of_others(found.problems))
    for name, found in sets.items()}


def with_images_of_others(problems: Sequence[Problem]) -> list[Problem]:
  """Return problems whose images are another's, to see whether a policy looks.

  Among problems with equally many images, each has those of the one half of them away.

  Raises:
    ValueError: a problem without images, or with more or fewer than all others.
  """
  alike = {}
  for index, problem in enumerate(problems):
    alike.setdefault(len(problem.images or ()), []).append(index)
  found = list(problems)
  for count, indices in alike.items():
    if not count or len(indices) < 2:
      raise ValueError(f'eval.shuffle_images: problem {problems[indices[0]].id!r} has '
                       f'{count} images, and no other to change them with')
    half = len(indices) // 2
    for mine, other in zip(indices, indices[half:] + indices[:half], strict=True):
      found[mine] = dataclasses.replace(problems[mine], images=problems[other].images)
  return found


def pass_at_k(right: np.ndarray, samples: int, k: int) -> np.ndarray:
  """Return the unbiased estimate of P(at least one of k samples is right).

  Args:
    right: i[problems], how many of the samples were right.
    samples: n.
    k: at most n.

  Returns:
    f64[problems].

  Raises:
    ValueError: unless 1 <= k <= n.
  """
  if not 1 <= k <= samples:
    raise ValueError(f'k={k}: pass@k of {samples} samples needs 1 <= k <= {samples}')
  wrong = samples - np.asarray(right)
  # C(n - c, k) / C(n, k) as a product of k ratios, 0 as soon as one factor is.
  factors = (wrong[:, None] - np.arange(k)) / (samples - np.arange(k))
  return 1.0 - np.prod(np.maximum(factors, 0.0), axis=1)


def majority_right(answers: Sequence[str | None], right: np.ndarray) -> float:
  """Return 1.0 when the most frequent answer is right; ties go to the earliest.

  Args:
    answers: one key per sample; None does not vote.
    right: bool[n].
  """
  votes = Counter(answer for answer in answers if answer is not None)
  if not votes:
    return 0.0
  winner = votes.most_common(1)[0][0]
  return float(right[list(answers).index(winner)])


def settings(asked: tasks.base.EvalSet, sampling: rollout.SamplingConfig,
             config: EvalConfig) -> tuple[rollout.SamplingConfig, EvalConfig]:
  """Return how one set is asked and measured: its own way before the run's."""
  if asked.temperature is not None:
    sampling = dataclasses.replace(sampling, temperature=asked.temperature)
  if asked.samples is not None:
    config = dataclasses.replace(config, samples=asked.samples, drawn=0)
  at_once = min(sampling.samples_per_prompt, config.responses)
  return dataclasses.replace(sampling, samples_per_prompt=at_once), config


def evaluate(policy: policies.Policy, name: str, asked: tasks.base.EvalSet,
             task: tasks.base.Task, tokenizer: tokenizers.Tokenizer, key: jax.Array,
             sampling: rollout.SamplingConfig, config: EvalConfig,
             mesh: jax.sharding.Mesh, records: outcomes_lib.Records | None = None,
             ) -> dict[str, float]:
  """Sample responses to every problem of a set and score them.

  The responses are drawn K at a time, in the shapes that training compiled unless
  fewer than K are asked for. A problem's samples depend on (key, its index), not on
  the batch it falls into.

  Args:
    policy: to judge.
    name: of the set.
    asked: problems, and the set's own n and temperature if it has them.
    task: verifier.
    tokenizer: of the policy.
    key: PRNG key; the same key gives the same samples.
    sampling: how to sample.
    config: what to measure.
    mesh: where the policy is.
    records: where outcomes are kept, and those that need not be asked again.

  Returns:
    name -> number, names as `val/<set>/mean@16`, `..._stderr`; the task's diagnostics;
    `truncated_frac` and `answer_missing_frac`, shares of the responses.
  """
  sampling, config = settings(asked, sampling, config)
  onto = sampling.where(mesh)
  if sampling.copy_weights:
    policy = resharding.copied(policy, mesh, onto)
  outcomes, metrics = ([], {}) if records is None else records.kept()
  starts = range(len(outcomes), len(asked.problems), config.batch)
  batches = [list(asked.problems[start:start + config.batch]) for start in starts]
  waiting = (outcomes_lib.ask(
    policy, batch, start, config.batch, config.responses, task, tokenizer, key,
    sampling, onto, records is not None)
    for start, batch in zip(starts, batches, strict=True))
  for batch, judged in zip(batches, outcomes_lib.one_behind(waiting), strict=True):
    found, more = judged()
    if records is not None:
      records.add(batch, found, more)
    outcomes += [dataclasses.replace(outcome, responses=[]) for outcome in found]
    metrics = metrics_lib.merge(metrics, more)
  numbers = {}
  for score, values in scores(outcomes, config).items():
    numbers[score] = float(values.mean())
    numbers[f'{score}_stderr'] = float(values.std() / np.sqrt(len(values)))
  numbers['truncated_frac'] = float(np.mean([o.truncated for o in outcomes]))
  numbers['answer_missing_frac'] = float(np.mean(
    [[vote is None for vote in o.votes] for o in outcomes]))
  numbers |= {key: float(value) for key, value in metrics.items()}
  return {f'val/{name}/{key}': value for key, value in numbers.items()}


def scores(outcomes: Sequence[outcomes_lib.Outcome],
           config: EvalConfig) -> dict[str, np.ndarray]:
  """Return score -> f64[problems]: mean@m and maj@m at n and at all drawn, pass@k.

  mean@m and maj@m are of the first m responses, pass@k is estimated from all.
  """
  right = np.array([outcome.rewards for outcome in outcomes]) >= RIGHT
  drawn, result = config.responses, {}
  for m in sorted({config.samples, drawn}):
    result[f'mean@{m}'] = right[:, :m].mean(axis=1)
    result[f'maj@{m}'] = np.array(
      [majority_right(outcome.votes[:m], verdicts[:m])
       for outcome, verdicts in zip(outcomes, right, strict=True)])
  for k in sorted({*config.pass_at, config.samples, drawn}):
    if k <= drawn:
      result[f'pass@{k}'] = pass_at_k(right.sum(axis=1), drawn, k)
  return result


def evaluate_sets(policy: policies.Policy, sets: dict[str, tasks.base.EvalSet],
                  task: tasks.base.Task, tokenizer: tokenizers.Tokenizer,
                  key: jax.Array, sampling: rollout.SamplingConfig, config: EvalConfig,
                  mesh: jax.sharding.Mesh,
                  records: dict[str, outcomes_lib.Records] | None = None,
                  ) -> dict[str, dict[str, float]]:
  """Return set -> what `evaluate` says of it, and `average` if there are several.

  `records` holds those of each set; None keeps nothing.
  """
  found = {name: evaluate(policy, name, asked, task, tokenizer, key, sampling,
                          config, mesh, records and records[name])
           for name, asked in sets.items()}
  if len(found) == 1:
    return found
  return found | {'average': average(found, {
    name: settings(asked, sampling, config)[1].samples
    for name, asked in sets.items()})}


def average(found: dict[str, dict[str, float]],
            samples: dict[str, int]) -> dict[str, float]:
  """Return `val/average/...`: the mean over sets of what every set has.

  Args:
    found: set -> what `evaluate` returned for it; sets weigh alike.
    samples: set -> its n, at which mean@n, pass@n and maj@n take it.

  Returns:
    name -> number; standard errors are those of the mean of independent sets.
  """
  rows = []
  for name, numbers in found.items():
    row = {key.removeprefix(f'val/{name}/'): value for key, value in numbers.items()}
    rows.append(row | {f'{score}@n{end}': row[f'{score}@{samples[name]}{end}']
                       for score in ('mean', 'pass', 'maj') for end in ('', '_stderr')})
  shared = [key for key in rows[0] if all(key in row for row in rows)]
  result = {}
  for key in shared:
    values = np.array([row[key] for row in rows])
    mean = (np.linalg.norm(values) / len(values) if key.endswith('_stderr')
            else values.mean())
    result[f'val/average/{key}'] = float(mean)
  return result
