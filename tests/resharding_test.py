"""Sampling from the copy is sampling from the policy; the loop gathers no weights."""

import contextlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpo_jax import policy as policies
from lpo_jax import resharding, roofline, sampler, sharding
from tests import tiny

SETTINGS = dict(samples_per_prompt=2, max_new_tokens=5, chunk=2, stop_tokens=(3,))


def placed(shape, **switches):
  mesh = sharding.make_mesh(shape)
  policy = tiny.policy(**{'width': 32, 'heads': 4, 'vocab_size': 16, **switches})
  return jax.device_put(policy, sharding.state_shardings(policy, mesh)), mesh


def sampled(policy, mesh):
  tokens, mask = tiny.prompts((4, 1, 6, 2, 3, 5, 2, 1))
  with jax.set_mesh(mesh):
    return sampler.sample(policy, *sharding.shard_batch((tokens, mask), mesh),
                          jax.random.key(0), **SETTINGS)


def test_on_one_device_the_cast_copy_samples_the_same_bit_for_bit():
  policy, mesh = placed((1, 1, 1), dtype='bfloat16', qkv_bias=True, qk_norm=True,
                        tied_embeddings=True, lora=policies.Lora(rank=2))
  copy = resharding.copied(policy, mesh)
  matrices = [x.dtype for x in jax.tree.leaves(copy) if x.ndim > 2]  # stacked
  assert matrices and set(matrices) == {jnp.dtype('bfloat16')}
  expected, found = sampled(policy, mesh), sampled(copy, mesh)
  np.testing.assert_array_equal(found.response, expected.response)
  np.testing.assert_array_equal(found.logprobs, expected.logprobs)


def test_on_a_mesh_the_gathered_copy_samples_the_same():
  policy, mesh = placed((2, 2, 2))
  expected = sampled(policy, mesh)
  found = sampled(resharding.copied(policy, mesh), mesh)
  np.testing.assert_array_equal(found.response, expected.response)
  np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=1e-5)


def test_the_loop_gathers_the_split_weights_and_none_of_the_copy():
  policy, mesh = placed((1, 8, 1))
  sizes = {x.shape[-2:] for x in jax.tree.leaves(policy) if x.ndim > 1}

  def gathered(policy):
    tokens, mask = tiny.prompts((4, 1, 6, 2, 3, 5, 2, 1))
    found, lower = [], sampler.decode.lower

    class Spy:
      def __call__(self, *args, **kwargs):
        found.append(lower(*args, **kwargs).compile().as_text())
        return decode(*args, **kwargs)

    decode, sampler.decode = sampler.decode, Spy()
    try:
      with jax.set_mesh(mesh):
        sampler.sample(policy, *sharding.shard_batch((tokens, mask), mesh),
                       jax.random.key(0), **SETTINGS)
    finally:
      sampler.decode = decode
    shapes = re.findall(r'= f32\[([\d,]+)\]\S* all-gather', found[0])
    return {tuple(map(int, shape.split(',')))[-2:] for shape in shapes} & sizes

  assert gathered(policy)
  assert not gathered(resharding.copied(policy, mesh))


def test_what_needs_no_copy_is_the_policy_itself():
  policy, mesh = placed((2, 1, 2))
  assert resharding.copied(policy, mesh) is policy


def test_norms_biases_and_a_tower_stay_as_they_are():
  policy, mesh = placed((1, 2, 2), dtype='bfloat16', qkv_bias=True)
  copy = resharding.copied(policy, mesh)
  for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(policy),
                          jax.tree.leaves(copy), strict=True):
    name = jax.tree_util.keystr(path)
    assert (x is y) == ('norm' in name or 'bias' in name), name
    if x is not y:
      assert y.dtype == jnp.bfloat16 and 'fsdp' not in str(y.sharding.spec), name
      assert ('tensor' in str(y.sharding.spec)) == ('tensor' in str(x.sharding.spec))


def test_what_is_described_is_what_is_made_and_timed():
  policy, mesh = placed((1, 2, 2), dtype='bfloat16')
  entered = []

  @contextlib.contextmanager
  def during():
    entered.append('began')
    yield
    entered.append('ended')

  copy = resharding.copied(policy, mesh, during=during())
  assert entered == ['began', 'ended']
  for made, said in zip(*map(jax.tree.leaves, (copy, resharding.described(
      policy, mesh))), strict=True):
    assert (made.shape, made.dtype) == (said.shape, said.dtype)
    assert made.sharding.is_equivalent_to(said.sharding, made.ndim)


@pytest.mark.parametrize('tied', [False, True])
def test_the_estimate_counts_the_bytes_of_the_copy(tied):
  policy, mesh = placed((1, 4, 2), dtype='bfloat16', tied_embeddings=tied,
                        lora=policies.Lora(rank=2))
  copy = resharding.copied(policy, mesh)
  made = sum(x.addressable_shards[0].data.nbytes for x, y in zip(
    *map(jax.tree.leaves, (copy, policy)), strict=True) if x is not y)
  setting = roofline.Setting(
    policy=policy.config, prompts=8, samples=2, prompt_width=6, new_tokens=5, chunk=2,
    micro_prompts=8, micro_responses=0, logprob_chunk=0, minibatches=1, epochs=1,
    behavior_pass=False, moment_dtype='float32', copy_weights=True, **mesh.shape)
  assert roofline.copy_bytes(setting) == pytest.approx(made, rel=0.02)
