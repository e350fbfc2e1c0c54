"""The warm start minimises the mean loss of response tokens, and lowers it."""

import functools

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lpo_jax import tasks, tokenizer, warmstart
from tests import learner, tiny


def _batch():
  return tiny.rollouts((4, 1, 6), samples=1, vocab=learner.VOCAB)


@functools.cache
def _step():
  return learner.jit(warmstart.make_step(optax.sgd(0.5)))


def test_loss_is_the_mean_over_response_tokens():
  policy, batch = learner.policy(), _batch()
  logprobs = tiny.teacher_forced(policy, batch)
  chosen = np.take_along_axis(logprobs, batch.response[..., None], -1)[..., 0]
  value = _step()(policy, optax.sgd(0.5).init(policy), batch)[2]
  assert int(value.count) == batch.response_mask.sum()
  np.testing.assert_allclose(float(value), -chosen[batch.response_mask].mean(),
                             rtol=1e-5)


def test_a_step_follows_the_gradient_of_the_mean():
  policy, batch = learner.policy(), _batch()
  gradient = learner.written_gradient(
    lambda logprobs: -jnp.mean(logprobs[:, 0], where=batch.response_mask[:, 0]),
    policy, batch)
  expected = optax.apply_updates(policy, optax.tree_utils.tree_scale(-0.5, gradient))
  learner.assert_close(_step()(policy, optax.sgd(0.5).init(policy), batch)[0], expected)


def test_a_few_steps_lower_the_loss():
  policy, batch = learner.policy(), _batch()
  state, losses = optax.sgd(0.5).init(policy), []
  for _ in range(5):
    policy, state, value = _step()(policy, state, batch)
    losses.append(float(value))
  assert losses[-1] < 0.7 * losses[0]


# Demonstrations.


class _Task:
  """A task whose demonstrations are given."""

  def __init__(self, task, texts):
    self._texts = dict(zip((p.id for p in task.problems('train')), texts, strict=False))

  def demonstration(self, problem):
    return self._texts[problem.id]


def _demonstrate(texts, width=6):
  words = tokenizer.get('countdown')
  task = tasks.get('countdown')
  problems = task.problems('train')[:len(texts)]
  return words, problems, warmstart.demonstrations(
    problems, _Task(task, texts), words, (16,), width)


def test_a_stop_token_is_added_only_where_it_is_missing():
  words, _, batch = _demonstrate(['<answer> 1 </answer>', '1 + 2', '</answer> 7'])
  close, eos = words.encode_response('</answer>')[0], words.stop_tokens[0]
  assert close in words.stop_tokens and close != eos
  expected = [[*words.encode_response('<answer> 1'), close],
              [*words.encode_response('1 + 2'), eos],
              [close, *words.encode_response('7'), eos]]
  for row, ids in enumerate(expected):
    assert batch.response[row, 0, :len(ids)].tolist() == ids
    assert batch.response_mask[row, 0].tolist() == [i < len(ids) for i in range(6)]
    assert (batch.response[row, 0, len(ids):] == words.pad_id).all()


def test_demonstrations_are_rollouts_of_one_response_each():
  words, problems, batch = _demonstrate(['1', '2 + 2'])
  assert batch.response.shape == batch.response_mask.shape == (2, 1, 6)
  assert batch.prompt.shape == (2, 16)
  for row, problem in enumerate(problems):
    ids = batch.prompt[row][batch.prompt_mask[row]].tolist()
    assert ids == words.encode(problem.prompt)
  assert not batch.logprobs.any()


@pytest.mark.parametrize('text,count', [
  ('1 + 2 + 3 + 4', 8), ('1 + 2 + 3 </answer>', 6)])
def test_a_demonstration_that_does_not_fit_is_named(text, count):
  name = tasks.get('countdown').problems('train')[1].id
  with pytest.raises(ValueError, match=f"'{name}' has {count} tokens: .*_tokens=5"):
    _demonstrate(['1', text], width=5)


def test_a_task_s_own_demonstrations_are_right_and_end_by_a_stop_token():
  words, task = tokenizer.get('countdown'), tasks.get('countdown')
  problems = task.problems('train')[:8]
  batch = warmstart.demonstrations(problems, task, words, (16,), 48)
  for row, problem in enumerate(problems):
    ids = batch.response[row, 0][batch.response_mask[row, 0]]
    assert ids[-1] in words.stop_tokens
    assert task.verify(problem, words.decode(ids)) == 1.0
