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
from typing import Protocol

import jax
import numpy as np

from lpo_jax import hosts, rollout, tasks
from lpo_jax import metrics as metrics_lib
from lpo_jax import policy as policies
from lpo_jax import tokenizer as tokenizers
from lpo_jax.types import Mean, Problem

RIGHT = 1.0
_COSTS = ('grading/queue_s',)  # of the machine, not of the policy


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


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What became of one problem: an entry for each response."""

  rewards: list[float]
  votes: list[str | None]  # equal answers have equal keys; None: no answer was found
  truncated: list[bool]  # it did not end by a stop token
  lengths: list[int]  # tokens
  responses: list[str] = dataclasses.field(default_factory=list)  # for records only


class Records(Protocol):
  """Where the outcomes of one set are kept; see `records.Records`."""

  def kept(self) -> tuple[list[Outcome], dict[str, Mean]]:
    """Return those of the first problems, from an evaluation cut short."""
    ...

  def add(self, problems: Sequence[Problem], outcomes: list[Outcome],
          metrics: dict[str, Mean]) -> None:
    """Keep those of the next problems."""
    ...


def held_out(task: tasks.base.Task, most: int) -> dict[str, tasks.base.EvalSet]:
  """Return the task's evaluation sets, each of its first `most` problems.

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
  return sets


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
             mesh: jax.sharding.Mesh, records: Records | None = None,
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
    mesh: where.
    records: where outcomes are kept, and those that need not be asked again.

  Returns:
    name -> number, names as `val/<set>/mean@16`, `..._stderr`; the task's diagnostics;
    `truncated_frac` and `answer_missing_frac`, shares of the responses.
  """
  sampling, config = settings(asked, sampling, config)
  outcomes, metrics = ([], {}) if records is None else records.kept()
  for start in range(len(outcomes), len(asked.problems), config.batch):
    batch = list(asked.problems[start:start + config.batch])
    found, more = _ask(policy, batch, start, task, tokenizer, key, sampling, config,
                       mesh, with_texts=records is not None)
    if records is not None:
      records.add(batch, found, more)
    outcomes, metrics = outcomes + found, metrics_lib.merge(metrics, more)
  numbers = {}
  for score, values in scores(outcomes, config).items():
    numbers[score] = float(values.mean())
    numbers[f'{score}_stderr'] = float(values.std() / np.sqrt(len(values)))
  numbers['truncated_frac'] = float(np.mean([o.truncated for o in outcomes]))
  numbers['answer_missing_frac'] = float(np.mean(
    [[vote is None for vote in o.votes] for o in outcomes]))
  numbers |= {key: float(value) for key, value in metrics.items()}
  return {f'val/{name}/{key}': value for key, value in numbers.items()}


def scores(outcomes: Sequence[Outcome], config: EvalConfig) -> dict[str, np.ndarray]:
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
                  mesh: jax.sharding.Mesh, records: dict[str, Records] | None = None,
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


def _ask(policy, problems, start, task, tokenizer, key, sampling, config, mesh,
         with_texts: bool) -> tuple[list[Outcome], dict[str, Mean]]:
  """Return the outcomes of at most `config.batch` problems, on every process."""
  short = config.batch - len(problems)  # filled up, so that one shape serves all
  prompt, mask = rollout.encode(problems + problems[:1] * short, tokenizer,
                                sampling.prompt_buckets)
  row_ids = np.arange(start, start + config.batch, dtype=np.int32)
  rows = hosts.own_rows(config.batch, mesh)
  rows = rows[rows < len(problems)]
  own = [problems[row] for row in rows]
  texts, ended, lengths = ([[] for _ in own] for _ in range(3))
  for index in range(-(-config.responses // sampling.samples_per_prompt)):
    rollouts = hosts.local(
      rollout.sample(policy, prompt, mask, jax.random.fold_in(key, index), sampling,
                     tokenizer, mesh, row_ids), mesh)
    for known, more in (
        (texts, rollout.decode(rollouts, tokenizer)),
        (ended, rollout.stopped(rollouts, tokenizer.stop_tokens).tolist()),
        (lengths, jax.device_get(rollouts.response_mask).sum(axis=-1).tolist())):
      for mine, its in zip(known, more, strict=False):
        mine += its
  count = config.responses
  graded = rollout.grade(task, own, [mine[:count] for mine in texts])
  parts = [
    {'votes': [task.answer(problem, text) for text in mine],
     'truncated': [not end for end in ends[:count]], 'lengths': sizes[:count]} |
    ({'responses': mine} if with_texts else {})
    for problem, mine, ends, sizes in zip(own, graded.texts, ended, lengths,
                                          strict=True)]
  graded = rollout.share(graded, rows, len(problems))
  outcomes = [Outcome(rewards, **part) for rewards, part in zip(
    graded.rewards.tolist(), hosts.gather_rows(parts, rows, len(problems)),
    strict=True)]
  return outcomes, {name: Mean(float(mean.total), float(mean.count))
                    for name, mean in graded.metrics.items() if name not in _COSTS}
