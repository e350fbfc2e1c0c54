"""Blockwise attention equals one softmax over all keys, forwards and backwards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpo_jax.policy import blockwise

_B, _K, _N, _P, _H, _G, _D = 2, 3, 7, 5, 2, 2, 4


@pytest.fixture(autouse=True, params=[True, False], ids=['copied', 'shared'])
def copied(request, monkeypatch):
  """Run every test with prompts copied to their responses, and with one copy."""
  if not request.param:
    monkeypatch.setattr(blockwise, '_SHORT_PROMPT', 0)
  assert blockwise.is_copied(_N, _P) is request.param
  return request.param


def _normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _inputs(samples_padded=False):
  """Return queries, own keys and values, prompt keys and values, and the masks."""
  prompt_mask = np.arange(_P) >= np.array([[2], [0]])
  own_mask = np.ones((_B, _K if samples_padded else 1, _N), bool)
  if samples_padded:
    own_mask[0, 1, 3:] = False
  arrays = (_normal(0, _B, _K, _N, _H, _G, _D), _normal(1, _B, _K, _H, _N, _D),
            _normal(2, _B, _K, _H, _N, _D), _normal(3, _B, _H, _P, _D),
            _normal(4, _B, _H, _P, _D))
  return arrays, (own_mask, prompt_mask)


def _blockwise(arrays, masks, *, prompt=True, **options):
  queries, keys, values, prompt_keys, prompt_values = arrays
  return blockwise.attend(
    queries, blockwise.Keys(keys, values, masks[0]),
    blockwise.Keys(prompt_keys, prompt_values, masks[1]) if prompt else None, **options)


def _one_softmax(arrays, masks, *, prompt=True, window=None, xp=np):
  """Return the same with all keys laid end to end, one weight for each pair."""
  queries, keys, values, *shared = arrays
  seen = np.broadcast_to(masks[0][:, :, None], (_B, _K, _N, _N))
  offset = 0
  if prompt:
    offset = _P
    copies = [xp.repeat(x[:, None], _K, axis=1) for x in shared]
    keys = xp.concatenate([copies[0], keys], axis=3)
    values = xp.concatenate([copies[1], values], axis=3)
    before = np.broadcast_to(masks[1][:, None, None], (_B, _K, _N, _P))
    seen = np.concatenate([before, seen], axis=3)
  distance = np.arange(_N)[:, None] + offset - np.arange(_N + offset)
  seen = seen & (distance >= 0) & (distance < (window or 99))
  scores = xp.einsum('bknhgd,bkhsd->bknhgs', queries, keys) / _D ** 0.5
  scores = xp.where(seen[:, :, :, None, None], scores, -1e30)
  weights = xp.exp(scores - scores.max(-1, keepdims=True))
  weights = weights / weights.sum(-1, keepdims=True)
  return xp.einsum('bknhgs,bkhsd->bknhgd', weights, values)


@pytest.mark.parametrize('block', [1, 2, 3, 7, 64])
@pytest.mark.parametrize('window', [None, 1, 4, 9])
@pytest.mark.parametrize('prompt', [True, False])
def test_blocks_equal_one_softmax_in_float64(block, window, prompt):
  arrays, masks = _inputs()
  got = _blockwise(arrays, masks, prompt=prompt, window=window, block=block)
  expected = _one_softmax([x.astype(np.float64) for x in arrays], masks, prompt=prompt,
                          window=window)
  np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(('block', 'window', 'prompt'), [
  (3, None, True), (2, 4, True), (64, None, True), (3, None, False), (4, 2, False)])
def test_gradients_equal_those_of_one_softmax(block, window, prompt):
  arrays, masks = _inputs()
  weight = _normal(5, *arrays[0].shape)

  def gradient(function, **options):
    return jax.jit(jax.grad(lambda arrays: jnp.sum(
      weight * function(arrays, masks, prompt=prompt, window=window, **options))))(
        arrays)

  for got, expected in zip(gradient(_blockwise, block=block),
                           gradient(_one_softmax, xp=jnp), strict=True):
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_hidden_keys_have_no_influence_and_no_gradient():
  arrays, masks = _inputs(samples_padded=True)
  changed = [x.copy() for x in arrays]
  for x in changed[1:3]:
    x[0, 1, :, 3:] = 1e4
  for x in changed[3:]:
    x[0, :, :2] = 1e4
  got, other = (np.asarray(_blockwise(a, masks, block=3)) for a in (arrays, changed))
  np.testing.assert_array_equal(got[0, 1, :3], other[0, 1, :3])
  np.testing.assert_array_equal(got[1], other[1])
  slopes = jax.grad(lambda a: jnp.sum(_blockwise(a, masks, block=3)[0, 1, :3] ** 2))(
    arrays)
  assert not np.any(slopes[1][0, 1, :, 3:]) and not np.any(slopes[3][0, :, :2])


def test_queries_that_see_nothing_stay_finite():
  arrays, masks = _inputs()
  nothing = (np.zeros_like(masks[0]), np.zeros_like(masks[1]))
  value, slopes = jax.value_and_grad(
    lambda a: jnp.sum(_blockwise(a, nothing, block=3)))(arrays)
  assert np.isfinite(value)
  assert all(np.isfinite(x).all() for x in slopes)


def test_low_precision_goes_in_and_out_with_float32_sums():
  arrays, masks = _inputs()
  low = [jnp.asarray(x, jnp.bfloat16) for x in arrays]
  got = _blockwise(low, masks, block=3)
  assert got.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.asarray(got, np.float32),
                             _blockwise(arrays, masks, block=3), atol=0.05)
  slopes = jax.grad(lambda a: jnp.sum(
    _blockwise(a, masks, block=3).astype(jnp.float32)))(low)
  assert all(x.dtype == jnp.bfloat16 for x in slopes)


def test_weights_of_all_queries_never_exist(copied):
  arrays, masks = _inputs()
  text = jax.jit(jax.grad(lambda a: jnp.sum(_blockwise(a, masks, block=1)))).lower(
    arrays).as_text()
  weights = [f'x{_N * _G}x{width}xf32' for width in (_N, _P, _N + _P)]
  assert not any(shape in text for shape in weights)
  whole = jax.jit(lambda a: _blockwise(a, masks, block=_N)).lower(arrays).as_text()
  assert weights[2 if copied else 0] in whole  # what is looked for would be seen


@pytest.mark.parametrize('copied', [True], indirect=True)
def test_only_short_prompts_of_short_responses_are_copied(copied):
  assert blockwise.is_copied(128, 64)
  assert not blockwise.is_copied(129, 64) and not blockwise.is_copied(128, 65)
  assert not blockwise.is_copied(_N, 0)  # no prompt
  assert blockwise.block_of(128, 64) == 32 < blockwise.block_of(128, 65) == 64
  assert blockwise.block_of(4096, 64) == 256


def test_blocks_without_a_real_query_are_zero_and_the_others_the_same():
  arrays, (_, prompt_mask) = _inputs()
  own_mask = np.arange(_N) < np.array([[2, 3, 1], [0, 3, 2]])[..., None]
  real, masks = own_mask[..., None, None, None], (own_mask, prompt_mask)

  def loss(skip):
    def value(*arrays):
      out = _blockwise(arrays, masks, block=2, skip=skip)
      return jnp.sum(jnp.where(real, out, 0) ** 2), out

    return jax.jit(jax.grad(value, argnums=range(5), has_aux=True))(*arrays)

  (grads, out), (expected_grads, expected) = loss(True), loss(False)
  np.testing.assert_array_equal(out[:, :, 4:], 0)
  assert np.abs(expected[:, :, 4:]).max() > 0.1
  np.testing.assert_array_equal(np.where(real, out, 0), np.where(real, expected, 0))
  for a, b in zip(grads, expected_grads, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-6)
