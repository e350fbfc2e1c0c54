"""What a file of lists may say, and that two responses are soft DPO."""

import json

import jax
import numpy as np
import pytest

from lpo_jax import objective, offline, optimizer, tokenizer, update
from lpo_jax.microbatch import UpdateConfig
from lpo_jax.types import Groups, Rollouts
from tests import learner, tiny

_GOOD = {'prompt': '14 4 2 : 36 >', 'rewards': [1, 0.25], 'responses': [
  '14 + 4 = 18 , 18 * 2 = 36 <answer> ( 14 + 4 ) * 2 </answer>', '14 + 4']}


@pytest.fixture(scope='module')
def words():
  return tokenizer.get('countdown')


def read(tmp_path, words, *lines, samples=2, width=24, rewards='unit'):
  path = tmp_path / 'lists.jsonl'
  path.write_text('\n'.join(line if isinstance(line, str) else json.dumps(line)
                            for line in lines))
  return offline.read(str(path), words, samples, width, rewards)


def test_lists_become_tokens_that_end_in_a_stop(tmp_path, words):
  lines = [_GOOD, _GOOD | {'id': 'second', 'truncated': [False, True]}]
  found = read(tmp_path, words, lines[0], '', lines[1])
  lengths = found.mask.sum(-1)
  full = len(words.encode_response(_GOOD['responses'][0]))
  np.testing.assert_array_equal(lengths, [[full, 4], [full, 3]])  # </answer> stops
  assert found.response[0, 1, 3] == words.stop_tokens[0]
  assert (found.response[~found.mask] == words.pad_id).all()
  assert words.decode(found.response[1, 0][found.mask[1, 0]]) == _GOOD['responses'][0]
  np.testing.assert_array_equal(found.rewards, np.float32([[1, 0.25]] * 2))
  assert found.logprobs is None
  assert [problem.id for problem in found.problems] == [
    f'{tmp_path}/lists.jsonl:1', 'second']
  assert found.described['problems'] == 2


def test_log_probabilities_of_tokens_and_of_responses_sum_alike(tmp_path, words):
  length = len(words.encode_response(_GOOD['responses'][0]))
  each = [np.linspace(-1, 0, length).tolist(), [-0.5, -1.0, 0.0, -0.25]]
  one = read(tmp_path, words, _GOOD | {'logprobs': each})
  whole = read(tmp_path, words, _GOOD | {'logprobs': [sum(row) for row in each]})
  assert one.per_token and not whole.per_token
  np.testing.assert_allclose(one.logprobs[0, 1], [*each[1], *[0] * 20])
  np.testing.assert_allclose(one.logprobs.sum(-1), whole.logprobs.sum(-1), rtol=1e-6)
  assert not whole.logprobs[~whole.mask].any()


@pytest.mark.parametrize(('change', 'message'), [
  ('{"prompt": 3', r'jsonl:2: not JSON'),
  ('[1]', r'jsonl:2: list, not an object'),
  ({'prompt': 'x'}, r"jsonl:2: has no 'responses'"),
  (_GOOD | {'logprob': [0, 0]}, r"jsonl:2: 'logprob' is not read; did you mean 'logp"),
  (_GOOD | {'prompt': 3}, r"jsonl:2: 'prompt' must be text or a list of role"),
  (_GOOD | {'prompt': [{'role': 'user'}]}, r"jsonl:2: 'prompt' must be"),
  (_GOOD | {'responses': ['1', 2]}, r"jsonl:2: 'responses' must be a list of texts"),
  (_GOOD | {'rewards': [1, '0']}, r"jsonl:2: 'rewards' must be a list of finite"),
  (_GOOD | {'rewards': [1, float('nan')]}, r"jsonl:2: 'rewards' must be .* finite"),
  (_GOOD | {'rewards': [1, True]}, r"jsonl:2: 'rewards' must be a list of finite"),
  (_GOOD | {'rewards': [1]}, r"jsonl:2: 'rewards' has 1 entries, but samples_per_pr"),
  (_GOOD | {'responses': ['1'] * 3, 'rewards': [0] * 3},
   r"jsonl:2: 'responses' has 3 entries, but samples_per_prompt=2: all lists of a"),
  (_GOOD | {'rewards': [1.5, 0]}, r'jsonl:2: reward 0 is 1.5, outside .0, 1.: set off'),
  (_GOOD | {'responses': ['1', 'one']}, r"jsonl:2: response 1: 'one' is not in the "),
  (_GOOD | {'responses': ['1', '1 ' * 24]}, r'jsonl:2: response 1 has 25 tokens: must'),
  (_GOOD | {'responses': ['1', ''], 'truncated': [False, True]},
   r'jsonl:2: response 1 has 0 tokens'),
  (_GOOD | {'truncated': [0, 1]}, r"jsonl:2: 'truncated' must be a list of true or"),
  (_GOOD | {'logprobs': [-1, -2]}, r"jsonl:1: has no 'logprobs', but other lines have"),
])
def test_a_bad_line_is_named(change, message, tmp_path, words):
  with pytest.raises(ValueError, match=message):
    read(tmp_path, words, _GOOD, change)


@pytest.mark.parametrize(('logprobs', 'message'), [
  ([0.5, -1], r'jsonl:1: log-probabilities of response 0 must be finite and at most 0'),
  ([-1, None], r'jsonl:1: log-probabilities of response 1 must'),
  ([-1, [-1] * 4], r"jsonl:1: 'logprobs' of response 1 are of each token, unlike"),
  ([[-1] * 20, [-1] * 3], r'jsonl:1: response 1 has 4 tokens, the stop token included, '
   'but 3'),
  ([-1], r"jsonl:1: 'logprobs' has 1 entries"),
])
def test_bad_log_probabilities_are_named(logprobs, message, tmp_path, words):
  with pytest.raises(ValueError, match=message):
    read(tmp_path, words, _GOOD | {'logprobs': logprobs})


@pytest.mark.parametrize(('rule', 'expected'), [
  ('scale', [[0, 0.375], [0.25, 1]]), ('rank', [[0, 1], [0, 1]]),
  ('sigmoid', [[1 / (1 + np.exp(3)), 0.5], [1 / (1 + np.e), 1 / (1 + np.exp(-5))]])])
def test_rewards_of_any_size_have_three_ways_in(rule, expected, tmp_path, words):
  lines = [_GOOD | {'rewards': [-3, 0]}, _GOOD | {'rewards': [-1, 5]}]
  found = read(tmp_path, words, *lines, rewards=rule)
  np.testing.assert_allclose(found.rewards, expected, rtol=1e-6)
  with pytest.raises(ValueError, match='outside'):
    read(tmp_path, words, *lines)


def test_ranks_that_tie_share_their_mean(tmp_path, words):
  line = {'prompt': '1', 'responses': list('1234'), 'rewards': [7, 3, 7, 9]}
  found = read(tmp_path, words, line, samples=4, rewards='rank')
  np.testing.assert_allclose(found.rewards, [[0.5, 0, 0.5, 1]])
  with pytest.raises(ValueError, match='nothing can be learned'):
    read(tmp_path, words, line | {'rewards': [2] * 4}, samples=4, rewards='scale')
  with pytest.raises(ValueError, match='one response has no rank'):
    read(tmp_path, words, line | {'responses': ['1'], 'rewards': [2]}, samples=1,
         rewards='rank')
  with pytest.raises(ValueError, match="offline.rewards='best': choose one of unit"):
    read(tmp_path, words, line, samples=4, rewards='best')


def test_no_file_and_no_list_are_named(tmp_path, words):
  with pytest.raises(ValueError, match='offline.path=.* cannot be read: No such file'):
    offline.read(str(tmp_path / 'none.jsonl'), words, 2, 8)
  with pytest.raises(ValueError, match='holds no list'):
    read(tmp_path, words, '\n')


def test_what_cannot_be_learned_from_is_refused(tmp_path, words):
  whole = read(tmp_path, words, _GOOD | {'logprobs': [-9, -3]})
  plain = objective.ObjectiveConfig(token_clip=None)
  offline.check(whole, plain, 'sampler')
  with pytest.raises(ValueError, match="behavior='learner' with offline.path"):
    offline.check(whole, plain, 'learner')
  for config in (objective.ObjectiveConfig(), objective.ObjectiveConfig(
      'grpo', token_clip=None)):
    with pytest.raises(ValueError, match='of whole responses.*token_clip=None'):
      offline.check(whole, config, 'sampler')
  offline.check(read(tmp_path, words, _GOOD), objective.ObjectiveConfig(), 'sampler')


# K = 2.


def _soft_dpo(delta, rewards, tau):
  """Return d/d delta of soft DPO's loss, float64, and the loss.

  -p log sigma(m) - (1 - p) log sigma(-m), m the margin of the log-ratios, p = sigma of
  the rewards' difference over tau: the chance that the first is preferred.
  """
  def sigma(x):
    return 1 / (1 + np.exp(-x))

  p = sigma((rewards[:, 0] - rewards[:, 1]) / tau)
  margin = delta[:, 0] - delta[:, 1]
  loss = -p * np.log(sigma(margin)) - (1 - p) * np.log(sigma(-margin))
  slope = sigma(margin) - p
  return np.stack([slope, -slope], axis=1), loss


def test_two_responses_are_soft_dpo():
  tau, size = 0.7, 3
  rng = np.random.default_rng(3)
  rollouts = tiny.rollouts((4, 1, 6), 2, learner.WIDTH, learner.VOCAB)
  policy = learner.policy(0.05)  # it has left the reference
  reference = np.asarray(learner.logprobs(learner.policy(), rollouts))
  rewards = rng.uniform(size=(size, 2)).astype(np.float32)
  ratios = np.float64(learner.logprobs(policy, rollouts)) - np.float64(reference)
  slopes, losses = _soft_dpo(ratios.sum(-1), np.float64(rewards), tau)

  groups = Groups(Rollouts(*(getattr(rollouts, name) for name in (
    'prompt', 'prompt_mask', 'response', 'response_mask')), reference), rewards,
    np.zeros_like(rewards), np.ones(size, bool))
  built = objective.build(objective.ObjectiveConfig(
    'lpo_fwd', score='sum', token_clip=None, temperature_rule='constant',
    temperature_value=tau), 2)
  step = learner.jit(update.make_update(
    built, learner._TRANSFORM, optimizer.schedule(learner.OPTIMIZER),
    UpdateConfig(behavior='sampler')))
  state, metrics, _ = step(learner.fresh(policy), groups)

  # The chain rule through the policy: gradients of sum_k slope_k log pi(y_k), by a
  # forward pass over plain sequences.
  weights = np.float32(slopes[..., None] / size * rollouts.response_mask)
  expected = learner.written_gradient(
    lambda logprobs: jax.numpy.sum(weights * logprobs), policy, rollouts)
  learner.assert_close(learner.gradient(state), expected, 2e-5)
  targets = np.exp(rewards / tau) / np.exp(rewards / tau).sum(1, keepdims=True)
  entropies = -(targets * np.log(targets)).sum(1)
  np.testing.assert_allclose(float(metrics['actor/loss']), (losses - entropies).mean(),
                             rtol=1e-4)
  assert np.abs(slopes).max() > 0.05
