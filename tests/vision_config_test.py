"""Sizes of a vision tower that cannot be are refused, and the rest follow."""

import dataclasses

import jax
import pytest

from configs import models
from lpo_jax import policy as policies
from lpo_jax.policy.vision_config import VisionConfig


@pytest.mark.parametrize('changes,message', [
  ({'heads': 3}, 'vision.width=1280'), ({'width': 96, 'heads': 16}, 'multiple of 4'),
  ({'window_size': 20}, 'less than one token'), ({'full_blocks': (32,)}, '32')])
def test_sizes_that_cannot_be_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    VisionConfig(**changes)


@pytest.mark.parametrize('changes,message', [
  ({'rope_sections': ()}, 'give both'), ({'rope_sections': (1, 2)}, 'three parts'),
  ({'rope_sections': (16, 24, 25)}, 'of the 64 pairs'), ({'vision': None}, 'give both'),
  ({'vocab_size': 151655}, 'vision.image_token=151655 is beyond')])
def test_a_decoder_that_does_not_fit_its_tower_is_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(models.POLICIES['qwen2.5_vl_3b'], **changes)


def test_sizes_are_those_of_qwen2_5_vl():
  config = models.POLICIES['qwen2.5_vl_3b']
  tower = config.vision
  assert (tower.head_dim, tower.patch_dim, tower.unit) == (80, 1176, 4)
  assert (tower.pixels_per_token, tower.window) == (28, 4)
  shapes = jax.eval_shape(lambda: policies.Policy(config, jax.random.key(0)))
  count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
  assert count == 3_754_622_976  # model.safetensors.index.json of the hub: 7509245952 B
  inside = sum(leaf.size for leaf in jax.tree.leaves(shapes.vision))
  assert sum(tower.parameters(config.width)) == inside
