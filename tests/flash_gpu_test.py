"""The rows given to cuDNN's attention, computed by XLA, equal blockwise attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpo_jax.policy import blockwise, flash_gpu
from tests import blockwise_test


def _loss(attend, masks, prompt, **options):
  weight = blockwise_test._normal(5, *blockwise_test._inputs()[0][0].shape)
  weight = weight * masks[0][..., None, None, None]  # padded queries are of no use

  def loss(arrays):
    queries, keys, values, *shared = arrays
    out = attend(queries, blockwise.Keys(keys, values, masks[0]),
                 blockwise.Keys(*shared, masks[1]) if prompt else None, **options)
    return jnp.sum(weight * out), out * (weight != 0)

  return loss


@pytest.mark.parametrize(('prompt', 'window', 'padding'), [
  (True, None, 'none'), (True, None, 'right'), (False, None, 'left'), (True, 4, 'none'),
  (True, 9, 'right'), (False, 1, 'right')])
def test_outputs_and_gradients_equal_those_of_blocks(prompt, window, padding):
  arrays, masks = blockwise_test._inputs(samples_padded=padding == 'right')
  if padding == 'left':
    masks = (np.broadcast_to(np.arange(7) >= 2, (2, 1, 7)), masks[1])

  def run(attend, **options):
    loss = _loss(attend, masks, prompt, window=window, **options)
    return jax.jit(jax.grad(loss, has_aux=True))(arrays)

  got, out = run(flash_gpu.attend, implementation='xla')
  expected, other = run(blockwise.attend)
  np.testing.assert_allclose(out, other, rtol=1e-4, atol=1e-5)
  for mine, its in zip(got, expected, strict=True):
    np.testing.assert_allclose(mine, its, rtol=1e-4, atol=2e-5)


def test_cudnn_is_what_is_asked_for(monkeypatch):
  asked = {}

  def record(queries, *_, **options):
    asked.update(options)
    return queries

  monkeypatch.setattr(jax.nn, 'dot_product_attention', record)
  arrays, masks = blockwise_test._inputs()
  flash_gpu.attend(arrays[0], blockwise.Keys(*arrays[1:3], masks[0]),
                   blockwise.Keys(*arrays[3:], masks[1]), window=4)
  assert asked['implementation'] == 'cudnn' and asked['is_causal']
  assert asked['local_window_size'] == (3, 0)  # earlier positions, later ones
  np.testing.assert_array_equal(asked['query_seq_lengths'], [10, 10, 10, 12, 12, 12])
  np.testing.assert_array_equal(asked['key_value_seq_lengths'],
                                asked['query_seq_lengths'])
