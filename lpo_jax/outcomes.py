"""Held-out problems asked and judged: what became of each response.

A batch is decoded by `ask`, which returns what waits for its verdicts, so that it can
be judged while the next one decodes.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import jax
import numpy as np

from lpo_jax import hosts, rollout, sampler, tasks
from lpo_jax import policy as policies
from lpo_jax import tokenizer as tokenizers
from lpo_jax.types import Mean, Problem

_COSTS = ('grading/queue_s',)  # of the machine, not of the policy


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


def one_behind(items: Iterable) -> Iterator:
  """Yield each item after the next one is made: judged while that is decoded."""
  before = []
  for item in items:
    yield from before
    before = [item]
  yield from before


def ask(policy: policies.Policy, problems: Sequence[Problem], start: int, batch: int,
        count: int, task: tasks.base.Task, tokenizer: tokenizers.Tokenizer,
        key: jax.Array, sampling: rollout.SamplingConfig, mesh: jax.sharding.Mesh,
        with_texts: bool) -> Callable[[], tuple[list[Outcome], dict[str, Mean]]]:
  """Sample responses to a batch of problems.

  Args:
    policy: to ask.
    problems: at most `batch` of them.
    start: index of the first in its set; names the random streams.
    batch: problems decoded at once; one shape serves all.
    count: responses to each.
    task: verifier.
    tokenizer: of the policy.
    key: PRNG key of the set.
    sampling: how; its K is drawn per round.
    mesh: that samples.
    with_texts: outcomes have the responses' texts, on every process.

  Returns:
    What waits for the outcomes, on every process, and the verifier's metrics.
  """
  rows = hosts.own_rows(batch, mesh)
  rows = rows[rows < len(problems)]
  own = [problems[row] for row in rows]
  row_ids = np.arange(start, start + batch, dtype=np.int32)
  texts, ended, lengths = _draw(policy, problems, row_ids, len(own), count, tokenizer,
                                key, sampling, mesh)
  parts = [{'truncated': [not end for end in ends], 'lengths': sizes,
            'responses': mine if with_texts else []}
           for ends, sizes, mine in zip(ended, lengths, texts, strict=True)]
  verdicts = rollout.submit(task, own, texts)

  def judged():
    graded = verdicts()
    votes = [{'votes': [task.answer(one, text) for text in texts_of]}
             for one, texts_of in zip(own, texts, strict=True)]
    shared = rollout.share(graded, rows, len(problems))
    mine = [part | vote for part, vote in zip(parts, votes, strict=True)]
    found = hosts.gather_rows(mine, rows, len(problems))
    outcomes = [Outcome(rewards, **one) for rewards, one in zip(
      shared.rewards.tolist(), found, strict=True)]
    return outcomes, {name: Mean(float(mean.total), float(mean.count))
                      for name, mean in shared.metrics.items() if name not in _COSTS}

  return judged


def _draw(policy, problems, row_ids, own, count, tokenizer, key, sampling, mesh):
  """Return texts, whether they ended and lengths in tokens, each [own rows][count]."""
  short = len(row_ids) - len(problems)  # filled up, so that one shape serves all
  asked = rollout.encode(problems + problems[:1] * short, tokenizer, sampling)
  images = asked.images
  if images is not None:  # once for all rounds
    with jax.set_mesh(mesh):
      images = sampler.encode(policy, hosts.place(images, mesh))
  drawn = [[[] for _ in range(own)] for _ in range(3)]
  for index in range(-(-count // sampling.samples_per_prompt)):
    rollouts = rollout.sample(policy, asked.tokens, asked.mask,
                              jax.random.fold_in(key, index), sampling, tokenizer,
                              mesh, row_ids, images)
    rollouts = hosts.local(rollouts.replace(images=None), mesh)
    found = (rollout.decode(rollouts, tokenizer),
             rollout.stopped(rollouts, tokenizer.stop_tokens).tolist(),
             jax.device_get(rollouts.response_mask).sum(axis=-1).tolist())
    for known, more in zip(drawn, found, strict=True):
      for mine, its in zip(known, more, strict=False):
        mine += its
  return [[mine[:count] for mine in known] for known in drawn]
