"""Log-probabilities, entropies and scores against float64 NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpo_jax import sequence
from tests import tiny

_B, _K, _N, _D, _V = 2, 3, 7, 5, 11


def _inputs():
  """Return first, hidden, response, mask and the weight of the logits."""
  rng = np.random.default_rng(0)
  first, hidden, weight = (2 * rng.normal(size=shape).astype(np.float32) for shape in
                           ((_B, _D), (_B, _K, _N, _D), (_D, _V)))
  response = rng.integers(_V, size=(_B, _K, _N), dtype=np.int32)
  mask = np.arange(_N) < rng.integers(0, _N + 1, size=(_B, _K, 1))
  return first, hidden, response, mask, weight


@functools.partial(jax.jit, static_argnames='chunk')
def _token_logprobs(first, hidden, response, mask, weight, temperature=1.0, chunk=0):
  return sequence.token_logprobs(first, hidden, response, mask, lambda x: x @ weight,
                                 temperature=temperature, chunk=chunk)


def _expected(first, hidden, response, mask, weight, temperature):
  """Return log-probabilities and entropies, one token at a time."""
  logprobs, entropies = np.zeros((2, _B, _K, _N))
  for b, k, t in np.argwhere(mask):
    predictor = first[b] if t == 0 else hidden[b, k, t - 1]
    row = tiny.log_softmax(np.float64(predictor) @ weight / temperature)
    logprobs[b, k, t] = row[response[b, k, t]]
    entropies[b, k, t] = -np.sum(np.exp(row) * row)
  return logprobs, entropies


@pytest.mark.parametrize('temperature', [1.0, 0.7])
@pytest.mark.parametrize('chunk', [0, 3, _N, 100])
def test_token_logprobs_and_entropies_equal_shifted_log_softmax(chunk, temperature):
  inputs = _inputs()
  got = _token_logprobs(*inputs, temperature, chunk=chunk)
  for a, b in zip(got, _expected(*inputs, temperature), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def _gradient(chunk, part):
  first, hidden, response, mask, weight = _inputs()
  direction = np.random.default_rng(1).normal(size=mask.shape).astype(np.float32)

  def loss(first, hidden, weight):
    outputs = _token_logprobs(first, hidden, response, mask, weight, 0.7, chunk=chunk)
    return jnp.sum(direction * outputs[part])

  return jax.grad(loss, argnums=(0, 1, 2)), (first, hidden, weight)


def test_chunked_gradient_equals_unchunked():
  (chunked, inputs), (whole, _) = _gradient(3, 0), _gradient(0, 0)
  for a, b in zip(chunked(*inputs), whole(*inputs), strict=True):
    assert np.abs(b).max() > 0.1
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_masked_tokens_and_their_outputs_have_no_gradient():
  gradient, inputs = _gradient(3, 0)
  first, hidden, _ = gradient(*inputs)
  mask = _inputs()[3]
  predicts = np.pad(mask[..., 1:], ((0, 0), (0, 0), (0, 1)))  # output t, token t + 1
  np.testing.assert_array_equal(np.abs(hidden).sum(-1) > 0, predicts)
  np.testing.assert_array_equal(np.abs(first).sum(-1) > 0, mask[..., 0].any(1))


@pytest.mark.parametrize('chunk', [0, 3])
def test_no_gradient_flows_through_the_entropy(chunk):
  gradient, inputs = _gradient(chunk, 1)
  for leaf in gradient(*inputs):
    np.testing.assert_array_equal(leaf, 0)


def test_impossible_tokens_add_nothing_to_the_entropy():
  first, hidden, response, mask, weight = _inputs()
  response = response % (_V - 1)

  def with_impossible(x):
    return (x @ weight).at[..., -1].set(-jnp.inf)

  got = jax.jit(lambda: sequence.token_logprobs(first, hidden, response, mask,
                                                with_impossible))()
  expected = _expected(first, hidden, response, mask, weight[:, :-1], 1.0)
  for a, b in zip(got, expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def _sizes_over_vocabulary(jaxpr):
  """Return the sizes of all arrays with a vocabulary axis, inner programs included."""
  sizes = []
  for equation in jaxpr.eqns:
    sizes += [v.aval.size for v in equation.outvars
              if _V in getattr(v.aval, 'shape', ())]
    for inner in jax.core.jaxprs_in_params(equation.params):
      sizes += _sizes_over_vocabulary(inner)
  return sizes


@pytest.mark.parametrize('chunk', [0, 2])
def test_logits_of_all_positions_never_exist_when_chunked(chunk):
  gradient, inputs = _gradient(chunk, 0)
  sizes = _sizes_over_vocabulary(jax.make_jaxpr(gradient)(*inputs).jaxpr)
  assert max(sizes) == _B * _K * (chunk or _N) * _V


def _scores(score):
  rng = np.random.default_rng(0)
  mask = np.arange(_N) < np.array([_N, 0, 1, 3])[:, None]
  new, old = rng.normal(size=(2, *mask.shape)).astype(np.float32)
  old[~mask] = np.nan  # off the mask anything may stand
  return functools.partial(sequence.sequence_scores, score=score), new, old, mask


@pytest.mark.parametrize('score', ['mean', 'sum'])
def test_sequence_scores_are_log_ratios_over_real_tokens(score):
  function, new, old, mask = _scores(score)
  expected = [getattr(np, score)(a[m] - b[m]) if m.any() else 0.0
              for a, b, m in zip(new, old, mask, strict=True)]
  np.testing.assert_allclose(function(new, old, mask), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('score', ['mean', 'sum'])
def test_sequence_score_gradient_is_the_weight_of_each_token(score):
  function, new, old, mask = _scores(score)
  gradient = jax.grad(lambda new: jnp.sum(function(new, old, mask)))(new)
  lengths = np.maximum(mask.sum(1, keepdims=True), 1) if score == 'mean' else 1
  np.testing.assert_allclose(gradient, mask / lengths, rtol=1e-6)


@pytest.mark.parametrize('axis', [None, 0, 1])
def test_masked_mean_is_the_mean_of_what_counts(axis):
  values = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
  mask = np.random.default_rng(1).uniform(size=(4, 5)) < 0.5
  mask[:, 1], mask[2] = False, False
  values[~mask] = np.nan
  masked = np.ma.array(values, mask=~mask)
  expected = np.ma.filled(masked.mean(axis), 0.0)
  np.testing.assert_allclose(sequence.masked_mean(values, mask, axis), expected,
                             rtol=1e-5)


@pytest.mark.parametrize('chunk', [0, 2])
def test_response_logprobs_equal_those_of_whole_sequences(chunk):
  policy, batch = tiny.policy(), tiny.rollouts()
  function = jax.jit(functools.partial(sequence.response_logprobs, chunk=chunk))
  logprobs, entropy = function(policy, batch, temperature=0.7)
  rows = tiny.teacher_forced(policy, batch, 0.7)
  picked = np.take_along_axis(rows, batch.response[..., None], -1)[..., 0]
  mask = batch.response_mask
  np.testing.assert_allclose(logprobs, np.where(mask, picked, 0), rtol=1e-4, atol=1e-5)
  expected = np.where(mask, -np.sum(np.exp(rows) * rows, -1), 0)
  np.testing.assert_allclose(entropy, expected, rtol=1e-4, atol=1e-5)


def test_ranks_are_checked():
  first, hidden, response, mask, weight = _inputs()
  with pytest.raises(AssertionError, match='rank'):
    sequence.token_logprobs(first, hidden[0], response, mask, lambda x: x @ weight)
