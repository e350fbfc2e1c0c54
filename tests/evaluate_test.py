"""pass@k by enumeration; evaluation by counting what each problem's samples earned."""

import collections
import fractions
import itertools

import jax
import numpy as np
import pytest

from lpo_jax import evaluate, rollout, sampler, sharding, tasks
from lpo_jax.types import Problem, Rollouts
from tests import tiny

_WIDTH, _STOP, _SAMPLES = 5, 9, 6
_TOKENIZER = tiny.Tokenizer(_STOP)


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
    cut = response[:, :, 3] == 3  # these never stop, and have a token less
    width = np.where(cut, _WIDTH - 1, _WIDTH)[..., None]
    response[cut, -1] = 0
    return Rollouts(prompt, prompt_mask, response,
                    np.broadcast_to(np.arange(_WIDTH), response.shape) < width, None)

  monkeypatch.setattr(sampler, 'sample', sample)
  return asked


def _evaluate(batch, problems=_PROBLEMS, own=None, records=None, **choices):
  choices = dict(samples=_SAMPLES, pass_at=(1, 2, 6, 64), batch=batch) | choices
  sampling = rollout.SamplingConfig(samples_per_prompt=4, max_new_tokens=_WIDTH,
                                    prompt_buckets=(8,))
  return evaluate.evaluate(
    None, 'fake', tasks.base.EvalSet(problems, own), _Task(), _TOKENIZER, _KEY,
    sampling, evaluate.EvalConfig(**choices), sharding.make_mesh((1, 1, 1)), records)


def _by_hand(samples=_SAMPLES, at_once=4):
  """Return tokens i[problems, n, 4], right bool[problems, n] and the votes."""
  rounds = -(-samples // at_once)
  tokens = np.array([np.concatenate(
    [_tokens(jax.random.fold_in(_KEY, r), index, at_once) for r in range(rounds)])
    for index in range(len(_PROBLEMS))])[:, :samples]
  right = tokens[:, :, 0] == [[int(problem.answer)] for problem in _PROBLEMS]
  votes = [[None if t[2] == 3 else t[0] for t in row] for row in tokens]
  return tokens, right, votes


@pytest.mark.parametrize('n', [3, 6])
def test_scores_and_standard_errors_are_over_problems(n, rounds):
  tokens, right, votes = _by_hand()

  def majority(m):
    verdicts = []
    for answer, row in zip(votes, right, strict=True):
      cast = [a for a in answer[:m] if a is not None]
      counts = collections.Counter(cast)
      best = [a for a in cast if counts[a] == max(counts.values())]
      verdicts.append(bool(best) and bool(row[answer.index(best[0])]))
    return np.array(verdicts)

  def passes(k):
    subsets = itertools.combinations(range(_SAMPLES), k)
    return np.mean([right[:, list(subset)].any(1) for subset in subsets], axis=0)

  expected = {f'{score}@{m}': values for m in (n, 6) for score, values in (
    ('mean', right[:, :m].mean(1)), ('maj', majority(m)), ('pass', passes(m)))}
  expected |= {f'pass@{k}': passes(k) for k in (1, 2)}
  found = _evaluate(2, samples=n, drawn=_SAMPLES)
  for name, values in expected.items():
    np.testing.assert_allclose(found.pop(f'val/fake/{name}'), values.mean(),
                               err_msg=name)
    np.testing.assert_allclose(found.pop(f'val/fake/{name}_stderr'),
                               values.std() / np.sqrt(5), err_msg=name)
  cut, silent = tokens[:, :, 3] == 3, tokens[:, :, 2] == 3
  assert found == {  # nothing of k above n
    'val/fake/length': pytest.approx(_WIDTH - cut.mean()),
    'val/fake/truncated_frac': pytest.approx(cut.mean()),
    'val/fake/answer_missing_frac': pytest.approx(silent.mean())}
  assert 0.1 < right.mean() < 0.9 and 0.1 < cut.mean() < 0.9 and 0.1 < silent.mean()


@pytest.mark.parametrize('batch', [1, 3, 5, 8])
def test_results_do_not_depend_on_the_batch_size(rounds, batch):
  assert _evaluate(batch) == pytest.approx(_evaluate(2), rel=1e-12)


def test_every_round_has_one_shape_and_names_each_problem_s_own_stream(rounds):
  _evaluate(2)
  assert rounds == [((2, 8), rows) for rows in ([0, 1], [2, 3], [4, 5])
                    for _ in range(2)]


def test_a_sets_own_n_counts_and_no_more_are_drawn(rounds):
  found = _evaluate(5, own=2, drawn=64)
  assert len(rounds) == 1
  right = _by_hand(2, at_once=2)[1]
  assert found['val/fake/mean@2'] == pytest.approx(right.mean())
  assert found['val/fake/pass@2'] == pytest.approx(right.any(1).mean())
  assert not {name for name in found if '@6' in name}


def test_each_set_is_asked_at_its_own_n_and_temperature():
  sampling, config = rollout.SamplingConfig(), evaluate.EvalConfig(16, 64)
  asked = tasks.base.EvalSet(_PROBLEMS, 32, 0.25)
  own, measured = evaluate.settings(asked, sampling, config)
  assert (own.temperature, own.samples_per_prompt) == (0.25, 8)
  assert (measured.samples, measured.responses) == (32, 32)
  plain, measured = evaluate.settings(tasks.base.EvalSet(_PROBLEMS), sampling, config)
  assert plain == sampling and (measured.samples, measured.responses) == (16, 64)
  assert config.narrow().responses == 16


def test_sets_of_other_n_meet_in_the_average(rounds):
  sets = {'a': tasks.base.EvalSet(_PROBLEMS[:3], 2), 'b': tasks.base.EvalSet(_PROBLEMS)}
  sampling = rollout.SamplingConfig(samples_per_prompt=4, max_new_tokens=_WIDTH,
                                    prompt_buckets=(8,))
  found = evaluate.evaluate_sets(
    None, sets, _Task(), _TOKENIZER, _KEY, sampling, evaluate.EvalConfig(4, 6),
    sharding.make_mesh((1, 1, 1)))
  mean = found['average']
  for score in ('mean', 'pass', 'maj'):
    assert mean[f'val/average/{score}@n'] == pytest.approx(np.mean(
      [found['a'][f'val/a/{score}@2'], found['b'][f'val/b/{score}@4']]))
  assert mean['val/average/pass@1'] == pytest.approx(np.mean(
    [found[name][f'val/{name}/pass@1'] for name in 'ab']))
  assert 'val/average/mean@4' not in mean and 'val/average/truncated_frac' in mean


def test_the_average_weighs_sets_alike_and_keeps_what_all_have():
  def numbers(name, n, value, error):
    return {f'val/{name}/{score}@{n}{end}': number for score in ('mean', 'pass', 'maj')
            for end, number in (('', value), ('_stderr', error))}

  found = evaluate.average({
    'a': numbers('a', 2, 0.5, 0.3) | {'val/a/extra': 1.0, 'val/a/both': 1.0},
    'b': numbers('b', 3, 0.25, 0.4) | {'val/b/both': 0.0}}, {'a': 2, 'b': 3})
  expected = {f'{score}@n{end}': value for score in ('mean', 'pass', 'maj')
              for end, value in (('', 0.375), ('_stderr', 0.25))} | {'both': 0.5}
  assert found == {f'val/average/{name}': pytest.approx(value)
                   for name, value in expected.items()}


class _Kept:
  """Records in memory."""

  def __init__(self, outcomes=(), metrics=None):
    self.outcomes, self.metrics, self.problems = list(outcomes), metrics or {}, []

  def kept(self):
    return list(self.outcomes), dict(self.metrics)

  def add(self, problems, outcomes, metrics):
    self.problems += problems
    self.outcomes += outcomes
    self.metrics = rollout.metrics_lib.merge(self.metrics, metrics)


def test_what_is_kept_is_not_asked_again_and_the_numbers_are_the_same(rounds):
  whole = _Kept()
  expected = _evaluate(2, records=whole)
  assert expected == _evaluate(2) and whole.problems == _PROBLEMS
  assert all(len(outcome.responses) == _SAMPLES for outcome in whole.outcomes)
  part = _Kept()
  _evaluate(2, problems=_PROBLEMS[:4], records=part)
  rounds.clear()
  assert _evaluate(2, records=part) == expected
  assert [rows for _, rows in rounds] == [[4, 5]] * 2
  assert part.outcomes == whole.outcomes


@pytest.mark.parametrize(('sets', 'message'), [
  ({'average': tasks.base.EvalSet(_PROBLEMS)}, "'average': give it a name"),
  ({'a/b': tasks.base.EvalSet(_PROBLEMS)}, "'a/b': give it a name"),
  ({'a': tasks.base.EvalSet([])}, "'a' has 0 problems"),
  ({'a': tasks.base.EvalSet(_PROBLEMS, 0)}, 'samples=0'),
  ({'a': tasks.base.EvalSet(_PROBLEMS, 1, -0.5)}, 'temperature=-0.5'),
])
def test_a_set_that_cannot_be_is_named(sets, message):
  task = _Task()
  task.eval_sets = lambda: sets
  with pytest.raises(ValueError, match=message):
    evaluate.held_out(task, 3)


def test_a_set_is_cut_to_the_most_problems():
  task = _Task()
  task.eval_sets = lambda: {'a': tasks.base.EvalSet(_PROBLEMS, 2, 0.5)}
  assert evaluate.held_out(task, 3) == {'a': tasks.base.EvalSet(_PROBLEMS[:3], 2, 0.5)}
