"""Images become the patches that transformers' own processor makes of them."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from lpo_jax import images

TOKEN = 7
SIZES = ((28, 28), (56, 84), (200, 300), (301, 77), (20, 30), (640, 480), (1, 200))


def picture(size, mode='RGB', kind='PNG') -> bytes:
  """Return an encoded image of (width, height), smooth with noise."""
  rng = np.random.default_rng(size[0])
  across, down = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(255, 0, size[1]))
  pixels = np.stack([across, down, rng.integers(0, 256, across.shape),
                     rng.integers(0, 256, across.shape)], -1).astype(np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels, 'RGBA').convert(mode).save(file, kind)
  return file.getvalue()


def processor(**changes) -> images.Processor:
  return images.Processor(**({'image_token': TOKEN} | changes))


def theirs(encoded, **settings):
  module = pytest.importorskip('transformers.models.qwen2_vl.image_processing_pil_'
                               'qwen2_vl')
  made = module.Qwen2VLImageProcessorPil(**settings)
  found = made([Image.open(io.BytesIO(encoded))], return_tensors='np')
  return found['pixel_values'], found['image_grid_thw'][0]


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('settings', [
  {}, {'min_pixels': 100 * 100, 'max_pixels': 200 * 200},
  {'patch_size': 8, 'min_pixels': 256, 'temporal_patch_size': 1}])
def test_patches_and_grid_are_those_of_transformers(size, settings):
  encoded = picture(size)
  patches, grid = theirs(encoded, **settings)
  ours = processor(**settings)
  assert ours.grid(encoded) == tuple(grid)
  assert ours.tokens(encoded) == grid.prod() // 4
  np.testing.assert_allclose(ours.patches(encoded), patches, rtol=0, atol=1e-5)


@pytest.mark.parametrize('mode,kind', [('L', 'PNG'), ('P', 'PNG'), ('RGBA', 'PNG'),
                                       ('RGB', 'JPEG')])
def test_every_mode_is_made_rgb_as_transformers_does(mode, kind):
  encoded = picture((90, 60), mode, kind)
  np.testing.assert_allclose(processor().patches(encoded), theirs(encoded)[0], rtol=0,
                             atol=1e-5)


def test_a_path_and_its_bytes_are_the_same(tmp_path):
  path = tmp_path / 'a.png'
  path.write_bytes(picture((60, 60)))
  np.testing.assert_array_equal(processor().patches(str(path)),
                                processor().patches(path.read_bytes()))


def test_each_placeholder_becomes_as_many_tokens_as_its_image_needs():
  two = [picture((56, 56)), picture((84, 56))]
  found = processor(min_pixels=784).expand([1, TOKEN, 2, TOKEN, 3], two, 'p')
  assert found == [1, *[TOKEN] * 4, 2, *[TOKEN] * 6, 3]


@pytest.mark.parametrize('count', [0, 2])
def test_images_that_do_not_match_the_prompt_are_refused_by_name(count):
  with pytest.raises(ValueError, match=f"problem 'row 5' has {count} images, but its "
                                       'prompt has 1 places'):
    processor().expand([1, TOKEN], [picture((56, 56))] * count, 'row 5')


@pytest.mark.parametrize('damaged', [b'', b'no image', picture((60, 60))[:20]])
def test_a_damaged_image_is_refused_by_name(damaged):
  with pytest.raises(ValueError, match="an image of problem 'row 6' cannot be taken"):
    processor().expand([TOKEN], [damaged], 'row 6')


def test_an_image_cut_short_is_refused_by_name():
  with pytest.raises(ValueError, match="an image of problem 'row 7' cannot be taken"):
    processor().batch([[picture((300, 300))[:5000]]], ['row 7'])


def test_a_strip_is_refused_by_name():
  with pytest.raises(ValueError, match="problem 'strip'.*1 x 201 pixels"):
    processor().batch([[picture((201, 1))]], ['strip'])


def test_a_batch_is_padded_to_few_widths():
  small, large = picture((56, 56)), picture((140, 140))
  ours = processor(min_pixels=784, buckets=(64, 128, 256))
  grid, patches = ours.batch([[small], [], [small, large, small]], 'abc')
  assert grid.tolist() == [[[1, 4, 4], [0] * 3, [0] * 3, [0] * 3], [[0] * 3] * 4,
                           [[1, 4, 4], [1, 10, 10], [1, 4, 4], [0] * 3]]
  assert patches.shape == (3, 256, ours.patch_dim)
  np.testing.assert_array_equal(patches[2, :16], ours.patches(small))
  np.testing.assert_array_equal(patches[2, 16:116], ours.patches(large))
  assert not patches[1].any() and not patches[2, 132:].any()
  assert ours.batch([[small], []], 'ab')[1].shape[1] == 64
  assert ours.batch([[], []], 'ab') is None


def test_images_beyond_every_bucket_are_refused_by_name():
  with pytest.raises(ValueError, match="problem 'b' have 100 patches.*max_pixels"):
    processor(min_pixels=784, buckets=(64,)).batch(
      [[picture((56, 56))], [picture((140, 140))]], 'ab')


def test_a_folder_states_bounds_and_means(tmp_path):
  assert images.read_config(str(tmp_path)) == {}
  path = tmp_path / images.CONFIG
  path.write_text(json.dumps({'min_pixels': 3136, 'max_pixels': 12845056,
                              'image_mean': [0.5] * 3, 'patch_size': 14}))
  assert images.read_config(str(tmp_path)) == {
    'min_pixels': 3136, 'max_pixels': 12845056, 'mean': (0.5,) * 3}
  path.write_text(json.dumps({'size': {'shortest_edge': 10, 'longest_edge': 20}}))
  assert images.read_config(str(tmp_path)) == {'min_pixels': 10, 'max_pixels': 20}
  for bad, message in ((json.dumps({'do_normalize': False}), 'do_normalize=False'),
                       ('{', 'not valid JSON')):
    path.write_text(bad)
    with pytest.raises(ValueError, match=message):
      images.read_config(str(tmp_path))


@pytest.mark.parametrize('changes,message', [
  ({'min_pixels': 0}, 'min_pixels=0'), ({'min_pixels': 9, 'max_pixels': 8}, 'max_pi'),
  ({'buckets': (6,)}, 'patch_buckets'), ({'buckets': ()}, 'patch_buckets')])
def test_settings_that_cannot_be_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    processor(**changes)
