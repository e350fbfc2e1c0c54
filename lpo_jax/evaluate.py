"""How good a policy is on held-out problems: mean@n, pass@k, maj@k.

  pass@k = 1 - C(n - c, k) / C(n, k)     c right among n samples, unbiased
                                         (Chen et al. 2021, arXiv:2107.03374)
  maj@n  = is the most frequent answer right?
Standard errors are over problems: sd / sqrt(problems). A response counts as right when
its reward is 1.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence

import jax
import numpy as np

from lpo_jax import hosts, rollout, tasks
from lpo_jax import policy as policies
from lpo_jax import tokenizer as tokenizers
from lpo_jax.types import Problem

RIGHT = 1.0


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """What is measured."""

  samples: int = 16  # n
  pass_at: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)  # k; those above n are left out
  batch: int = 64  # problems decoded at once


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


def evaluate(policy: policies.Policy, problems: Sequence[Problem],
             task: tasks.base.Task, tokenizer: tokenizers.Tokenizer, key: jax.Array,
             sampling: rollout.SamplingConfig, config: EvalConfig,
             mesh: jax.sharding.Mesh, mean_at: Sequence[int] = (),
             name: str = '') -> dict[str, float]:
  """Sample n responses to every problem and score them.

  The responses are drawn K at a time in the shapes that training compiled. A
  problem's samples depend on (key, its index), not on the batch it falls into.

  Args:
    policy: to judge.
    problems: held-out.
    task: verifier.
    tokenizer: of the policy.
    key: PRNG key; the same key gives the same samples.
    sampling: how to sample; its K is drawn per round.
    config: what to measure.
    mesh: where.
    mean_at: also report mean@m and maj@m over the first m samples, for each m <= n.
    name: of the set; '' for the task's.

  Returns:
    name -> number, names as `val/<set>/mean@16`, `..._stderr`.
  """
  rewards, answers, found = [], [], {}
  for start in range(0, len(problems), config.batch):
    batch = list(problems[start:start + config.batch])
    graded, voted = _sample_batch(policy, batch, start, task, tokenizer, key, sampling,
                                  config, mesh)
    rewards.append(graded.rewards)
    answers += voted
    found = rollout.metrics_lib.merge(found, graded.metrics)
  right = np.concatenate(rewards) >= RIGHT
  scores = {}
  for m in sorted({*mean_at, config.samples}):
    if m <= config.samples:
      scores[f'mean@{m}'] = right[:, :m].mean(axis=1)
      scores[f'maj@{m}'] = np.array([majority_right(votes[:m], verdicts[:m])
                                     for votes, verdicts in zip(answers, right,
                                                                strict=True)])
  for k in config.pass_at:
    if k <= config.samples:
      scores[f'pass@{k}'] = pass_at_k(right.sum(axis=1), config.samples, k)
  prefix = f'val/{name or task.name}'
  result = {}
  for score, values in scores.items():
    result[f'{prefix}/{score}'] = float(values.mean())
    result[f'{prefix}/{score}_stderr'] = float(values.std() / np.sqrt(len(values)))
  result |= {f'{prefix}/{key}': float(value) for key, value in found.items()}
  return result


def evaluate_sets(policy: policies.Policy, sets: dict[str, tasks.base.EvalSet],
                  task: tasks.base.Task, tokenizer: tokenizers.Tokenizer,
                  key: jax.Array, sampling: rollout.SamplingConfig, config: EvalConfig,
                  mesh: jax.sharding.Mesh, mean_at: Sequence[int] = (),
                  ) -> dict[str, dict[str, float]]:
  """Return set -> what `evaluate` says of it, and `average` if there are several."""
  found = {}
  for name, held_out in sets.items():
    chosen, measured = sampling, config
    if held_out.temperature is not None:
      chosen = dataclasses.replace(sampling, temperature=held_out.temperature)
    if held_out.samples is not None:
      measured = dataclasses.replace(config, samples=held_out.samples)
    found[name] = evaluate(policy, held_out.problems, task, tokenizer, key, chosen,
                           measured, mesh, mean_at, name)
  return found | {'average': average(found)} if len(found) > 1 else found


def average(found: dict[str, dict[str, float]]) -> dict[str, float]:
  """Return `val/average/...`: the mean over sets of what every set has.

  Args:
    found: set -> what `evaluate` returned for it; sets weigh alike.

  Returns:
    name -> number; standard errors are those of the mean of independent sets.
  """
  rows = [{key.removeprefix(f'val/{name}/'): value for key, value in numbers.items()}
          for name, numbers in found.items()]
  shared = [key for key in rows[0] if all(key in row for row in rows)]
  result = {}
  for key in shared:
    values = np.array([row[key] for row in rows])
    mean = (np.linalg.norm(values) / len(values) if key.endswith('_stderr')
            else values.mean())
    result[f'val/average/{key}'] = float(mean)
  return result


def _sample_batch(policy, problems, start, task, tokenizer, key, sampling, config,
                  mesh) -> tuple[rollout.Graded, list[list[str | None]]]:
  """Return n graded responses to each of at most `config.batch` problems, and votes."""
  short = config.batch - len(problems)  # filled up, so that one shape serves all
  prompt, mask = rollout.encode(problems + problems[:1] * short, tokenizer,
                                sampling.prompt_buckets)
  row_ids = np.arange(start, start + config.batch, dtype=np.int32)
  rows = hosts.own_rows(config.batch, mesh)
  rows = rows[rows < len(problems)]
  own = [problems[row] for row in rows]
  texts = [[] for _ in own]
  for index in range(-(-config.samples // sampling.samples_per_prompt)):
    rollouts = rollout.sample(policy, prompt, mask, jax.random.fold_in(key, index),
                              sampling, tokenizer, mesh, row_ids)
    found = rollout.decode(hosts.local(rollouts, mesh), tokenizer)
    for mine, more in zip(texts, found, strict=False):
      mine += more
  graded = rollout.grade(task, own, [mine[:config.samples] for mine in texts])
  votes = [[task.answer(problem, text) for text in mine]
           for problem, mine in zip(own, graded.texts, strict=True)]
  return (rollout.share(graded, rows, len(problems)),
          hosts.gather_rows(votes, rows, len(problems)))
