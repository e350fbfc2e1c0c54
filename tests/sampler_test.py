"""The sampler against enumeration, teacher forcing, and its own other paths."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import shapes
from lpo_jax import compaction, sampler, sharding
from lpo_jax.types import Rollouts
from tests import tiny

_PAD = 12
_STOPS = (2, 7)


def _sample(batch=None, policy=None, seed=0, **settings):
  """Return rollouts as NumPy arrays."""
  prompt, mask = tiny.prompts() if batch is None else batch
  settings = dict(samples_per_prompt=4, max_new_tokens=12, stop_tokens=_STOPS,
                  pad_token=_PAD) | settings
  return jax.tree.map(np.asarray, sampler.sample(
    policy or tiny.policy(), prompt, mask, jax.random.key(seed), **settings))


_cached = functools.cache(_sample)


def _same(a: Rollouts, b: Rollouts):
  """Assert equal tokens and masks, and log-probabilities up to rounding."""
  np.testing.assert_array_equal(a.response, b.response)
  np.testing.assert_array_equal(a.response_mask, b.response_mask)
  np.testing.assert_allclose(a.logprobs, b.logprobs, rtol=1e-4, atol=1e-4)


def _rows(batch: Rollouts, index) -> Rollouts:
  return jax.tree.map(lambda x: x[index], batch)


def _picked(rows, batch: Rollouts):
  """Return rows[..., token] of every response token, 0 off the mask."""
  picked = np.take_along_axis(rows, batch.response[..., None], axis=-1)[..., 0]
  return np.where(batch.response_mask, picked, 0)


# Log-probabilities and the end of a response.


@pytest.mark.parametrize('temperature', [1.0, 0.7])
def test_logprobs_equal_teacher_forced_ones(temperature):
  batch = _cached(temperature=temperature)
  rows = tiny.teacher_forced(tiny.policy(), batch, temperature)
  assert batch.response_mask.sum() > 20
  np.testing.assert_allclose(batch.logprobs, _picked(rows, batch), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('dtype', ['bfloat16', 'int8'])
def test_a_narrow_cache_moves_logprobs_by_little(dtype):
  narrow = tiny.policy(cache_dtype=dtype)
  batch = _sample(policy=narrow)
  rows = tiny.teacher_forced(narrow, batch)
  gap = np.abs(batch.logprobs - _picked(rows, batch))[batch.response_mask]
  assert 1e-6 < gap.max() < 0.05  # it is used, and it is near
  np.testing.assert_allclose(rows, tiny.teacher_forced(tiny.policy(), batch), atol=0)


@pytest.mark.parametrize('settings', [
  dict(), dict(stop_tokens=()), dict(temperature=0.0),
  dict(samples_per_prompt=1), dict(temperature=0.0, max_new_tokens=1)], ids=str)
def test_response_ends_with_its_first_stop_token(settings):
  batch = _cached(**settings)
  stops = np.isin(batch.response, settings.get('stop_tokens', _STOPS))
  stopped_before = np.cumsum(stops & batch.response_mask, -1) - stops > 0
  np.testing.assert_array_equal(batch.response_mask, ~stopped_before)
  np.testing.assert_array_equal(batch.response[~batch.response_mask], _PAD)
  np.testing.assert_array_equal(batch.logprobs[~batch.response_mask], 0)
  assert batch.response.shape == (3, settings.get('samples_per_prompt', 4),
                                  settings.get('max_new_tokens', 12))
  assert batch.response.dtype == np.int32


def test_first_token_may_be_a_stop_token():
  batch = _cached()
  stops_at_once = np.isin(batch.response[..., 0], _STOPS)
  assert stops_at_once.any()
  np.testing.assert_array_equal(batch.response_mask.sum(-1) == 1, stops_at_once)


def test_prompts_come_back_untouched():
  prompt, mask = map(jnp.asarray, tiny.prompts())
  batch = sampler.sample(tiny.policy(), prompt, mask, jax.random.key(0),
                         samples_per_prompt=4, max_new_tokens=12, stop_tokens=_STOPS,
                         pad_token=_PAD)
  np.testing.assert_array_equal(batch.prompt, prompt)
  np.testing.assert_array_equal(batch.prompt_mask, mask)


def test_greedy_takes_the_most_likely_token_every_time():
  batch = _cached(temperature=0.0)
  likeliest = tiny.teacher_forced(tiny.policy(), batch).argmax(-1)
  mask = batch.response_mask
  np.testing.assert_array_equal(batch.response[mask], likeliest[mask])
  np.testing.assert_array_equal(batch.logprobs, 0)
  np.testing.assert_array_equal(batch.response[:, 1:], batch.response[:, :-1])


# Distributions: chi-square has mean df and variance 2 df; six deviations are allowed.


def _assert_drawn_from(counts, probs):
  """Assert that counts are multinomial; cells expected under 5 times are pooled."""
  expected = probs * counts.sum()
  np.testing.assert_array_equal(counts[probs == 0], 0)
  rare = expected < 5
  counts = np.append(counts[~rare], counts[rare].sum())
  expected = np.append(expected[~rare], max(expected[rare].sum(), 1e-9))
  used = expected > 1
  chi_square = np.sum((counts - expected)[used] ** 2 / expected[used])
  degrees = used.sum() - 1
  assert degrees >= 1
  assert chi_square < degrees + 6 * np.sqrt(2 * degrees)


_SMALL = dict(vocab_size=5, width=8, heads=2, kv_heads=1, head_dim=4, mlp_width=8)


@pytest.mark.parametrize('temperature', [1.0, 0.7])
def test_responses_follow_the_exact_distribution(temperature):
  policy, width, stop = tiny.policy(noise=0.5, **_SMALL), 3, 4
  prompt, prompt_mask = tiny.prompts((2, 3), width=3, vocab=5)
  batch = _sample((prompt, prompt_mask), policy, samples_per_prompt=20_000,
                  max_new_tokens=width, temperature=temperature, stop_tokens=(stop,),
                  pad_token=0)
  every = np.array(list(itertools.product(range(5), repeat=width)), np.int32)
  forced = np.broadcast_to(every, (2, *every.shape))
  ended = np.cumsum(every == stop, -1) - (every == stop) > 0
  mask = np.broadcast_to(~ended, forced.shape)
  rollouts = Rollouts(prompt, prompt_mask, forced, mask, None)
  logprobs = _picked(tiny.teacher_forced(policy, rollouts, temperature), rollouts)
  # A sequence that goes on after its stop token is another spelling: keep one.
  probs = np.exp(logprobs.sum(-1)) * ~(ended & (every != 0)).any(-1)
  np.testing.assert_allclose(probs.sum(-1), 1, rtol=1e-6)
  codes = batch.response @ np.array([25, 5, 1])
  for row in range(2):
    _assert_drawn_from(np.bincount(codes[row].ravel(), minlength=125), probs[row])


def _truncate(probs, top_k, top_p):
  """Return the renormalised probabilities of one token, first top_k, then top_p."""
  order = np.argsort(-probs)
  kept = order[:top_k] if top_k else order
  mass = np.cumsum(probs[kept] / probs[kept].sum())
  kept = kept[:np.searchsorted(mass, top_p) + 1]
  cut = np.zeros_like(probs)
  cut[kept] = probs[kept] / probs[kept].sum()
  return cut


@pytest.mark.parametrize(('top_k', 'top_p'), [
  (3, 1.0), (0, 0.7), (4, 0.8), (99, 1.0), (0, 1e-6)])
def test_truncated_sampling_follows_the_renormalised_distribution(top_k, top_p):
  policy = tiny.policy()
  prompt, mask = tiny.prompts((4, 6))
  batch = _sample((prompt, mask), policy, samples_per_prompt=4000, max_new_tokens=1,
                  temperature=0.7, top_k=top_k, top_p=top_p)
  rows = tiny.teacher_forced(policy, _one_token(batch), 0.7)[:, 0, 0]
  for row in range(2):
    probs = _truncate(np.exp(rows[row]), top_k, top_p)
    tokens = batch.response[row, :, 0]
    np.testing.assert_allclose(batch.logprobs[row, :, 0], np.log(probs[tokens]),
                               rtol=1e-4, atol=1e-5)
    if (probs > 0).sum() > 1:
      _assert_drawn_from(np.bincount(tokens, minlength=13), probs)
    else:
      assert probs[tokens].all()


def _one_token(batch: Rollouts) -> Rollouts:
  return batch.replace(response=batch.response[:, :1],
                       response_mask=batch.response_mask[:, :1])


def test_truncation_applies_to_every_token():
  batch = _cached(top_k=3, top_p=0.8)
  rows = np.exp(tiny.teacher_forced(tiny.policy(), batch))
  rows = np.apply_along_axis(lambda probs: _truncate(probs, 3, 0.8), -1, rows)
  picked = _picked(rows, batch)[batch.response_mask]
  assert (picked > 0).all()
  np.testing.assert_allclose(batch.logprobs[batch.response_mask], np.log(picked),
                             rtol=1e-4, atol=1e-4)


# What the result does not depend on.


def test_key_decides_the_result():
  _same(_sample(), _cached())
  assert (_sample(seed=1).response != _cached().response).any()
  rows = {row.tobytes() for row in _cached(stop_tokens=()).response.reshape(-1, 12)}
  assert len(rows) == 12  # no two responses of the batch share their randomness


def test_rows_do_not_depend_on_the_rest_of_the_batch():
  prompt, mask = tiny.prompts()
  part = [2, 0]
  alone = _sample((prompt[part], mask[part]), row_ids=np.array(part, np.int32))
  _same(alone, _rows(_cached(), np.array(part)))


def test_responses_do_not_depend_on_how_many_there_are():
  few, many = _cached(samples_per_prompt=1), _cached()
  _same(few, many.replace(**{name: getattr(many, name)[:, :1] for name in (
    'response', 'response_mask', 'logprobs')}))


def test_result_does_not_depend_on_padding():
  prompt, mask = tiny.prompts()
  wider = [np.pad(x, ((0, 0), (5, 0))) for x in (prompt, mask)]
  _same(_sample(wider), _cached())


def test_a_policy_of_numpy_arrays_samples_the_same():
  _same(_sample(policy=jax.tree.map(np.asarray, tiny.policy())), _cached())


def test_result_does_not_depend_on_unrolling():
  _same(_sample(unroll=False), _cached())


_LONG = dict(samples_per_prompt=4, max_new_tokens=32)


@functools.cache
def _long(**settings):
  """Return 8 prompts' rollouts of 32 tokens, most of them short."""
  return _sample(tiny.prompts((4, 1, 6, 3, 2, 5, 4, 6)), **_LONG, **settings)


@pytest.fixture
def calls(monkeypatch):
  """Record the sizes that compaction and cache growth produce."""
  seen = {'take': [], 'grow': []}
  take, grow = compaction._take, compaction.grow

  def spy_take(rows, local, groups, members):
    seen['take'].append(members.shape)
    return take(rows, local, groups, members)

  def spy_grow(rows, *, capacity):
    seen['grow'].append(capacity)
    return grow(rows, capacity=capacity)

  monkeypatch.setattr(compaction, '_take', spy_take)
  monkeypatch.setattr(compaction, 'grow', spy_grow)
  return seen


@pytest.mark.parametrize('at_once', [1, 4])
def test_result_does_not_depend_on_how_many_prompts_are_decoded_at_once(at_once):
  prompts = tiny.prompts((4, 1, 6, 3, 2, 5, 4, 6))
  _same(_sample(prompts, **_LONG, prompts_at_once=at_once), _long(chunk=32))


def test_compaction_does_not_change_the_result(calls):
  whole = _long(chunk=32)
  assert calls == {'take': [], 'grow': []}
  lengths = whole.response_mask.sum(-1)
  assert len(set(lengths.ravel())) > 5  # rows end at different times
  chunked = _sample(tiny.prompts((4, 1, 6, 3, 2, 5, 4, 6)), **_LONG, chunk=4)
  _same(chunked, whole)
  assert len(calls['take']) >= 2  # twice: places of places
  assert all(2 * b * k <= 32 for b, k in calls['take'])
  assert any(b < 8 for b, _ in calls['take'])
  assert any(k < 4 for _, k in calls['take'])


def test_cache_grows_by_half_and_only_as_far_as_responses_need(calls):
  greedy = dict(temperature=0.0, stop_tokens=())
  batch = _sample(**greedy, max_new_tokens=9, chunk=2)
  assert calls == {'take': [], 'grow': [4, 6, 9]}
  whole = _sample(**greedy)
  _same(batch, whole.replace(**{name: getattr(whole, name)[..., :9] for name in (
    'response', 'response_mask', 'logprobs')}))


def test_decoding_ends_when_every_row_has_stopped(monkeypatch):
  starts, decode = [], sampler.decode

  def spy_decode(policy, rows, *rest, **settings):
    starts.append(int(rows.cache.length) + 1)
    return decode(policy, rows, *rest, **settings)

  monkeypatch.setattr(sampler, 'decode', spy_decode)
  batch = _sample(stop_tokens=tuple(range(13)), temperature=0.0, chunk=4)
  assert (batch.response_mask.sum(-1) == 1).all()
  assert starts == [1]


def test_result_does_not_depend_on_the_mesh(calls):
  whole = _long(chunk=32)
  mesh = sharding.make_mesh((4, 2, 1))
  batch = tiny.prompts((4, 1, 6, 3, 2, 5, 4, 6))
  policy = tiny.policy()
  with jax.set_mesh(mesh):
    policy = jax.device_put(policy, sharding.state_shardings(policy, mesh))
    sharded = sharding.shard_batch(batch, mesh)
    _same(_sample(sharded, policy, **_LONG, chunk=16), whole)
  assert calls['take']
  assert all(b == 8 for b, _ in calls['take'])  # B must still split in eight


# Limits and refill.


def _heavy(prompts=8, **settings):
  """Return limits and rollouts that end there: few long, many short."""
  limits = shapes.heavy_tailed(prompts, 4, 32)
  lengths = np.resize((4, 1, 6, 3, 2, 5, 4, 6), prompts)
  return limits, _sample(tiny.prompts(lengths), tiny.policy(vocab_size=16), **settings,
                         **_LONG, limits=limits, stop_tokens=())


_heavy_alone = functools.cache(functools.partial(_heavy, chunk=32))


@pytest.mark.parametrize('per_prompt', [False, True])
def test_a_limit_cuts_a_response_and_changes_nothing_before(per_prompt):
  whole = _cached(stop_tokens=())
  limits = np.array([[1, 5, 12, 7], [3, 3, 99, 2], [12, 1, 4, 9]], np.int32)
  limits = limits[:, 1] if per_prompt else limits
  cut = _sample(stop_tokens=(), limits=limits, chunk=5)
  mask = np.arange(12) < limits.reshape(3, -1, 1)
  np.testing.assert_array_equal(cut.response_mask, np.broadcast_to(mask, (3, 4, 12)))
  _same(cut, whole.replace(
    response=np.where(mask, whole.response, _PAD), response_mask=cut.response_mask,
    logprobs=np.where(mask, whole.logprobs, 0)))


def test_rows_that_wait_for_others_become_what_they_would_have(monkeypatch):
  limits, whole = _heavy_alone()
  met, merge, told = [], compaction._merge, []
  monkeypatch.setattr(compaction, '_merge', lambda *args: met.append(1) or merge(*args))

  def finished(prompts, response, mask):
    for row in prompts:
      told.append(row)
      np.testing.assert_array_equal(response[row], whole.response[row])
      np.testing.assert_array_equal(mask[row], whole.response_mask[row])

  _, found = _heavy(prompts_at_once=2, chunk=8, parked=1.0,
                    finished=finished)
  np.testing.assert_array_equal(whole.response_mask.sum(-1), limits)
  _same(found, whole)
  assert len(met) >= 2
  assert len(set(told)) == len(told) >= 4


@pytest.mark.parametrize('shape,waits', [((2, 2, 2), True), ((4, 1, 1), False)])
def test_rows_wait_on_a_mesh_and_fuller_shards_send_some(monkeypatch, shape, waits):
  _, whole = _heavy_alone(prompts=16)
  met, merge, sent, send = [], compaction._merge, [], compaction._send
  monkeypatch.setattr(compaction, '_merge', lambda *args: met.append(1) or merge(*args))
  monkeypatch.setattr(compaction, '_send', lambda rows, distance: sent.append(
    distance) or send(rows, distance=distance))
  programs, decode = [], sampler.decode

  def spy_decode(*args, **settings):
    programs.append(decode.lower(*args, **settings))
    return decode(*args, **settings)

  monkeypatch.setattr(sampler, 'decode', spy_decode)
  mesh = sharding.make_mesh(shape)
  limits = shapes.heavy_tailed(16, 4, 32)
  batch = tiny.prompts(np.resize((4, 1, 6, 3, 2, 5, 4, 6), 16))
  policy = tiny.policy(vocab_size=16)
  with jax.set_mesh(mesh):
    policy = jax.device_put(policy, sharding.state_shardings(policy, mesh))
    *batch, limits = sharding.shard_batch((*batch, limits), mesh)
    _same(_sample(batch, policy, **_LONG, limits=limits, stop_tokens=(), chunk=8,
                  prompts_at_once=8, parked=1.0), whole)
    # Where each device has all weights, no step of one waits for the others.
    assert (' all-reduce(' in programs[0].compile().as_text()) == waits
  assert met
  assert set(sent) == {1, 2}


# Bad arguments: no policy is given, so nothing can have been compiled.


@pytest.mark.parametrize(('wrong', 'message'), [
  (dict(samples_per_prompt=0), 'samples_per_prompt=0: must be at least 1'),
  (dict(max_new_tokens=0), 'max_new_tokens=0: must be at least 1'),
  (dict(chunk=0), 'chunk=0: must be at least 1'),
  (dict(prompts_at_once=3), 'prompts_at_once=3 does not divide the 2 prompts'),
  (dict(parked=-1.0), 'parked=-1.0: must be at least 0'),
  (dict(temperature=-0.5), 'temperature=-0.5, .* need temperature >= 0'),
  (dict(top_k=-1), 'top_k=-1, .* top_k >= 0'),
  (dict(top_p=0.0), 'top_p=0.0: need .* 0 < top_p <= 1'),
  (dict(top_p=1.5), 'top_p=1.5: need .* 0 < top_p <= 1'),
  (dict(prompt=np.zeros(3, np.int32)), r'shape \(3,\): give tokens \[B, P\]'),
  (dict(prompt=np.zeros((2, 0), np.int32)), r'shape \(2, 0\): .* P >= 1'),
])
def test_bad_arguments_are_refused_before_any_compile(wrong, message):
  good = dict(prompt=np.zeros((2, 3), np.int32), prompt_mask=np.ones((2, 3), bool),
              samples_per_prompt=2, max_new_tokens=4)
  with pytest.raises(ValueError, match=message):
    sampler.sample(None, key=jax.random.key(0), **{**good, **wrong})
