"""Prompts with images give what transformers computes, to 1e-4 in float32.

Qwen2.5-VL, as the hub has it and as transformers 5 writes it, tied and untied; two
images, none, one and one in a batch, of different sizes. Against recordings everywhere,
and against transformers itself where torch is there.
"""

import functools

import jax
import numpy as np
import pytest

from lpo_jax import policy as policies
from lpo_jax import sampler, sequence, sharding
from lpo_jax.policy import vision
from lpo_jax.types import Images, Rollouts
from tests import tiny
from tests.parity import checkpoints, images, record_images

TOLERANCE = 1e-4
FAMILIES = tuple(images.FAMILIES)
MESH = (2, 1, 2)


@pytest.fixture(scope='module')
def recorded():
  with np.load(record_images.RECORDINGS) as arrays:
    return dict(arrays)


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  room = tmp_path_factory.mktemp('checkpoints')
  return {family: images.write(room / family, family) for family in FAMILIES}


@pytest.fixture(scope='module')
def load(folders):
  return functools.cache(lambda family, dtype='float32': policies.from_pretrained(
    folders[family], dtype=dtype))


def three_parts(policy, padding: str) -> np.ndarray:
  _, grid = images.by_row()
  return np.asarray(_positions(*images.batch(padding), grid, policy.config.vision))


_positions = jax.jit(vision.positions, static_argnums=3)


@jax.jit
def call(policy, tokens, positions, mask, pictures):
  return policy(tokens, positions, mask, pictures)


def logits(policy, padding: str) -> np.ndarray:
  tokens, mask = images.batch(padding)
  found = call(policy, tokens, three_parts(policy, padding), mask, images.pictures())
  return np.where(mask[..., None], np.asarray(found), 0)


def given() -> Images:
  patches, grid = images.by_row()
  return Images(grid, patches)


@pytest.mark.parametrize('family', FAMILIES)
def test_vectors_of_images_are_the_recorded_ones(family, load, recorded):
  policy, expected = load(family), recorded[f'{family}/features']
  assert np.abs(expected).max() > 0.5
  patches, grid = images.pictures()
  found = jax.jit(lambda p, x, g: p.vision(x[None], g[None], x.dtype)[0])(
    policy, patches, grid)
  np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
  by_row = jax.jit(lambda p, x: p.encode(x))(policy, given())
  assert by_row.patches is None
  counts = [sum(g[1] * g[2] // 4 for g in row) for row in images.GRIDS]
  np.testing.assert_allclose(np.concatenate([
    row[:count] for row, count in zip(by_row.features, counts, strict=True)]),
    expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize('padding', ['left', 'right'])
@pytest.mark.parametrize('family', FAMILIES)
def test_positions_are_the_recorded_ones(family, padding, load, recorded):
  expected = recorded[f'{family}/{padding}/positions']
  assert (expected[0] != expected[1]).any()
  np.testing.assert_array_equal(three_parts(load(family), padding), expected)


@pytest.mark.parametrize('padding', ['left', 'right'])
@pytest.mark.parametrize('family', FAMILIES)
def test_logits_and_logprobs_are_the_recorded_ones(family, padding, load, recorded):
  found = logits(load(family), padding)
  expected = recorded[f'{family}/{padding}/logits']
  assert np.abs(expected).max() > 0.2
  np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
  tokens, mask = images.batch(padding)
  logprobs = np.take_along_axis(tiny.log_softmax(found)[:, :-1],
                                tokens[:, 1:, None], -1)[..., 0]
  np.testing.assert_allclose(
    np.where(mask[:, 1:] & mask[:, :-1], logprobs, 0),
    recorded[f'{family}/{padding}/logprobs'], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize('family', FAMILIES)
def test_the_sampler_at_temperature_0_gives_the_recorded_continuations(
    family, load, recorded):
  tokens, mask = images.batch('left')
  rollouts = sampler.sample(
    load(family), tokens, mask, jax.random.key(0), samples_per_prompt=2,
    max_new_tokens=checkpoints.NEW, temperature=0.0, stop_tokens=(), chunk=3,
    images=given())
  for k in range(2):
    np.testing.assert_array_equal(np.asarray(rollouts.response)[:, k],
                                  recorded[f'{family}/greedy'])


@pytest.mark.parametrize('mesh', [(1, 1, 1), MESH, (1, 4, 2)])
def test_learner_scores_continuations_as_transformers_does(mesh, folders, recorded):
  """Prefill and extend on a mesh; greedy tokens have the largest log-probability."""
  mesh = sharding.make_mesh(mesh)
  family = 'qwen2.5_vl'
  policy = policies.from_pretrained(folders[family], mesh, 'float32')
  tokens, mask = images.batch('left')
  response = recorded[f'{family}/greedy'][:, None]
  rollouts = Rollouts(tokens, mask, response, np.ones(response.shape, bool), None,
                      given())
  with jax.set_mesh(mesh):
    found, _ = jax.jit(sequence.response_logprobs)(policy, rollouts)
  expected = np.log(np.exp(_continued(folders[family])).max(-1))
  np.testing.assert_allclose(np.asarray(found)[:, 0], expected, rtol=0, atol=TOLERANCE)


def _continued(folder) -> np.ndarray:
  """Return transformers' log-probabilities f64[4, NEW, V] of the greedy tokens."""
  pytest.importorskip('torch')
  import torch
  model = record_images.load(folder)
  inputs = record_images.inputs('left')
  with torch.no_grad():
    out = model.generate(**inputs, do_sample=False, pad_token_id=0, eos_token_id=None,
                         max_new_tokens=checkpoints.NEW, output_scores=True,
                         return_dict_in_generate=True)
  return tiny.log_softmax(torch.stack(out.scores, 1).float().numpy())


@pytest.mark.parametrize('family', FAMILIES)
def test_a_sharded_policy_gives_the_same_logits(family, folders, recorded):
  mesh = sharding.make_mesh(MESH)
  policy = policies.from_pretrained(folders[family], mesh, 'float32')
  with jax.set_mesh(mesh):
    found = logits(policy, 'left')
  np.testing.assert_allclose(found, recorded[f'{family}/left/logits'], rtol=0,
                             atol=TOLERANCE)


@pytest.mark.parametrize('family', FAMILIES)
def test_bfloat16_stays_near(family, load, recorded):
  """As near as bfloat16 is: a 256th of what passes through each of the layers."""
  found, expected = logits(load(family, 'bfloat16'), 'left'), recorded[
    f'{family}/left/logits']
  gap = np.abs(found - expected)
  assert 1e-4 < gap.max() < 0.15 * np.abs(expected).max()
  assert gap.mean() < 0.02 * np.abs(expected).max()


@pytest.mark.parametrize('change', [
  {'window_size': 32}, {'fullatt_block_indexes': []}])
def test_other_windows_would_be_caught(change, tmp_path, recorded):
  family = 'qwen2.5_vl'
  wrong = images.FAMILIES[family]['vision_config'] | change
  policy = policies.from_pretrained(
    images.write(tmp_path, family, vision_config=wrong), dtype='float32')
  gap = np.abs(logits(policy, 'left') - recorded[f'{family}/left/logits']).max()
  assert gap > 10 * TOLERANCE


def test_tokens_that_do_not_match_the_images_are_refused(load):
  policy = load('qwen2.5_vl')
  tokens, mask = images.batch('left')
  patches, grid = images.pictures()
  with pytest.raises(ValueError, match='hold 26 image tokens, but the images are 16'):
    policy(tokens, three_parts(policy, 'left'), mask, (patches, grid[:2]))


@pytest.fixture(scope='module')
def live():
  pytest.importorskip('torch')
  return record_images


def test_the_recordings_are_what_transformers_computes(folders, recorded, live):
  for family in FAMILIES:
    for name, value in live.observe(folders[family]).items():
      np.testing.assert_allclose(value, recorded[f'{family}/{name}'], atol=1e-5)


@pytest.mark.parametrize('family', FAMILIES)
def test_a_round_trip_gives_transformers_the_same_logits(family, folders, tmp_path,
                                                         live):
  """Import, export, load in transformers: the logits of the original, and ours."""
  policy = policies.from_pretrained(folders[family], sharding.make_mesh(MESH))
  out = str(tmp_path / 'out')
  policies.save_pretrained(policy, out, max_shard_bytes=20_000, source=folders[family])
  original, exported = live.load(folders[family]), live.load(out)
  expected = live.logits(original, 'left')
  np.testing.assert_array_equal(live.logits(exported, 'left'), expected)
  ours = policies.from_pretrained(out, dtype='float32')
  np.testing.assert_allclose(logits(ours, 'left'), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize('family', FAMILIES)
def test_a_round_trip_without_the_source_describes_the_same_model(family, folders,
                                                                  tmp_path, live):
  policy = policies.from_pretrained(folders[family])
  out = str(tmp_path / 'out')
  policies.save_pretrained(policy, out)
  assert policies.read_config(out) == policy.config
  np.testing.assert_array_equal(live.logits(live.load(out), 'right'),
                                live.logits(live.load(folders[family]), 'right'))
