"""The TPU kernels, interpreted, equal blockwise attention; they compile for TPUs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpo_jax import ahead
from lpo_jax.policy import blockwise, flash_tpu
from tests import blockwise_test

interpreted = functools.partial(flash_tpu.attend, interpret=True)


def _run(attend, arrays, masks, *, prompt=True, **options):
  """Return the gradients of a weighted sum of the outputs, and the outputs."""
  weight = blockwise_test._normal(5, *arrays[0].shape)

  def loss(arrays):
    out = _call(attend, arrays, masks, prompt, **options)
    return jnp.sum(weight * out), out

  return jax.jit(jax.grad(loss, has_aux=True))(arrays)


def _call(attend, arrays, masks, prompt, **options):
  queries, keys, values, *shared = arrays
  return attend(queries, blockwise.Keys(keys, values, masks[0]),
                blockwise.Keys(*shared, masks[1]) if prompt else None, **options)


@pytest.mark.parametrize(('block', 'window', 'prompt', 'padded'), [
  (3, None, True, True),  # blocks that do not divide 7 queries and 5 prompt positions
  (4, 4, True, False),  # windows that end in the prompt
  (2, 1, False, False),
  (64, None, True, False)])  # wider than everything
def test_outputs_and_gradients_equal_those_of_blocks(block, window, prompt, padded):
  arrays, masks = blockwise_test._inputs(samples_padded=padded)
  got, out = _run(interpreted, arrays, masks, prompt=prompt, window=window, block=block)
  expected, other = _run(blockwise.attend, arrays, masks, prompt=prompt, window=window)
  np.testing.assert_allclose(out, other, rtol=1e-4, atol=1e-5)
  for mine, its in zip(got, expected, strict=True):
    np.testing.assert_allclose(mine, its, rtol=1e-4, atol=1e-5)


def test_left_padded_prompts_run_by_themselves_and_stay_finite():
  arrays, masks = blockwise_test._inputs()
  own = np.broadcast_to(np.arange(7) >= 2, (2, 1, 7))
  got, out = _run(interpreted, arrays, (own, None), prompt=False, block=4)
  other = _call(blockwise.attend, arrays, (own, None), False)
  np.testing.assert_allclose(out[:, :, 2:], other[:, :, 2:], rtol=1e-4, atol=1e-5)
  assert all(np.isfinite(x).all() for x in (out, *got))


def test_low_precision_comes_out_as_it_went_in():
  arrays, masks = blockwise_test._inputs()
  low = [jnp.asarray(x, jnp.bfloat16) for x in arrays]
  got = _call(interpreted, low, masks, True, block=4)
  assert got.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.asarray(got, np.float32), _call(
    blockwise.attend, arrays, masks, True), atol=0.05)


@pytest.mark.parametrize(('width', 'block', 'expected'), [
  (1024, 512, (2, 512)), (640, 512, (2, 384)), (64, 512, (1, 128)), (7, 3, (3, 3))])
def test_blocks_are_equal_and_whole_registers_wide(width, block, expected):
  assert flash_tpu._cut(width, block) == expected


@pytest.mark.parametrize('topology', ['v5e:2x2', 'v5p:2x2x1'])
def test_kernels_compile_for_a_tpu_that_is_not_here(topology):
  pytest.importorskip('libtpu')
  place = jax.sharding.SingleDeviceSharding(ahead.described(topology)[0])

  def array(*shape, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

  arrays = (array(1, 2, 300, 2, 2, 128), array(1, 2, 2, 300, 128),
            array(1, 2, 2, 300, 128), array(1, 2, 200, 128), array(1, 2, 200, 128))
  masks = array(1, 1, 300, dtype=bool), array(1, 200, dtype=bool)
  gradient = jax.grad(lambda arrays, masks: jnp.sum(_call(
    flash_tpu.attend, arrays, masks, True, window=250).astype(jnp.float32)))
  text = jax.jit(gradient).lower(arrays, masks).compile().as_text()
  assert text.count('tpu_custom_call') >= 4  # outputs, queries, own keys, prompt keys
