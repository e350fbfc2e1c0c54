"""Problems -> Groups: sample K responses to each, decode their text, verify it.

Sampling runs on the device, verification on the host. What a verifier says is checked
here, once for every task: a reward that is not a number in [0, 1] stops the run and
names the problem, because averaged into a group it would poison the whole batch.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np

from lpo_jax import hosts, sampler, tasks
from lpo_jax import metrics as metrics_lib
from lpo_jax import policy as policies
from lpo_jax import tokenizer as tokenizers
from lpo_jax.types import Groups, Mean, Problem, Rollouts


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
  """How responses are drawn."""

  samples_per_prompt: int = 8  # K
  max_new_tokens: int = 1024  # N
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  chunk: int = 128
  prompts_at_once: int = 0  # whose responses are decoded at once; 0 for all
  prompt_buckets: tuple[int, ...] = (64, 128, 256, 512, 1024)
  unroll: bool = True


@dataclasses.dataclass(frozen=True)
class Graded:
  """What the host knows of a batch: texts and verdicts."""

  texts: list[list[str]]  # [B][K]; of this process's own rows alone, where many run
  rewards: np.ndarray  # f32[B, K]
  metrics: dict  # str -> Mean
  rows: np.ndarray | None = None  # i[B'], the own rows; None for all


def encode(problems: Sequence[Problem], tokenizer: tokenizers.Tokenizer,
           buckets: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
  """Return the prompts' tokens i32[B, P], left-padded to a bucket, and their mask.

  Raises:
    ValueError: if a prompt fits no bucket; names the problem.
  """
  return tokenizers.pad_prompts(
    [tokenizer.encode(problem.prompt) for problem in problems], buckets,
    tokenizer.pad_id, [problem.id for problem in problems])


def sample(policy: policies.Policy, prompt: np.ndarray, prompt_mask: np.ndarray,
           key: jax.Array, config: SamplingConfig, tokenizer: tokenizers.Tokenizer,
           mesh: jax.sharding.Mesh, row_ids: np.ndarray | None = None) -> Rollouts:
  """Sample K responses to each encoded prompt, on the mesh."""
  if row_ids is None:
    row_ids = np.arange(len(prompt), dtype=np.int32)
  prompt, prompt_mask, row_ids = hosts.place((prompt, prompt_mask, row_ids), mesh)
  return sampler.sample(
    policy, prompt, prompt_mask, key, row_ids=row_ids,
    samples_per_prompt=config.samples_per_prompt, max_new_tokens=config.max_new_tokens,
    temperature=config.temperature, stop_tokens=tokenizer.stop_tokens,
    top_k=config.top_k, top_p=config.top_p, pad_token=tokenizer.pad_id,
    chunk=config.chunk, prompts_at_once=config.prompts_at_once, unroll=config.unroll)


def decode(rollouts: Rollouts, tokenizer: tokenizers.Tokenizer) -> list[list[str]]:
  """Return the responses' texts, [B][K]."""
  response, mask = jax.device_get((rollouts.response, rollouts.response_mask))
  return [[tokenizer.decode(tokens[real].tolist())
           for tokens, real in zip(*group, strict=True)]
          for group in zip(response, mask, strict=True)]


def grade(task: tasks.base.Task, problems: Sequence[Problem],
          texts: list[list[str]]) -> Graded:
  """Verify every response.

  Raises:
    ValueError: if a reward is not a finite number in [0, 1]; names the problem.
  """
  rewards = np.zeros((len(texts), len(texts[0]) if texts else 0), np.float32)
  found = {}
  for row, (problem, responses) in enumerate(zip(problems, texts, strict=True)):
    for column, text in enumerate(responses):
      reward = float(task.verify(problem, text))
      if not (math.isfinite(reward) and 0.0 <= reward <= 1.0):
        raise ValueError(f'task {task.name!r} gave reward={reward} to a response to '
                         f'problem {problem.id!r}: a verdict must lie in [0, 1]')
      rewards[row, column] = reward
      for name, pair in task.diagnostics(problem, text, reward).items():
        found = metrics_lib.merge(found, {name: Mean(*pair)})
  return Graded(texts, rewards, found)


def share(graded: Graded, rows: np.ndarray, size: int) -> Graded:
  """Return the verdicts of all processes on a batch; texts stay where they are.

  Args:
    graded: the verdicts on this process's own rows.
    rows: their numbers.
    size: B.
  """
  if hosts.alone():
    return graded
  rewards = hosts.gather_rows(graded.rewards.tolist(), rows, size)
  found = {}
  for part in hosts.gather({name: (float(mean.total), float(mean.count))
                            for name, mean in graded.metrics.items()}):
    found = metrics_lib.merge(found, {name: Mean(*pair) for name, pair in part.items()})
  return Graded(graded.texts, np.array(rewards, np.float32), found, rows)


def texts(graded: Graded, count: int) -> list[list[str]]:
  """Return the texts of the first `count` rows, whichever processes have them."""
  if graded.rows is None:
    return graded.texts[:count]
  mine = graded.rows < count
  own = [text for text, wanted in zip(graded.texts, mine, strict=True) if wanted]
  return hosts.gather_rows(own, graded.rows[mine], count)


def stopped(rollouts: Rollouts, stop_tokens: tuple[int, ...]) -> np.ndarray:
  """Return bool[B, K]: whether the response ended by a stop token."""
  response, mask = jax.device_get((rollouts.response, rollouts.response_mask))
  return (np.isin(response, stop_tokens) & mask).any(axis=-1)


def collect(policy: policies.Policy, problems: Sequence[Problem], key: jax.Array,
            task: tasks.base.Task, tokenizer: tokenizers.Tokenizer,
            config: SamplingConfig, mesh: jax.sharding.Mesh,
            phases) -> tuple[Groups, Graded]:
  """Sample and verify one batch.

  Args:
    policy: pi_b.
    problems: B of them.
    key: PRNG key of this step.
    task: verifier.
    tokenizer: of the policy.
    config: how to sample.
    mesh: where.
    phases: timer; `sample` and `grade` are added to.

  Returns:
    Groups on the device, with anchor scores 0 since pi_t = pi_b, and what the host
    knows of them.
  """
  with phases('sample'):
    prompt, mask = encode(problems, tokenizer, config.prompt_buckets)
    rollouts = sample(policy, prompt, mask, key, config, tokenizer, mesh)
    own, rows = hosts.local(rollouts, mesh), hosts.own_rows(len(problems), mesh)
    texts = decode(own, tokenizer)
  with phases('grade'):
    graded = grade(task, [problems[row] for row in rows], texts)
    ended = stopped(own, tokenizer.stop_tokens)
    graded.metrics['response_length/clip_ratio'] = Mean(
      np.float32((~ended).sum()), np.float32(ended.size))
    graded = share(graded, rows, len(problems))
  rewards, anchor, keep = hosts.place(
    (graded.rewards, np.zeros_like(graded.rewards), np.ones(len(problems), bool)), mesh)
  return Groups(rollouts, rewards, anchor, keep), graded
