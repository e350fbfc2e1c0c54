"""Bytes estimated from sizes: those of real parameters, and what each choice saves."""

import dataclasses

import jax
import numpy as np
import pytest

from configs import models
from lpo_jax import footprint, roofline, sharding
from tests import roofline_test, tiny


def _changed(**fields):
  return dataclasses.replace(roofline_test._ONE, **fields)


@pytest.mark.parametrize('shape', [(1, 1, 1), (2, 2, 2), (1, 4, 2)])
def test_params_and_moments_take_what_they_take_on_a_mesh(shape):
  config = models.POLICIES['bench']
  mesh = sharding.make_mesh(shape)
  params = tiny.shapes(config)
  places = sharding.state_shardings(params, mesh)
  real = sum(4 * np.prod(place.shard_shape(leaf.shape)) for leaf, place in
             zip(jax.tree.leaves(params), jax.tree.leaves(places), strict=True))
  data, fsdp, tensor = shape
  setting = _changed(policy=config, data=data, fsdp=fsdp, tensor=tensor)
  for kinds in footprint.memory(setting).values():
    assert kinds['params'] == pytest.approx(real)
    assert kinds['optimizer'] == pytest.approx(2 * real)
    assert kinds['total'] == pytest.approx(sum(
      size for kind, size in kinds.items() if kind != 'total'))


def _bytes(tree, mesh) -> float:
  places = sharding.state_shardings(tree, mesh)
  return sum(4 * np.prod(place.shard_shape(leaf.shape)) for leaf, place in
             zip(jax.tree.leaves(tree), jax.tree.leaves(places), strict=True))


@pytest.mark.parametrize('shape', [(1, 1, 1), (2, 1, 1)])
def test_a_frozen_tower_has_no_moments_and_leaves_only_vectors(shape):
  config = models.POLICIES['figures_small']
  mesh, params = sharding.make_mesh(shape), tiny.shapes(config)
  whole, tower = _bytes(params, mesh), _bytes(params.vision, mesh)
  data, fsdp, tensor = shape
  frozen = _changed(policy=config, patches=48, data=data, fsdp=fsdp, tensor=tensor)
  trained = dataclasses.replace(frozen, policy=dataclasses.replace(
    config, vision=dataclasses.replace(config.vision, frozen=False)))
  found, more = footprint.memory(frozen), footprint.memory(trained)
  for phase in ('sample', 'update'):
    assert found[phase]['params'] == more[phase]['params'] == pytest.approx(whole)
    assert found[phase]['optimizer'] == pytest.approx(2 * (whole - tower))
    assert more[phase]['optimizer'] == pytest.approx(2 * whole)
    assert more[phase]['activations'] > found[phase]['activations']


@pytest.mark.parametrize('tensor', [1, 2])
def test_packed_groups_lie_as_padded_ones_for_attention_too(tensor):
  plain, packed = (footprint.memory(_changed(pack=pack, tensor=tensor))
                   for pack in (1, 4))
  assert packed['sample'] == plain['sample']
  policy, one = roofline_test._ONE.policy, roofline_test._ONE
  tokens = one.micro_prompts * (one.prompt_width + one.samples * one.new_tokens)
  size = roofline.BYTES[policy.dtype] * 3 * policy.heads * policy.head_dim / tensor
  kept = {'none': 2 * policy.layers, 'dots': policy.layers, 'full': 0}[policy.remat]
  more = packed['update']['activations'] - plain['update']['activations']
  least = 4 * tokens * size * kept
  assert least <= more <= least + 2 * 4 * tokens * size and more > 0


def test_prompts_decoded_in_turn_hold_less():
  whole, turns, parked = (
    footprint.memory(_changed(prompts_at_once=n, parked=share))['sample']['kv_cache']
    for n, share in ((0, 1), (1, 0), (1, 0.5)))
  assert turns == pytest.approx(whole / 4)
  s = roofline_test._ONE
  row = roofline.kv_bytes(s.policy, s.new_tokens + s.prompt_width)
  # Rows come together with a prompt each, and half as many as are decoded wait.
  shared = roofline.kv_bytes(s.policy, (s.samples - 1) * s.prompt_width)
  assert parked == pytest.approx(turns + shared + s.samples / 2 * row)


def test_devices_that_only_sample_hold_the_copy_alone():
  where = dict(copy_weights=True, fsdp=4, sampling_mesh=(1, 1, 4))
  beside = footprint.memory(_changed(**where))
  apart = footprint.memory(_changed(**where, apart=True))
  assert apart['update'] == beside['update']
  assert apart['sample']['optimizer'] == 0 < beside['sample']['optimizer']
  assert apart['sample']['params'] == roofline.copy_bytes(_changed(**where))
  assert apart['sample']['kv_cache'] == beside['sample']['kv_cache']
