"""Counts against XLA's own on programs without scans, and against real parameters."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from configs import models
from lpo_jax import hardware, microbatch, objective, roofline, sampler
from lpo_jax import policy as policies
from lpo_jax.types import Groups, Rollouts
from tests import learner, tiny

# One layer and one microbatch: what XLA counts once happens once.
_POLICY = policies.PolicyConfig(
  vocab_size=512, width=128, layers=1, heads=8, kv_heads=4, head_dim=32, mlp_width=256)
_ONE = roofline.Setting(
  policy=_POLICY, prompts=4, samples=4, prompt_width=64, new_tokens=2, chunk=64,
  micro_prompts=4, micro_responses=0, logprob_chunk=0, minibatches=1, epochs=1,
  behavior_pass=False, moment_dtype='float32', data=1, fsdp=1, tensor=1)
_CHIP = hardware.chip('TPU v5p')


def _changed(setting=_ONE, **fields):
  return dataclasses.replace(setting, **fields)


def _counted(function, *args):
  """Return the floating-point operations XLA counts, each loop's body once."""
  return learner.jit(function).lower(*args).compile().cost_analysis()['flops']


def _shapes(setting):
  def batch(*shape, dtype=jnp.int32):
    return jax.ShapeDtypeStruct(shape, dtype)

  prompts, samples = setting.prompts, setting.samples
  prompt = batch(prompts, setting.prompt_width)
  return (tiny.shapes(setting.policy), prompt, batch(*prompt.shape, dtype=bool),
          batch(prompts, samples, setting.new_tokens))


def test_prefill_counts_what_xla_counts():
  params, prompt, mask, _ = _shapes(_ONE)

  def prefill(policy, prompt, mask):
    last, keys = policy.prefill(prompt, mask)
    return policy.logits(last), keys

  # XLA also counts elementwise operations, a few percent of these products.
  assert _counted(prefill, params, prompt, mask) == pytest.approx(
    roofline.prefill(_ONE).flops, rel=0.1)


def test_decoding_counts_what_xla_counts_for_one_token():
  params, prompt, mask, response = _shapes(_ONE)

  def prompt_of(policy, prompt, mask):
    return policy.prefill(prompt, mask)[1]

  keys = jax.eval_shape(prompt_of, params, prompt, mask)
  cache = jax.eval_shape(lambda keys: policies.Cache.empty(keys, 4, 2), keys)
  token = jax.ShapeDtypeStruct((4, 4, 1), jnp.int32)

  def step(policy, token, prompt, cache):
    hidden, cache = policy.extend(token, prompt, cache)
    return policy.logits(hidden), cache

  assert _counted(step, params, token, keys, cache) == pytest.approx(
    roofline.decode(_ONE).flops, rel=0.1)


@pytest.mark.parametrize('remat', ['none', 'full'])
def test_the_update_counts_what_xla_counts(remat):
  setting = _changed(new_tokens=64, policy=dataclasses.replace(_POLICY, remat=remat))
  params = _shapes(setting)[0]
  kinds = dict(response=jnp.int32, response_mask=bool, logprobs=jnp.float32)
  rollouts = Rollouts(
    jax.ShapeDtypeStruct((4, 64), jnp.int32), jax.ShapeDtypeStruct((4, 64), bool),
    **{name: jax.ShapeDtypeStruct((4, 4, 64), kind) for name, kind in kinds.items()})
  rewards = jax.ShapeDtypeStruct((4, 4), jnp.float32)
  groups = Groups(rollouts, rewards, rewards, jax.ShapeDtypeStruct((4,), bool))
  one = objective.build(objective.ObjectiveConfig(), 4)

  def gradient(policy, groups):
    return microbatch.gradient(one, policy, groups, None, (jnp.float32(0.5),) * 3, True,
                               microbatch.UpdateConfig(micro_prompts=4))

  assert _counted(gradient, params, groups) == pytest.approx(
    roofline.update(setting).flops, rel=0.1)


def test_every_response_token_after_the_first_is_decoded_once():
  for width, chunk in ((1, 8), (2, 8), (20, 8), (1000, 128), (129, 128), (128, 128)):
    chunks = list(sampler.capacities(width, chunk))
    assert sum(steps for steps, _ in chunks) == width - 1
    assert all(room <= width for _, room in chunks)


@pytest.mark.parametrize('name', models.POLICIES)
def test_parameters_are_those_of_a_real_policy(name):
  config = models.POLICIES[name]
  leaves = jax.tree.leaves(tiny.shapes(config))
  assert sum(roofline.parameters(config)) == sum(leaf.size for leaf in leaves)


@pytest.mark.parametrize('phase', [roofline.prefill, roofline.decode, roofline.update])
def test_devices_share_the_work_and_only_many_talk(phase):
  one, two = phase(_ONE), phase(_changed(data=2))
  assert one.sent == one.passed == two.passed == 0
  assert two.flops == one.flops / 2
  assert phase(_changed(fsdp=2)).sent > 0
  split = phase(_changed(tensor=2))
  assert split.passed > 0 and split.sent == 0
  assert split.moved < one.moved


def test_a_phase_takes_as_long_as_what_bounds_it():
  spent = roofline.seconds(roofline.Work(459e12, 2.765e12 * 3, 600e9, 200e9), _CHIP)
  assert spent == pytest.approx(dict(flops=1, memory=3, links=2, total=3))
  whole = roofline.step(_ONE, _CHIP)
  assert whole['step']['total'] == pytest.approx(sum(
    whole[name]['total'] for name in ('prefill', 'decode', 'update')))


def test_two_passes_over_the_batch_cost_one_forward_more():
  once = roofline.update(_ONE).flops
  twice = roofline.update(_changed(micro_responses=4)).flops
  behavior = roofline.update(_changed(behavior_pass=True)).flops
  assert once < twice == behavior < 2 * once


def test_prompts_decoded_in_turn_hold_less_and_read_the_weights_again():
  whole, turns = _ONE, _changed(prompts_at_once=1)
  assert roofline.decode(turns).flops == pytest.approx(roofline.decode(whole).flops)
  assert roofline.decode(turns).moved > roofline.decode(whole).moved


@pytest.mark.parametrize('rows,patches', [(1, 64), (3, 256)])
def test_encoding_counts_what_xla_counts(rows, patches):
  """Of one block, not in a loop; of window and frame XLA counts the larger."""
  towers = [policies.VisionConfig(
    width=64, layers=1, heads=2, mlp_width=96, patch_size=4, window_size=32,
    full_blocks=full, image_token=3) for full in ((), (0,))]
  configs = [dataclasses.replace(models.POLICIES['figures_small'], vision=tower)
             for tower in towers]
  found = [roofline.encode(_changed(policy=config, prompts=rows, patches=patches)).flops
           for config in configs]
  assert (found[0] > found[1]) == (patches == 64)  # three blocks of 64 keys, or all
  x = jax.ShapeDtypeStruct((rows, patches, towers[0].patch_dim), jnp.float32)
  grid = jax.ShapeDtypeStruct((rows, 1, 3), jnp.int32)
  counted = _counted(lambda tower, x, grid: tower(x, grid, jnp.float32),
                     tiny.shapes(configs[0]).vision, x, grid)
  assert counted == pytest.approx(max(found), rel=0.1)


@pytest.mark.parametrize('dtype', ['same', 'bfloat16', 'int8'])
def test_slots_are_as_many_bytes_as_they_are_said_to_be(dtype):
  policy = dataclasses.replace(_ONE.policy, cache_dtype=dtype)
  shape = (policy.layers, 3, policy.kv_heads, 5, policy.head_dim)  # 3 prompts of 5
  prompt = policies.Prompt((jnp.zeros(shape, policy.dtype),) * 2, None, None)
  cache = policies.Cache.empty(prompt, 4, 7, dtype)  # 4 responses, 7 slots
  found = sum(x.nbytes for x in jax.tree.leaves(cache.layers))
  assert roofline.cache_bytes(policy, 3 * 4 * 7) == found
