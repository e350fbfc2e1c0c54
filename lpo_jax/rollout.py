"""Problems -> Groups: sample K responses to each, decode their text, verify it.

Sampling runs on the device, verification on the host. What a verifier says is checked
here, once for every task: a reward that is not a number in [0, 1] stops the run and
names the problem, because averaged into a group it would poison the whole batch.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lpo_jax import hosts, images, prompts, sampler, sharding, tasks
from lpo_jax import metrics as metrics_lib
from lpo_jax import policy as policies
from lpo_jax import rewards as rewards_lib
from lpo_jax import tokenizer as tokenizers
from lpo_jax.types import Groups, Images, Mean, Problem, Responses, Rollouts

_VERDICT_ALONE = rewards_lib.Weights()


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
  processor: images.Processor | None = None  # None: the policy reads text only


@dataclasses.dataclass(frozen=True)
class Graded:
  """What the host knows of a batch: texts and verdicts."""

  texts: list[list[str]]  # [B][K]; of this process's own rows alone, where many run
  rewards: np.ndarray  # f32[B, K]
  metrics: dict  # str -> Mean
  rows: np.ndarray | None = None  # i[B'] of this process; None for all


def encode(problems: Sequence[Problem], tokenizer: tokenizers.Tokenizer,
           config: SamplingConfig) -> prompts.Prompts:
  """Return the problems' prompts; see `prompts.encode`."""
  return prompts.encode(problems, tokenizer, config.prompt_buckets, config.processor)


def sample(policy: policies.Policy, prompt: np.ndarray, prompt_mask: np.ndarray,
           key: jax.Array, config: SamplingConfig, tokenizer: tokenizers.Tokenizer,
           mesh: jax.sharding.Mesh, row_ids: np.ndarray | None = None,
           images: Images | None = None) -> Rollouts:
  """Sample K responses to each encoded prompt, on the mesh.

  Images are patches on the host, or have been encoded (`sampler.encode`).
  """
  if row_ids is None:
    row_ids = np.arange(len(prompt), dtype=np.int32)
  prompt, prompt_mask, row_ids = hosts.place((prompt, prompt_mask, row_ids), mesh)
  if images is not None and images.features is None:
    images = hosts.place(images, mesh)
  return sampler.sample(
    policy, prompt, prompt_mask, key, row_ids=row_ids,
    samples_per_prompt=config.samples_per_prompt, max_new_tokens=config.max_new_tokens,
    temperature=config.temperature, stop_tokens=tokenizer.stop_tokens,
    top_k=config.top_k, top_p=config.top_p, pad_token=tokenizer.pad_id,
    chunk=config.chunk, prompts_at_once=config.prompts_at_once, unroll=config.unroll,
    images=images)


def decode(rollouts: Rollouts, tokenizer: tokenizers.Tokenizer,
           problems: Sequence[Problem] = ()) -> list[list[str]]:
  """Return the responses' texts, [B][K], with the prefixes of their problems."""
  response, mask = jax.device_get((rollouts.response, rollouts.response_mask))
  begun = [_prefix(problem) for problem in problems] or [[]] * len(response)
  return [[tokenizer.decode(prefix + tokens[real].tolist())
           for tokens, real in zip(*group, strict=True)]
          for prefix, *group in zip(begun, response, mask, strict=True)]


def _prefix(problem: Problem) -> list[int]:
  return [] if problem.prefix is None else list(problem.prefix.tokens)


def _within(rollouts: Rollouts, problems: Sequence[Problem], pad_token: int,
            mesh: jax.sharding.Mesh) -> Rollouts:
  """Cut continuations where the whole response, its prefix included, has N tokens."""
  if not any(problem.prefix for problem in problems):
    return rollouts
  width = rollouts.response.shape[-1]
  room = np.array([width - len(_prefix(problem)) for problem in problems], np.int32)
  return _cut(rollouts, hosts.place(room, mesh), pad_token)


@jax.jit
def _cut(rollouts: Rollouts, room, pad_token) -> Rollouts:
  place = jax.lax.broadcasted_iota(jnp.int32, rollouts.response.shape, 2)
  mask = rollouts.response_mask & (place < room[:, None, None])
  return rollouts.replace(response=jnp.where(mask, rollouts.response, pad_token),
                          response_mask=mask,
                          logprobs=jnp.where(mask, rollouts.logprobs, 0.0))


def submit(task: tasks.base.Task, problems: Sequence[Problem],
           texts: list[list[str]]) -> Callable[[], Graded]:
  """Begin to verify every response; return what waits for the verdicts.

  Where the task judges in a pool of processes, the caller may decode meanwhile.

  Raises:
    ValueError: when waited for, if a verdict is not a finite number in [0, 1]; names
      the problem.
  """
  verdicts = task.submit(problems, texts)
  return lambda: _graded(task, problems, texts, verdicts())


def grade(task: tasks.base.Task, problems: Sequence[Problem],
          texts: list[list[str]]) -> Graded:
  """Verify every response; see `submit`."""
  return submit(task, problems, texts)()


def _graded(task, problems, texts, verdicts) -> Graded:
  """Return verdicts, once they are checked, and the task's diagnostics."""
  found = {name: Mean(*pair) for name, pair in verdicts.metrics.items()}
  for problem, responses, row in zip(problems, texts, verdicts.rewards, strict=True):
    for text, reward in zip(responses, row, strict=True):
      if not (math.isfinite(reward) and 0.0 <= reward <= 1.0):
        raise ValueError(f'task {task.name!r} gave reward={reward} to a response to '
                         f'problem {problem.id!r}: a verdict must lie in [0, 1]')
      for name, pair in task.diagnostics(problem, text, reward).items():
        found = metrics_lib.merge(found, {name: Mean(*pair)})
  width = len(texts[0]) if texts else 0
  rewards = np.array(verdicts.rewards, np.float32).reshape(len(texts), width)
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


def texts(graded: Graded, rows: Sequence[int]) -> list[list[str]]:
  """Return the texts of some rows, ascending, whichever processes have them."""
  if graded.rows is None or hosts.alone():
    return [graded.texts[row] for row in rows]
  mine = np.isin(graded.rows, rows)
  own = [text for text, wanted in zip(graded.texts, mine, strict=True) if wanted]
  return hosts.gather_rows(own, np.searchsorted(rows, graded.rows[mine]), len(rows))


def stopped(rollouts: Rollouts, stop_tokens: tuple[int, ...]) -> np.ndarray:
  """Return bool[B, K]: whether the response ended by a stop token."""
  response, mask = jax.device_get((rollouts.response, rollouts.response_mask))
  return (np.isin(response, stop_tokens) & mask).any(axis=-1)


def collect(policy: policies.Policy, problems: Sequence[Problem], key: jax.Array,
            task: tasks.base.Task, tokenizer: tokenizers.Tokenizer,
            config: SamplingConfig, mesh: jax.sharding.Mesh, phases,
            weights: rewards_lib.Weights = _VERDICT_ALONE,
            ) -> tuple[Groups, Graded]:
  """Sample and verify one batch; see `begin`."""
  return begin(policy, problems, key, task, tokenizer, config, mesh, phases, weights)()


def begin(policy: policies.Policy, problems: Sequence[Problem], key: jax.Array,
          task: tasks.base.Task, tokenizer: tokenizers.Tokenizer,
          config: SamplingConfig, mesh: jax.sharding.Mesh, phases,
          weights: rewards_lib.Weights = _VERDICT_ALONE,
          recorded: Responses | None = None) -> Callable[[], tuple[Groups, Graded]]:
  """Sample one batch and begin to verify it; return what waits for the verdicts.

  With `prompts_at_once` below B, the responses of one part are judged while the next
  part decodes, where the task judges in a pool. Samples are the same either way.

  Args:
    policy: pi_b; not read where responses are recorded.
    problems: B of them; a response goes on from its problem's prefix, is judged with
      it and ends where both have N tokens.
    key: PRNG key of this step.
    task: verifier.
    tokenizer: of the policy.
    config: how to sample.
    mesh: where.
    phases: timer; `sample` and `grade` are added to.
    weights: of the parts of a reward.
    recorded: the responses, instead of sampling them; of text only.

  Returns:
    A function of Groups on the device, with anchor scores 0 since pi_t = pi_b, and
    what the host knows of them; its rewards are weighed, its metrics named as in
    metrics.jsonl.
  """
  at_once = config.prompts_at_once or len(problems)
  parts, waiting = [], []
  with phases('sample'):
    encoded = encode(problems, tokenizer, config)
    for start in range(0, len(problems), at_once):
      rows = np.arange(start, start + at_once, dtype=np.int32)
      part = jax.tree.map(lambda x, rows=rows: x[rows], encoded)
      parts.append(_within(
        sample(policy, part.tokens, part.mask, key, config, tokenizer, mesh, rows,
               part.images) if recorded is None
        else _replayed(*hosts.place((part.tokens, part.mask), mesh), recorded, start),
        [problems[row] for row in rows], tokenizer.pad_id, mesh))
      own = hosts.local(parts[-1].replace(images=None), mesh)
      rows = rows[hosts.own_rows(at_once, mesh)]
      asked = [problems[row] for row in rows]
      waiting.append((rows, asked, own,
                      submit(task, asked, decode(own, tokenizer, asked))))
  return lambda: _collected(parts, waiting, task, config, weights, tokenizer, mesh,
                            len(problems), phases)


def _collected(parts, waiting, task, config: SamplingConfig, weights, tokenizer, mesh,
               size: int, phases) -> tuple[Groups, Graded]:
  """Return the groups and verdicts of `begin`, once they are given."""
  with phases('grade'):
    graded = _merged([
      (rows, _weighed(task, asked, graded(), own, config, weights, tokenizer))
      for rows, asked, own, graded in waiting])
    graded = share(graded, graded.rows, size)
  rewards, anchor, keep = hosts.place(
    (graded.rewards, np.zeros_like(graded.rewards), np.ones(size, bool)), mesh)
  rollouts = parts[0] if len(parts) == 1 else _joined(parts)
  return Groups(rollouts, rewards, anchor, keep), graded


def _weighed(task, problems, graded: Graded, own: Rollouts, config: SamplingConfig,
             weights: rewards_lib.Weights, tokenizer) -> Graded:
  """Return verdicts turned into rewards, and the metrics under their full names."""
  lengths = jax.device_get(own.response_mask).sum(axis=-1)
  begun = np.array([len(_prefix(problem)) for problem in problems])[:, None]
  formed = [[task.answer(problem, text) is not None for text in row]
            for problem, row in zip(problems, graded.texts, strict=True)]
  parts = {
    'correct': graded.rewards.reshape(lengths.shape),
    'format': np.array(formed, np.float32).reshape(lengths.shape),
    'length': rewards_lib.length_part(lengths + begun, config.max_new_tokens,
                                      weights.full_length)}
  ended = stopped(own, tokenizer.stop_tokens)
  found = {name if '/' in name else f'reward/{name}': value
           for name, value in graded.metrics.items()}
  found |= {f'reward/{name}': Mean(part.sum(dtype=np.float32), np.float32(part.size))
            for name, part in parts.items()}
  found['response_length/clip_ratio'] = Mean(np.float32((~ended).sum()),
                                             np.float32(ended.size))
  return Graded(graded.texts, rewards_lib.total(parts, weights), found)


def _merged(parts: list[tuple[np.ndarray, Graded]]) -> Graded:
  """Return the verdicts of consecutive parts of a batch, and their rows, as one."""
  found = {}
  for _, graded in parts:
    found = metrics_lib.merge(found, graded.metrics)
  return Graded([row for _, graded in parts for row in graded.texts],
                np.concatenate([graded.rewards for _, graded in parts]), found,
                np.concatenate([rows for rows, _ in parts]))


@jax.jit
def _replayed(prompt, prompt_mask, recorded: Responses, start) -> Rollouts:
  """Return the rollouts of some rows, from `start`, whose responses are recorded."""
  tokens, mask, logprobs = (
    sharding.constrain_batch(jax.lax.dynamic_slice_in_dim(x, start, prompt.shape[0]))
    for x in (recorded.tokens, recorded.mask, recorded.logprobs))
  return Rollouts(prompt, prompt_mask, tokens, mask, logprobs)


@jax.jit
def _joined(parts: list[Rollouts]) -> Rollouts:
  return jax.tree.map(lambda *x: sharding.constrain_batch(jnp.concatenate(x)), *parts)
