"""pass@k by enumeration; evaluation by counting what each problem's samples earned."""

import collections
import fractions
import itertools

import jax
import numpy as np
import pytest

from lpo_jax import evaluate, rollout, sampler, sharding, tasks
from lpo_jax.types import Problem, Rollouts

_WIDTH, _STOP, _SAMPLES = 5, 9, 6


@pytest.mark.parametrize('right', range(7))
@pytest.mark.parametrize('k', range(1, 7))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(right, k):
  samples = [True] * right + [False] * (6 - right)
  subsets = list(itertools.combinations(samples, k))
  expected = fractions.Fraction(sum(map(any, subsets)), len(subsets))
  actual = evaluate.pass_at_k(np.array([right]), 6, k)
  np.testing.assert_allclose(actual, [float(expected)], atol=1e-12)


def test_pass_at_1_is_the_mean_and_large_counts_stay_exact():
  right = np.array([0, 3, 64, 63])
  np.testing.assert_allclose(evaluate.pass_at_k(right, 64, 1), right / 64, atol=1e-12)
  np.testing.assert_array_equal(evaluate.pass_at_k(right, 64, 64), [0, 1, 1, 1])


@pytest.mark.parametrize('k', [0, 7])
def test_pass_at_k_beyond_the_samples_is_named(k):
  with pytest.raises(ValueError, match=f'k={k}: .* 6 samples'):
    evaluate.pass_at_k(np.array([1]), 6, k)


@pytest.mark.parametrize('answers,right,expected', [
  (['a', 'b', 'b'], [True, False, False], 0.0),
  (['b', 'a', 'a'], [False, True, True], 1.0),
  (['a', 'b', 'b', 'a'], [True, False, False, True], 1.0),  # a tie: the earliest
  (['b', 'a', 'a', 'b'], [False, True, True, False], 0.0),
  ([None, None, None, 'a'], [False, False, False, True], 1.0),  # None has no vote
  ([None, None], [False, False], 0.0),
])
def test_majority_is_right_when_the_most_frequent_answer_is(answers, right, expected):
  assert evaluate.majority_right(answers, np.array(right)) == expected


# A sampler that is a function of (key, row id), and a task that reads its tokens.


def _tokens(key, row_id, samples):
  seed = [*np.asarray(jax.random.key_data(key)).tolist(), int(row_id)]
  return np.random.default_rng(seed).integers(1, 4, size=(samples, _WIDTH - 1))


class _Tokenizer:
  pad_id, stop_tokens = 0, (_STOP,)

  def encode(self, prompt):
    return [1] * len(prompt)

  def decode(self, ids):
    return ' '.join(map(str, ids))


class _Task(tasks.base.Task):
  """Right when the first token is the problem's answer; partly right when the next."""

  name = 'fake'

  def verify(self, problem, text):
    words = text.split()
    return 1.0 if words[0] == problem.answer else 0.5 * (words[1] == problem.answer)

  def answer(self, problem, text):
    return None if text.split()[2] == '3' else text.split()[0]

  def diagnostics(self, problem, text, reward):
    return {'length': (float(len(text.split())), 1.0)}


_PROBLEMS = [Problem('x' * (i + 1), str(1 + i % 3), f'p{i}') for i in range(5)]
_KEY = jax.random.key(3)


@pytest.fixture
def rounds(monkeypatch):
  """Replace the sampler; return what it was asked for."""
  asked = []

  def sample(policy, prompt, prompt_mask, key, *, row_ids, samples_per_prompt,
             max_new_tokens, **_):
    asked.append((prompt.shape, np.asarray(row_ids).tolist()))
    response = np.full((len(prompt), samples_per_prompt, max_new_tokens), _STOP)
    for row, row_id in enumerate(np.asarray(row_ids)):
      response[row, :, :-1] = _tokens(key, row_id, samples_per_prompt)
    return Rollouts(prompt, prompt_mask, response, np.ones(response.shape, bool), None)

  monkeypatch.setattr(sampler, 'sample', sample)
  return asked


def _evaluate(batch, problems=_PROBLEMS, **choices):
  choices = dict(samples=_SAMPLES, pass_at=(1, 2, 6, 64), batch=batch) | choices
  mean_at = choices.pop('mean_at', ())
  sampling = rollout.SamplingConfig(samples_per_prompt=4, max_new_tokens=_WIDTH,
                                    prompt_buckets=(8,))
  return evaluate.evaluate(
    None, problems, _Task(), _Tokenizer(), _KEY, sampling,
    evaluate.EvalConfig(**choices), sharding.make_mesh((1, 1, 1)), mean_at)


def _by_hand():
  """Return right bool[problems, n] and the votes, from the tokens alone."""
  right, votes = [], []
  for index, problem in enumerate(_PROBLEMS):
    tokens = np.concatenate([_tokens(jax.random.fold_in(_KEY, r), index, 4)
                             for r in range(2)])[:_SAMPLES]
    right.append(tokens[:, 0] == int(problem.answer))
    votes.append([None if t[2] == 3 else t[0] for t in tokens])
  return np.array(right), votes


def test_scores_and_standard_errors_are_over_problems(rounds):
  right, votes = _by_hand()

  def majority(m):
    verdicts = []
    for answer, row in zip(votes, right, strict=True):
      cast = [a for a in answer[:m] if a is not None]
      counts = collections.Counter(cast)
      best = [a for a in cast if counts[a] == max(counts.values())]
      verdicts.append(bool(best) and bool(row[answer.index(best[0])]))
    return np.array(verdicts)

  pairs = list(itertools.combinations(range(_SAMPLES), 2))
  expected = {
    'mean@6': right.mean(1), 'mean@3': right[:, :3].mean(1), 'pass@1': right.mean(1),
    'pass@2': np.mean([right[:, list(pair)].any(1) for pair in pairs], axis=0),
    'pass@6': right.any(1), 'maj@6': majority(6),
    'maj@3': majority(3)}
  found = _evaluate(2, mean_at=(3, 32))
  for name, values in expected.items():
    np.testing.assert_allclose(found.pop(f'val/fake/{name}'), values.mean(),
                               err_msg=name)
    np.testing.assert_allclose(found.pop(f'val/fake/{name}_stderr'),
                               values.std() / np.sqrt(5), err_msg=name)
  assert found == {'val/fake/length': _WIDTH}  # nothing of k or m above n
  assert 0.1 < right.mean() < 0.9


@pytest.mark.parametrize('batch', [1, 3, 5, 8])
def test_results_do_not_depend_on_the_batch_size(rounds, batch):
  assert _evaluate(batch) == _evaluate(2)


def test_every_round_has_one_shape_and_names_each_problem_s_own_stream(rounds):
  _evaluate(2)
  assert rounds == [((2, 8), rows) for rows in ([0, 1], [2, 3], [4, 5])
                    for _ in range(2)]


def test_the_average_weighs_sets_alike_and_keeps_what_all_have():
  found = evaluate.average({
    'a': {'val/a/mean@2': 0.5, 'val/a/mean@2_stderr': 0.3, 'val/a/extra': 1.0},
    'b': {'val/b/mean@2': 0.25, 'val/b/mean@2_stderr': 0.4}})
  assert found == {'val/average/mean@2': 0.375,
                   'val/average/mean@2_stderr': pytest.approx(0.25)}
