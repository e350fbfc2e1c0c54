"""Sampling from the copy is sampling from the policy; the loop gathers no weights."""

import contextlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpo_jax import cores, resharding, roofline, sampler, sharding
from lpo_jax import policy as policies
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


def _layout(asked, mesh, platform='cpu', prompts=8, apart=False):
  return resharding.layout(asked, mesh, prompts, 64, tiny.policy(
    width=32, heads=4, vocab_size=16).config, platform, apart)


def test_sampling_stays_on_the_mesh_unless_another_is_asked_for(monkeypatch):
  monkeypatch.setattr(cores, 'count', lambda: 4)
  one, many = sharding.make_mesh((1, 1, 1)), sharding.make_mesh((2, 2, 2))
  assert _layout((), many) == _layout((2, 2, 2), many) == ()
  assert _layout((1, 1, 1), one) == _layout((), one, 'tpu') == ()
  assert _layout((), one, None) == ()
  assert _layout((), one) == (4, 1, 1)
  assert _layout((), one, prompts=6) == (3, 1, 1)
  assert _layout((4, 1, 2), many) == (4, 1, 2)
  turned = sharding.make_mesh((2, 2, 2), ('tensor', 'data', 'fsdp'))
  assert _layout((1, 8, 1), turned) == (8, 1, 1)


@pytest.mark.parametrize(('asked', 'prompts', 'words'), [
  ((4, 1, 1), 8, 'the 8 devices of mesh.shape'), ((8, 1), 8, 'one size for each of'),
  ((8, 1, 1), 6, 'batch=6 does not split'), ((1, 1, 8), 8, 'heads=4 does not split')])
def test_a_mesh_that_cannot_sample_is_refused(asked, prompts, words):
  with pytest.raises(ValueError, match=words):
    _layout(asked, sharding.make_mesh((2, 2, 2)), prompts=prompts)


def test_other_devices_sample_where_there_are_enough(monkeypatch):
  monkeypatch.setattr(cores, 'count', lambda: 4)
  one, two = sharding.make_mesh((1, 1, 1)), sharding.make_mesh((1, 2, 1))
  assert _layout((), one, apart=True) == (1, 1, 1)
  assert _layout((), two, apart=True) == (1, 2, 1)
  assert _layout((1, 1, 4), two, apart=True) == (1, 1, 4)
  with pytest.raises(ValueError, match='needs 8, but 6 are left beside the 2'):
    _layout((8, 1, 1), two, apart=True)


@pytest.mark.parametrize(('shape', 'asked', 'switches'), [
  ((1, 1, 1), (2, 1, 1), {}), ((1, 1, 1), (8, 1, 1), {'param_dtype': 'bfloat16'}),
  ((2, 2, 2), (8, 1, 1), {'param_dtype': 'bfloat16', 'qkv_bias': True}),
  ((1, 8, 1), (2, 1, 4), {}), ((8, 1, 1), (1, 4, 2), {'lora': policies.Lora(rank=2)})])
def test_on_another_mesh_the_samples_are_the_same(shape, asked, switches):
  policy, mesh = placed(shape, **switches)
  onto = resharding.mesh_of(mesh, asked)
  assert tuple(onto.shape.values()) == asked
  copy = resharding.copied(policy, mesh, onto)
  for made, said in zip(*map(jax.tree.leaves, (copy, resharding.described(
      policy, mesh, onto))), strict=True):
    assert (made.shape, made.dtype, made.sharding) == (
      said.shape, said.dtype, said.sharding)
    assert 'fsdp' not in str(made.sharding.spec)
  expected = sampled(resharding.copied(policy, mesh), mesh)
  found = resharding.returned(sampled(copy, onto), onto, mesh)
  assert all(x.sharding == resharding.place(x.shape, mesh)
             for x in jax.tree.leaves(found))
  np.testing.assert_array_equal(found.response, expected.response)
  np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=1e-5)
  for x in jax.tree.leaves(policy):
    assert x.sharding.mesh == mesh  # the policy stays where it is


def test_a_key_is_carried_only_where_it_must_be():
  one, two = sharding.make_mesh((1, 1, 1)), sharding.make_mesh((2, 1, 1))
  with jax.set_mesh(one):
    key = jax.random.key(3)
    assert resharding.carried(key, one) is key
    moved = resharding.carried(key, two)
    with pytest.raises(Exception, match='[Mm]esh'), jax.set_mesh(two):
      jax.jit(jax.random.fold_in)(key, jnp.arange(1)[0])
  with jax.set_mesh(two):
    jax.jit(jax.random.fold_in)(moved, jnp.arange(1)[0])
  assert jax.random.key_data(moved).tolist() == jax.random.key_data(key).tolist()
  assert resharding.carried(key, two) is key  # no mesh in context


@pytest.mark.parametrize(('shape', 'asked'), [
  ((1, 4, 2), (2, 1, 4)), ((1, 4, 2), (4, 1, 2)), ((8, 1, 1), (2, 2, 2))])
def test_the_estimate_counts_all_that_lies_on_another_mesh(shape, asked):
  policy, mesh = placed(shape, lora=policies.Lora(rank=2))
  copy = resharding.copied(policy, mesh, resharding.mesh_of(mesh, asked))
  made = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(copy))
  setting = roofline.Setting(
    policy=policy.config, prompts=8, samples=2, prompt_width=6, new_tokens=5, chunk=2,
    micro_prompts=8, micro_responses=0, logprob_chunk=0, minibatches=1, epochs=1,
    behavior_pass=False, moment_dtype='float32', copy_weights=True, sampling_mesh=asked,
    **mesh.shape)
  norms = sum(x.nbytes for path, x in jax.tree_util.tree_leaves_with_path(copy)
              if 'norm' in jax.tree_util.keystr(path))  # too small to be counted
  assert roofline.copy_bytes(setting) == pytest.approx(made - norms, rel=0.02)
  with_mesh = setting.sampling
  assert (with_mesh.data, with_mesh.fsdp, with_mesh.tensor) == asked
  assert roofline.decode(setting) == roofline.decode(with_mesh)
