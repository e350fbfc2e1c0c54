"""Problems -> Groups: sample K responses to each, decode their text, verify it.

Sampling runs on the device, verification on the host. Verdicts are checked here, once
for every task: one that is no number in [0, 1] would poison the whole batch.
"""

import concurrent.futures
import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import numpy as np

from lpo_jax import hosts, prompts, resharding, sampler, sharding, tasks
from lpo_jax import metrics as metrics_lib
from lpo_jax import policy as policies
from lpo_jax import rewards as rewards_lib
from lpo_jax import tokenizer as tokenizers
from lpo_jax.sampling import SamplingConfig
from lpo_jax.tasks import grading
from lpo_jax.types import Groups, Images, Mean, Problem, Responses, Rollouts

_VERDICT_ALONE = rewards_lib.Weights()


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
           images: Images | None = None, limits: np.ndarray | None = None,
           **more) -> Rollouts:
  """Sample K responses to each encoded prompt; see `sampler.sample`.

  `mesh` is the one that samples and holds the policy, see `resharding`. Images are
  patches on the host, or have been encoded (`sampler.encode`).
  """
  if row_ids is None:
    row_ids = np.arange(len(prompt), dtype=np.int32)
  if limits is None:
    limits = np.full(len(prompt), config.max_new_tokens, np.int32)
  prompt, prompt_mask, row_ids, limits = hosts.place(
    (prompt, prompt_mask, row_ids, limits), mesh)
  if images is not None and images.features is None:
    images = hosts.place(images, mesh)
  key = resharding.carried(key, mesh)
  with jax.set_mesh(mesh):
    return sampler.sample(
      policy, prompt, prompt_mask, key, row_ids=row_ids, limits=limits, images=images,
      prompts_at_once=config.prompts_at_once, parked=config.parked,
      **config.arguments(tokenizer), **more)


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

  With `prompts_at_once` below B, the responses to so many prompts are judged while
  others decode, where the task judges in a pool; no sample or metric changes. Where
  devices sample that do not train (`apart`), all this goes on in a thread.

  Args:
    policy: pi_b; not read where responses are recorded.
    problems: B of them; a response goes on from its problem's prefix, is judged with
      it and ends where both have N tokens.
    key: PRNG key of this step.
    task: verifier.
    tokenizer: of the policy.
    config: how to sample.
    mesh: where the policy is and the groups are to be.
    phases: timer; `reshard`, `sample` and `grade` are added to.
    weights: of the parts of a reward.
    recorded: the responses, instead of sampling them; of text only.

  Returns:
    A function of Groups on the device, with anchor scores 0 since pi_t = pi_b, and
    what the host knows of them; its rewards are weighed, its metrics named as in
    metrics.jsonl.
  """
  onto = mesh if recorded is not None else config.where(mesh)
  judging = _Judging(task, problems, tokenizer, onto, config.prompts_at_once)
  if recorded is None and config.copy_weights:
    policy = resharding.copied(policy, mesh, onto, phases('reshard'))

  def draw():
    with phases('sample'):
      encoded = encode(problems, tokenizer, config)
      if recorded is None:
        room = [config.max_new_tokens - len(_prefix(problem)) for problem in problems]
        rollouts = sample(policy, encoded.tokens, encoded.mask, key, config, tokenizer,
                          onto, images=encoded.images, limits=np.array(room, np.int32),
                          finished=judging.add)
      else:
        rollouts = _replayed(*hosts.place((encoded.tokens, encoded.mask), mesh),
                             recorded)
      own = hosts.local(rollouts.replace(images=None), onto)
      judging.add_rest(own)
      return resharding.returned(rollouts, onto, mesh), own

  if config.apart and recorded is None:
    drawn = _in_thread(draw, mesh)
    return lambda: _collected(drawn(), judging, config, weights, mesh, phases)
  drawn = draw()  # what is recorded is put where the policy trains: in no other thread
  return lambda: _collected(drawn, judging, config, weights, mesh, phases)


def _in_thread(job: Callable, mesh: jax.sharding.Mesh) -> Callable:
  """Begin a job in a thread of its own; return what waits for its result."""
  def run():
    with jax.set_mesh(mesh):
      return job()

  pool = concurrent.futures.ThreadPoolExecutor(1, 'sample')
  found = pool.submit(run)
  pool.shutdown(wait=False)
  return found.result


class _Judging:
  """The texts of this process's problems, handed in some at a time."""

  def __init__(self, task, problems, tokenizer, mesh, at_once):
    """Hand in once `at_once` more prompts have their responses; 0: not before all."""
    self.task, self.tokenizer, self.mesh = task, tokenizer, mesh
    self.size, self.rows = len(problems), hosts.own_rows(len(problems), mesh)
    self.problems = [problems[row] for row in self.rows]
    self.texts = [None] * len(self.rows)
    self._at_once, self._parts = at_once or self.size, []
    self._left, self._complete = list(range(self.size)), []

  def add(self, rows, response, mask) -> None:
    """Take note of prompts that have their responses; see `sampler.sample`."""
    self._complete += rows.tolist()
    if len(self._complete) >= self._at_once:
      self._submit(self._complete, *hosts.local((response, mask), self.mesh))
      self._complete = []

  def add_rest(self, own: Rollouts) -> None:
    """Hand in what is left of all own responses [B', K, N]."""
    for rows in np.split(self._left, range(self._at_once, len(self._left),
                                           self._at_once)):
      self._submit(rows.tolist(), own.response, own.response_mask)

  def _submit(self, rows, response, mask):
    """Hand in the own responses to some problems."""
    self._left = [row for row in self._left if row not in rows]
    places = np.flatnonzero(np.isin(self.rows, rows))
    if not places.size:
      return
    asked = [self.problems[place] for place in places]
    tokens, real = (np.asarray(jax.device_get(x))[places] for x in (response, mask))
    texts = decode(Rollouts(None, None, tokens, real, None), self.tokenizer, asked)
    for place, text in zip(places, texts, strict=True):
      self.texts[place] = text
    self._parts.append((places, self.task.submit(asked, texts)))

  def graded(self) -> Graded:
    """Wait; return the verdicts in the order of the problems."""
    rewards, metrics = [None] * len(self.rows), {}
    for places, wait in self._parts:
      found = wait()
      for name, (total, count) in found.metrics.items():
        before = metrics.get(name, (0.0, 0.0))
        metrics[name] = before[0] + total, before[1] + count
      for place, row in zip(places, found.rewards, strict=True):
        rewards[place] = row
    return _graded(self.task, self.problems, self.texts,
                   grading.Verdicts(rewards, metrics, []))


def _collected(drawn, judging, config: SamplingConfig, weights, mesh,
               phases) -> tuple[Groups, Graded]:
  """Return the groups and verdicts of `begin`, once they are given."""
  rollouts, own = drawn
  with phases('grade'):
    graded = _weighed(judging, own, config, weights)
    graded = share(graded, graded.rows, judging.size)
  rewards, anchor, keep = hosts.place(
    (graded.rewards, np.zeros_like(graded.rewards), np.ones(judging.size, bool)), mesh)
  return Groups(rollouts, rewards, anchor, keep), graded


def _weighed(judging: _Judging, own: Rollouts, config: SamplingConfig,
             weights: rewards_lib.Weights) -> Graded:
  """Return verdicts turned into rewards, and the metrics under their full names."""
  task, problems, graded = judging.task, judging.problems, judging.graded()
  lengths = jax.device_get(own.response_mask).sum(axis=-1)
  begun = np.array([len(_prefix(problem)) for problem in problems])[:, None]
  formed = [[task.answer(problem, text) is not None for text in row]
            for problem, row in zip(problems, graded.texts, strict=True)]
  parts = {
    'correct': graded.rewards.reshape(lengths.shape),
    'format': np.array(formed, np.float32).reshape(lengths.shape),
    'length': rewards_lib.length_part(lengths + begun, config.max_new_tokens,
                                      weights.full_length)}
  ended = stopped(own, judging.tokenizer.stop_tokens)
  found = {name if '/' in name else f'reward/{name}': value
           for name, value in graded.metrics.items()}
  found |= {f'reward/{name}': Mean(part.sum(dtype=np.float32), np.float32(part.size))
            for name, part in parts.items()}
  found['response_length/clip_ratio'] = Mean(np.float32((~ended).sum()),
                                             np.float32(ended.size))
  return Graded(graded.texts, rewards_lib.total(parts, weights), found, judging.rows)


@jax.jit
def _replayed(prompt, prompt_mask, recorded: Responses) -> Rollouts:
  """Return the rollouts whose responses are recorded."""
  return Rollouts(prompt, prompt_mask, *map(sharding.constrain_batch, (
    recorded.tokens, recorded.mask, recorded.logprobs)))
