"""The decoder computes what transformers does, to 1e-4 in float32, family by family.

Against recordings everywhere, and against transformers itself where torch is there.
"""

import functools

import jax
import numpy as np
import pytest

from lpo_jax import policy as policies
from lpo_jax import sampler, sharding
from tests import tiny
from tests.parity import checkpoints, record

TOLERANCE = 1e-4
FAMILIES = tuple(checkpoints.FAMILIES)


@pytest.fixture(scope='module')
def recorded():
  with np.load(record.RECORDINGS) as arrays:
    return dict(arrays)


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  room = tmp_path_factory.mktemp('checkpoints')
  return {family: checkpoints.write(room / family, checkpoints.config(family))
          for family in FAMILIES}


@pytest.fixture(scope='module')
def load(folders):
  return functools.cache(lambda family: policies.from_pretrained(folders[family],
                                                                 dtype='float32'))


def widen(tokens, positions, mask):
  """Append the places of the tokens to come, so that all calls have one shape."""
  del positions
  new = ((0, 0), (0, checkpoints.NEW))
  mask = np.pad(mask, new, constant_values=True)
  return np.pad(tokens, new), np.maximum(np.cumsum(mask, axis=1) - 1, 0), mask


def logits(policy, padding: str, shift: int = 0) -> np.ndarray:
  tokens, positions, mask = widen(*checkpoints.batch(padding))
  found = np.asarray(tiny.call(policy, tokens, positions + shift, mask))
  mask = checkpoints.batch(padding)[2]
  return np.where(mask[..., None], found[:, :mask.shape[1]], 0)


def greedy(policy) -> np.ndarray:
  """Continue left-padded prompts by whole forward passes."""
  tokens, positions, mask = widen(*checkpoints.batch('left'))
  for end in range(checkpoints.WIDTH, tokens.shape[1]):
    found = np.asarray(tiny.call(policy, tokens, positions, mask))
    tokens[:, end] = found[:, end - 1].argmax(axis=-1)
  return tokens[:, checkpoints.WIDTH:]


@pytest.mark.parametrize('family', FAMILIES)
def test_logits_and_logprobs_are_the_recorded_ones(family, load, recorded):
  policy = load(family)
  for padding in ('left', 'right'):
    found = logits(policy, padding)
    expected = recorded[f'{family}/{padding}/logits']
    assert np.abs(expected).max() > 0.2
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
    tokens, _, mask = checkpoints.batch(padding)
    logprobs = np.take_along_axis(tiny.log_softmax(found)[:, :-1],
                                  tokens[:, 1:, None], -1)[..., 0]
    np.testing.assert_allclose(
      np.where(mask[:, 1:] & mask[:, :-1], logprobs, 0),
      recorded[f'{family}/{padding}/logprobs'], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize('family', FAMILIES)
def test_greedy_continuations_are_the_recorded_ones(family, load, recorded):
  np.testing.assert_array_equal(greedy(load(family)), recorded[f'{family}/greedy'])


@pytest.mark.parametrize('family', ['llama3', 'mistral'])
def test_the_sampler_at_temperature_0_gives_the_recorded_continuations(
    family, load, recorded):
  tokens, _, mask = checkpoints.batch('left')
  rollouts = sampler.sample(load(family), tokens, mask, jax.random.key(0),
                            samples_per_prompt=1, max_new_tokens=checkpoints.NEW,
                            temperature=0.0, stop_tokens=(), unroll=False)
  np.testing.assert_array_equal(np.asarray(rollouts.response)[:, 0],
                                recorded[f'{family}/greedy'])


@pytest.mark.parametrize('family', ['qwen2', 'qwen3', 'llama3', 'mistral'])
def test_a_wrong_epsilon_would_be_caught(family, tmp_path, recorded):
  right = checkpoints.config(family)['rms_norm_eps']
  wrong = checkpoints.config(family, rms_norm_eps={1e-5: 1e-6, 1e-6: 1e-5}[right])
  policy = policies.from_pretrained(checkpoints.write(tmp_path, wrong), dtype='float32')
  gap = np.abs(logits(policy, 'left') - recorded[f'{family}/left/logits']).max()
  assert gap > 5 * TOLERANCE


@pytest.mark.parametrize('family', ['mistral', 'qwen2_window'])
def test_a_lost_window_would_be_caught(family, tmp_path, recorded):
  wrong = checkpoints.config(family, sliding_window=None)
  policy = policies.from_pretrained(checkpoints.write(tmp_path, wrong), dtype='float32')
  gap = np.abs(logits(policy, 'left') - recorded[f'{family}/left/logits']).max()
  assert gap > 50 * TOLERANCE


def test_far_positions_mean_the_same_in_bfloat16(folders):
  """Rotary angles are float32: in bfloat16, position 30000 would be whole turns off."""
  policy = policies.from_pretrained(folders['deepseek_qwen'])
  assert policy.config.dtype == 'bfloat16'
  near, far = (logits(policy, 'right', shift) for shift in (0, 30_000))
  assert np.abs(near - far).max() < 0.1 < np.abs(near).max()


@pytest.fixture(scope='module')
def live():
  pytest.importorskip('torch')
  return record


@pytest.mark.parametrize('family', FAMILIES)
def test_a_round_trip_gives_transformers_the_same_logits(family, folders, tmp_path,
                                                         live):
  """Import, export, load in transformers: the logits of the original, and ours."""
  policy = policies.from_pretrained(folders[family], sharding.make_mesh((2, 1, 2)))
  out = str(tmp_path / 'out')
  policies.save_pretrained(policy, out, max_shard_bytes=20_000)
  original, exported = live.load(folders[family]), live.load(out)
  ours = policies.from_pretrained(out, dtype='float32')
  for padding in ('left', 'right'):
    expected = live.logits(original, padding)
    np.testing.assert_array_equal(live.logits(exported, padding), expected)
    np.testing.assert_allclose(logits(ours, padding), expected, rtol=0, atol=TOLERANCE)


def test_the_recordings_are_what_transformers_computes(folders, recorded, live):
  for family in FAMILIES:
    for name, value in live.observe(folders[family]).items():
      np.testing.assert_allclose(value, recorded[f'{family}/{name}'], atol=1e-5)


def test_a_checkpoint_never_seen_before_agrees(tmp_path, live):
  hf = checkpoints.config('qwen3', vocab_size=101, hidden_size=40, num_hidden_layers=3,
                          num_attention_heads=6, num_key_value_heads=3, head_dim=10,
                          intermediate_size=52, torch_dtype='bfloat16')
  folder = checkpoints.write(tmp_path, hf, 4, checkpoints.tensors(hf, seed='new'))
  policy = policies.from_pretrained(folder, sharding.make_mesh((1, 4, 1)), 'float32')
  np.testing.assert_allclose(logits(policy, 'left'),
                             live.logits(live.load(folder), 'left'), atol=TOLERANCE)
