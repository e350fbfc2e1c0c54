"""The choice of attention follows device, type and shape; on a mesh nothing changes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpo_jax import policy as policies
from lpo_jax import sequence, sharding
from lpo_jax.policy import blockwise, flash, flash_gpu, flash_tpu
from tests import blockwise_test, tiny

BIG = policies.PolicyConfig(vocab_size=13, width=16, layers=1, heads=4, kv_heads=2,
                            head_dim=128, mlp_width=8, dtype='bfloat16')


@pytest.mark.parametrize(('platform', 'changes', 'tokens', 'chosen', 'because'), [
  ('tpu', {}, 1024, 'pallas', 'kernel of tpu'),
  ('nvidia', {}, 1024, 'cudnn', 'kernel of nvidia'),
  ('nvidia', {'dtype': 'float16'}, 128, 'cudnn', ''),
  ('tpu', {'dtype': 'float16'}, 1024, 'xla', 'policy.dtype=bfloat16, not float16'),
  ('tpu', {'dtype': 'float32'}, 1024, 'xla', 'pallas takes policy.dtype=bfloat16'),
  ('nvidia', {'dtype': 'float32'}, 1024, 'xla', 'not float32'),
  ('tpu', {'head_dim': 64}, 1024, 'pallas', ''),
  ('tpu', {'head_dim': 80}, 1024, 'xla', 'head_dim of 64, 128, ..., not 80'),
  ('nvidia', {'head_dim': 80}, 1024, 'cudnn', ''),
  ('nvidia', {'head_dim': 256}, 1024, 'xla', 'not 256'),
  ('tpu', {}, 127, 'xla', 'max_new_tokens=128'),
  ('cpu', {}, 1024, 'xla', 'cpu has no kernel'),
  ('gpu', {}, 1024, 'xla', 'gpu has no kernel'),  # not NVIDIA's
  (None, {}, 1024, 'xla', 'unknown device')])
def test_auto_takes_a_kernel_where_it_can_run(platform, changes, tokens, chosen,
                                              because):
  config = dataclasses.replace(BIG, **changes)
  name, why = policies.choose_attention('auto', config, tokens, platform)
  assert name == chosen and f'attention: {chosen}' in why and because in why


def test_what_is_asked_for_is_taken_or_refused():
  choose = policies.choose_attention
  assert choose('xla', BIG, 1024, 'tpu')[0] == 'xla'
  assert choose('pallas', BIG, 1, 'tpu')[0] == 'pallas'
  assert choose('cudnn', BIG, 1, None)[0] == 'cudnn'
  for wanted, config, platform, message in (
      ('flash', BIG, 'tpu', "'flash': choose one of auto, xla, cudnn, pallas"),
      ('pallas', BIG, 'cpu', "'pallas' runs on tpu, but these devices are cpu"),
      ('cudnn', BIG, 'tpu', "'cudnn' runs on nvidia"),
      ('pallas', dataclasses.replace(BIG, head_dim=80), 'tpu', 'not 80'),
      ('cudnn', dataclasses.replace(BIG, dtype='float32'), 'nvidia', 'not float32')):
    with pytest.raises(ValueError, match=message):
      choose(wanted, config, 1024, platform)


def test_the_platform_is_that_of_the_mesh():
  assert policies.platform_of(sharding.make_mesh((1, 2, 1))) == 'cpu'
  abstract = jax.sharding.AbstractMesh((1, 2, 1), sharding.AXES)
  assert policies.platform_of(abstract) is None


@pytest.mark.parametrize('shape', [(1, 1, 1), (2, 1, 2), (1, 2, 4), (2, 2, 1)])
def test_on_a_mesh_each_device_attends_with_its_own_prompts_and_heads(shape):
  arrays, masks = blockwise_test._inputs()  # 2 prompts, 2 key heads of 2 query heads
  weight = blockwise_test._normal(5, *arrays[0].shape)
  seen = []

  def local(queries, own, prompt, *, window):
    seen.append((queries.shape, own.keys.shape, prompt.keys.shape))
    return blockwise.attend(queries, own, prompt, window=window)

  def gradient(attend):
    def loss(arrays):
      out = attend(arrays[0], blockwise.Keys(*arrays[1:3], masks[0]),
                   blockwise.Keys(*arrays[3:], masks[1]), window=9)
      return jnp.sum(weight * out), out
    return jax.jit(jax.grad(loss, has_aux=True))(arrays)

  with jax.set_mesh(sharding.make_mesh(shape)):
    got = gradient(functools.partial(flash.on_mesh, local))
  for mine, its in zip(jax.tree.leaves(got), jax.tree.leaves(
      gradient(blockwise.attend)), strict=True):
    np.testing.assert_allclose(mine, its, rtol=1e-4, atol=1e-5)
  data, fsdp, tensor = shape
  prompts = 2 if data * fsdp > 2 else 2 // (data * fsdp)  # else they do not split
  heads, group = max(1, 2 // tensor), 2 // max(1, tensor // 2)
  assert seen[0] == ((prompts, 3, 7, heads, group, 4), (prompts, 3, heads, 7, 4),
                     (prompts, heads, 5, 4))


@pytest.mark.parametrize(('name', 'function', 'options'), [
  ('cudnn', flash_gpu.attend, {'implementation': 'xla'}),
  ('pallas', flash_tpu.attend, {'interpret': True})])
def test_a_policy_gives_the_same_log_probabilities_and_gradient(
    name, function, options, monkeypatch):
  called = []

  def attend(*args, **window):
    called.append(name)
    return function(*args, **window, **options)

  monkeypatch.setitem(flash.ATTEND, name, functools.partial(flash.on_mesh, attend))
  batch = tiny.rollouts()

  def gradient(attention):
    policy = tiny.policy(attention=attention, layers=1)
    return jax.jit(jax.value_and_grad(lambda policy: jnp.sum(
      sequence.response_logprobs(policy, batch)[0])))(policy)

  value, slopes = gradient(name)
  expected, theirs = gradient('xla')
  assert len(called) == 2  # prompts, then responses
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  for mine, its in zip(*map(jax.tree.leaves, (slopes, theirs)), strict=True):
    np.testing.assert_allclose(mine, its, rtol=1e-3, atol=1e-4)
