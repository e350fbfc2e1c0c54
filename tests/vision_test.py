"""The vision tower: places and windows as loops find them; padding and rows do nothing.

That it computes what transformers does is held by parity_images_test.
"""

import itertools

import jax
import numpy as np
import pytest

from lpo_jax import microbatch, objective, sampler, sequence, update
from lpo_jax import policy as policies
from lpo_jax.policy import lora, vision
from lpo_jax.types import Groups, Images
from tests import tiny

TOWER = policies.VisionConfig(
  width=16, layers=2, heads=2, mlp_width=12, patch_size=2, temporal_patch_size=1,
  window_size=8, full_blocks=(1,), image_token=12, start_token=11)
GRIDS = np.array([[[1, 6, 10], [1, 2, 4]], [[0] * 3, [0] * 3], [[2, 4, 4], [0] * 3]],
                 np.int32)


def policy(**changes) -> policies.Policy:
  tower = policies.VisionConfig(**(vars(TOWER) | changes))
  return tiny.policy(qkv_bias=True, rope_sections=(1, 2, 1), vision=tower)


def images(width: int = 72) -> Images:
  patches = np.random.default_rng(3).normal(size=(3, width, TOWER.patch_dim))
  return Images(GRIDS, patches.astype(np.float32))


def prompts():
  """Return left-padded prompts with 17 image tokens, none and 8."""
  tokens, mask = tiny.prompts((21, 3, 12), 22, vocab=11)
  for row, spans in enumerate((((2, 17), (18, 20)), (), ((11, 19),))):
    for start, stop in spans:
      tokens[row, start:stop] = TOWER.image_token
  return tokens, mask


def spots(grid):
  """Yield image, frame, row, column of each token."""
  for image, (frames, rows, columns) in enumerate(grid):
    for frame, row, column in itertools.product(
        range(frames), range(rows // 2), range(columns // 2)):
      yield image, frame, row, column


@pytest.mark.parametrize('grid', GRIDS, ids=range(3))
def test_places_are_those_of_a_loop(grid):
  found = np.stack(vision.places(grid, 18, TOWER), axis=-1)
  expected = list(spots(grid))
  np.testing.assert_array_equal(found[:len(expected)],
                                np.array(expected).reshape(-1, 4))
  assert (found[len(expected):, 0] == len(grid)).all()


def test_positions_are_those_of_a_loop():
  tokens, mask = prompts()
  expected = np.zeros((3, *tokens.shape), int)
  for row, grid in enumerate(GRIDS):
    place, known, start = 0, list(spots(grid)), 0
    real = [t for t in range(tokens.shape[1]) if mask[row, t]]
    for t in real:
      if tokens[row, t] != TOWER.image_token:
        expected[:, row, t], place = place, place + 1
        continue
      if not any(known[0][1:]):
        start = place
      image, *inside = known.pop(0)
      expected[:, row, t] = [start + x for x in inside]
      place = start + max(grid[image][1:]) // 2
    assert not known
  found = vision.positions(tokens, mask, GRIDS, TOWER)
  np.testing.assert_array_equal(found, expected)


def test_each_block_sees_the_window_or_the_frame_and_nothing_else():
  """By the gradient of one token's vector in the patches of all."""
  for full in ((), (0, 1)):
    tower = policy(full_blocks=full).vision

    @jax.jit
    def slope(patches, token, tower=tower):
      return jax.grad(lambda x: tower(x[None], GRIDS[:1], x.dtype)[0, token].sum())(
        patches)

    def looked_at(token, slope=slope):
      found = np.abs(slope(images().patches[0], token)).sum(axis=1)
      return found.reshape(-1, 4).max(axis=1) > 1e-9

    known = list(spots(GRIDS[0]))
    for token in (0, 8, 14, 16):
      image, frame, row, column = known[token]
      same = [i == image and f == frame and (bool(full) or (
        r // 2 == row // 2 and c // 2 == column // 2)) for i, f, r, c in known]
      np.testing.assert_array_equal(looked_at(token)[:17], same)


@jax.jit
def encode(policy, images):
  return policy.encode(images).features


def test_padding_changes_nothing():
  narrow, wide = images(), images()
  wide = wide.replace(patches=np.pad(wide.patches, ((0, 0), (0, 56), (0, 0)),
                                     constant_values=3.0))
  found, padded = encode(policy(), narrow), encode(policy(), wide)
  for row, count in ((0, 17), (2, 8)):
    np.testing.assert_allclose(found[row, :count], padded[row, :count], atol=1e-5)


def test_many_queries_are_taken_some_at_a_time(monkeypatch):
  expected = encode(policy(), images())
  monkeypatch.setattr(vision, '_QUERIES', 16)
  found = jax.jit(lambda p, x: p.encode(x).features)(policy(), images())
  np.testing.assert_allclose(found[0, :17], expected[0, :17], atol=1e-5)


def test_some_rows_at_a_time_are_all_rows(monkeypatch):
  expected = encode(policy(), images())
  monkeypatch.setattr(sampler, 'ENCODED_AT_ONCE', 1)
  found = jax.jit(sampler.encode.__wrapped__)(policy(), images())
  assert found.patches is None
  for row, count in ((0, 17), (2, 8)):
    np.testing.assert_allclose(found.features[row, :count], expected[row, :count],
                               atol=1e-5)


def test_an_image_token_that_is_sampled_is_a_token_like_others():
  tokens, mask = prompts()
  given = images()
  rollouts = tiny.rollouts((21, 3, 12), samples=2)
  rollouts = rollouts.replace(prompt=tokens, prompt_mask=mask, images=given,
                              response=np.full_like(rollouts.response, 12))
  found, _ = jax.jit(sequence.response_logprobs)(policy(), rollouts)
  assert np.isfinite(found).all()


def test_a_policy_that_reads_text_only_says_so():
  tokens, mask = prompts()
  positions = np.zeros((3, *tokens.shape), np.int32)
  with pytest.raises(ValueError, match='images given to a policy that reads text only'):
    tiny.policy().prefill(tokens, mask, images())
  with pytest.raises(ValueError, match=r'positions \[3, B, T\] given'):
    tiny.policy()(tokens, positions, mask)


def test_patches_of_another_size_are_refused():
  with pytest.raises(ValueError, match=r'patches have shape .*give \[B, M, 12\]'):
    policy().vision(np.zeros((1, 8, 11)), GRIDS[:1], np.float32)


def groups(given: Images) -> Groups:
  rollouts = tiny.rollouts((21, 3, 12), samples=4)
  tokens, mask = prompts()
  rollouts = rollouts.replace(prompt=tokens, prompt_mask=mask, images=given)
  rewards = np.random.default_rng(0).integers(0, 2, (3, 4)).astype(np.float32)
  return Groups(rollouts, rewards, np.zeros_like(rewards), np.ones(3, bool))


def gradient(policy, groups, **cut):
  config = microbatch.UpdateConfig(**({'micro_prompts': 3} | cut))
  judge = objective.build(objective.ObjectiveConfig(), 4)

  @jax.jit
  def slope(policy, groups):
    statistics = (*update.batch_statistics(groups), 0)
    return microbatch.gradient(judge, policy, groups, None, statistics, True, config)[0]

  return slope(policy, groups)


def by_name(tree) -> dict:
  return {jax.tree_util.keystr(path): np.asarray(leaf)
          for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def test_a_frozen_tower_has_no_gradient_and_encodes_once():
  """Vectors or patches: the rest of the policy has the gradient of a trained one."""
  frozen, trained = policy(), policy(frozen=False)
  whole = by_name(gradient(trained, groups(images())))
  assert any(np.abs(slope).max() > 1e-3 for name, slope in whole.items()
             if name.startswith('.vision'))
  encoded = groups(Images(GRIDS, None, encode(frozen, images())))
  for given in (encoded, groups(images())):
    found = by_name(gradient(frozen, given))
    assert found and not any(name.startswith('.vision') for name in found)
    for name, slope in found.items():
      np.testing.assert_allclose(slope, whole[name], atol=1e-5, err_msg=name)


def test_microbatches_do_not_change_a_towers_gradient():
  trained = policy(frozen=False)
  whole = by_name(gradient(trained, groups(images())))
  for cut in ({'micro_prompts': 1}, {'micro_responses': 2}):
    for name, slope in by_name(gradient(trained, groups(images()), **cut)).items():
      np.testing.assert_allclose(slope, whole[name], atol=1e-5, err_msg=name)


def test_adapters_leave_the_tower_alone():
  config = policies.Lora(2)
  adapted = lora.add(policy(frozen=False), config, jax.random.key(0))
  trained, frozen = lora.split(adapted)
  assert all('_lora_' in name for name in by_name(trained))
  assert any(name.startswith('.vision') for name in by_name(frozen))
