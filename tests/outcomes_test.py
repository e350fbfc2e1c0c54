"""One batch decodes while the last is judged; an outcome is its own problem's."""

import jax
import numpy as np
import pytest

from lpo_jax import outcomes, rollout, sampler, sharding, tasks
from lpo_jax.types import Problem, Rollouts
from tests import tiny

_STOP = 9


class _Task(tasks.base.Task):
  name = 'fake'

  def verify(self, problem, text):
    return float(text.startswith(problem.answer))

  def answer(self, problem, text):
    return text if len(text) > 3 else None


@pytest.fixture
def asked(monkeypatch):
  """Make response j to row r of round i be the tokens r i j.. ended where j is odd."""
  rounds = []

  def sample(policy, prompt, prompt_mask, key, *, row_ids, samples_per_prompt,
             max_new_tokens, **_):
    shape = (len(prompt), samples_per_prompt, max_new_tokens)
    response = np.zeros(shape, np.int32)
    response[..., 0] = np.asarray(row_ids)[:, None]
    response[..., 1] = len(rounds)
    response[..., 2] = np.where(np.arange(samples_per_prompt) % 2, _STOP, 5)
    width = 2 + (np.arange(samples_per_prompt) < 3)  # the last is cut before its end
    mask = np.broadcast_to(np.arange(max_new_tokens) < width[:, None], shape)
    rounds.append(np.asarray(row_ids).tolist())
    return Rollouts(prompt, prompt_mask, response, mask, None)

  monkeypatch.setattr(sampler, 'sample', sample)
  return rounds


@pytest.mark.parametrize('with_texts', [True, False])
def test_an_outcome_holds_each_response_in_order(with_texts, asked):
  problems = [Problem('x' * (i + 1), str(10 + i), f'p{i}') for i in range(2)]
  problems[1] = Problem('y', '7', 'other')
  sampling = rollout.SamplingConfig(samples_per_prompt=4, max_new_tokens=3,
                                    prompt_buckets=(8,))
  judged = outcomes.ask(None, problems, 10, 3, 6, _Task(), tiny.Tokenizer(_STOP),
                        jax.random.key(0), sampling, sharding.make_mesh((1, 1, 1)),
                        with_texts)
  assert asked == [[10, 11, 12]] * 2  # the batch is filled up; its rows keep names
  found, _ = judged()
  for row, (outcome, reward) in enumerate(zip(found, (1.0, 0.0), strict=True)):
    texts = [f'{10 + row} {i} {last}'.strip() for i, last in
             ((0, 5), (0, _STOP), (0, 5), (0, ''), (1, 5), (1, _STOP))]
    assert outcome == outcomes.Outcome(
      [reward] * 6, texts, [True, False, True, True, True, False], [3, 3, 3, 2, 3, 3],
      texts if with_texts else [])


def test_each_is_handed_out_after_the_next_is_made():
  made, seen = [], []

  def items():
    for item in range(3):
      made.append(item)
      yield item

  for item in outcomes.one_behind(items()):
    seen.append((item, len(made)))
  assert seen == [(0, 2), (1, 3), (2, 3)]
  assert list(outcomes.one_behind([])) == []
