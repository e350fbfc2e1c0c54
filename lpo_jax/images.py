"""Images to patches: Qwen2-VL's image processor in NumPy and PIL.

An image is made RGB (on white), resized (bicubic) so that both sides are whole tokens
and its pixels lie between two bounds, scaled, normalised, and cut into patches in the
order of their tokens. The grid follows from the size in the file's header, so image
tokens are counted before anything is decoded. PIL is imported with the first image.
"""

import dataclasses
import io
import json
import math
import os
from collections.abc import Sequence

import numpy as np

CONFIG = 'preprocessor_config.json'
_LONGEST_SIDE = 200  # times the shorter one


@dataclasses.dataclass(frozen=True)
class Processor:
  """How images become patches, and which token stands for them."""

  image_token: int
  patch_size: int = 14  # pixels
  temporal_patch_size: int = 2  # frames; a still image is repeated
  merge_size: int = 2  # patches of a token, each way
  min_pixels: int = 56 * 56
  max_pixels: int = 28 * 28 * 1280
  mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)  # CLIP's
  std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
  buckets: tuple[int, ...] = (256, 1024, 4096)  # patches of a prompt, padded to one

  def __post_init__(self):
    if not 0 < self.min_pixels <= self.max_pixels:
      raise ValueError(f'policy.vision.min_pixels={self.min_pixels} and max_pixels='
                       f'{self.max_pixels}: give 0 < min_pixels <= max_pixels')
    wrong = [size for size in self.buckets if size < 1 or size % self.merge_size**2]
    if wrong or not self.buckets:
      raise ValueError(f'sampling.patch_buckets={self.buckets}: give multiples of the '
                       f'{self.merge_size**2} patches of a token')

  @property
  def patch_dim(self) -> int:
    """Return the numbers of a patch: channels, frames, rows, columns."""
    return 3 * self.temporal_patch_size * self.patch_size**2

  def size(self, height: int, width: int) -> tuple[int, int]:
    """Return the height and width that an image is resized to.

    Raises:
      ValueError: one side is more than 200 times the other.
    """
    if max(height, width) > _LONGEST_SIDE * min(height, width):
      raise ValueError(f'an image of {height} x {width} pixels: one side must not be '
                       f'more than {_LONGEST_SIDE} times the other')
    unit = self.patch_size * self.merge_size
    high, wide = (round(side / unit) * unit for side in (height, width))
    if high * wide > self.max_pixels:
      shrink = math.sqrt(height * width / self.max_pixels)
      high, wide = (max(unit, math.floor(side / shrink / unit) * unit)
                    for side in (height, width))
    elif high * wide < self.min_pixels:
      grow = math.sqrt(self.min_pixels / (height * width))
      high, wide = (math.ceil(side * grow / unit) * unit for side in (height, width))
    return high, wide

  def grid(self, image: bytes | str) -> tuple[int, int, int]:
    """Return frames, rows and columns of an image, from its header alone.

    Args:
      image: an encoded file, or the path of one.
    """
    with _open(image) as picture:
      wide, high = picture.size
    high, wide = self.size(high, wide)
    return 1, high // self.patch_size, wide // self.patch_size

  def tokens(self, image: bytes | str) -> int:
    """Return how many tokens stand for an image."""
    return math.prod(self.grid(image)) // self.merge_size**2

  def patches(self, image: bytes | str) -> np.ndarray:
    """Return an image's patches, f32[rows * columns, patch_dim]."""
    from PIL import Image
    with _open(image) as picture:
      picture = _on_white(picture)
    high, wide = self.size(picture.height, picture.width)
    picture = picture.resize((wide, high), Image.Resampling.BICUBIC)
    pixels = np.asarray(picture).astype(np.float32) * np.float32(1 / 255)
    pixels = ((pixels - np.array(self.mean, np.float32))
              / np.array(self.std, np.float32))
    size, merge = self.patch_size, self.merge_size
    cut = pixels.reshape(high // size // merge, merge, size,
                         wide // size // merge, merge, size, 3)
    cut = cut.transpose(0, 3, 1, 4, 6, 2, 5)[..., None, :, :]
    cut = np.repeat(cut, self.temporal_patch_size, axis=-3)
    return np.ascontiguousarray(cut.reshape(-1, self.patch_dim))

  def expand(self, tokens: Sequence[int], images: Sequence[bytes | str],
             name: str) -> list[int]:
    """Return a prompt's tokens, each image's placeholder as many as it needs.

    Args:
      tokens: with one image token for each image.
      images: of the prompt.
      name: of the problem, for errors.

    Raises:
      ValueError: placeholders and images are not as many, or the images fit no bucket
        or cannot be read; names the problem.
    """
    found = sum(token == self.image_token for token in tokens)
    if found != len(images):
      raise ValueError(f'problem {name!r} has {len(images)} images, but its prompt has '
                       f'{found} places for them')
    counts = [_of(name, self.tokens, image) for image in images]
    self._check(sum(counts) * self.merge_size**2, name)
    remaining, expanded = iter(counts), []
    for token in tokens:
      expanded += [token] * (next(remaining) if token == self.image_token else 1)
    return expanded

  def batch(self, images: Sequence[Sequence[bytes | str]],
            names: Sequence[str]) -> tuple[np.ndarray, np.ndarray] | None:
    """Return grids i32[B, I, 3] and patches f32[B, M, patch_dim]; None without images.

    M is the smallest bucket that holds the patches of every prompt, I the most images
    of one, up to a power of two.

    Args:
      images: of B prompts.
      names: of their problems, for errors.

    Raises:
      ValueError: a prompt's images fit no bucket, or one cannot be read; names the
        problem.
    """
    most = max(map(len, images), default=0)
    if not most:
      return None
    grid = np.zeros((len(images), 1 << (most - 1).bit_length(), 3), np.int32)
    for row, (mine, name) in enumerate(zip(images, names, strict=True)):
      for i, image in enumerate(mine):
        grid[row, i] = _of(name, self.grid, image)
    counts = grid.prod(axis=-1).sum(axis=-1)
    self._check(counts.max(), names[counts.argmax()])
    width = min(size for size in self.buckets if size >= counts.max())
    patches = np.zeros((len(images), width, self.patch_dim), np.float32)
    for row, (mine, name) in enumerate(zip(images, names, strict=True)):
      if mine:
        found = np.concatenate([_of(name, self.patches, image) for image in mine])
        patches[row, :len(found)] = found
    return grid, patches

  def _check(self, patches: int, name: str) -> None:
    if patches > max(self.buckets):
      raise ValueError(f'the images of problem {name!r} have {patches} patches, more '
                       f'than the largest of sampling.patch_buckets={self.buckets}: '
                       'add a larger one, or lower policy.vision.max_pixels='
                       f'{self.max_pixels}')


def read_config(folder: str) -> dict:
  """Return the pixel bounds, means and deviations that a Hugging Face folder states.

  Nothing, without a preprocessor_config.json.

  Raises:
    ValueError: it is damaged, or asks for what is not done here.
  """
  path = os.path.join(folder, CONFIG)
  if not os.path.isfile(path):
    return {}
  try:
    with open(path, encoding='utf-8') as file:
      found = json.load(file)
  except ValueError as error:
    raise ValueError(f'{path} is not valid JSON: {error}') from error
  right = {'do_resize': True, 'do_rescale': True, 'do_normalize': True, 'resample': 3,
           'rescale_factor': 1 / 255, 'do_convert_rgb': True}
  for key, value in right.items():
    if found.get(key, value) not in (value, None):
      raise ValueError(f'{path}: {key}={found[key]!r}; only {value!r} is supported')
  size = found.get('size') or {}
  stated = {'min_pixels': found.get('min_pixels', size.get('shortest_edge')),
            'max_pixels': found.get('max_pixels', size.get('longest_edge')),
            'mean': found.get('image_mean'), 'std': found.get('image_std')}
  return {key: tuple(value) if isinstance(value, list) else value
          for key, value in stated.items() if value is not None}


def _open(image: bytes | str):
  """Return an opened PIL image, not yet decoded."""
  try:
    from PIL import Image
  except ImportError as error:
    raise ImportError('images need Pillow: pip install pillow') from error
  return Image.open(io.BytesIO(image) if isinstance(image, bytes) else image)


def _on_white(picture):
  """Return a PIL image as RGB, what is transparent on white."""
  from PIL import Image
  if 'A' in picture.getbands() or 'transparency' in picture.info:
    picture = picture.convert('RGBA')
    white = Image.new('RGBA', picture.size, (255, 255, 255, 255))
    picture = Image.alpha_composite(white, picture)
  return picture.convert('RGB')


def _of(name: str, function, image):
  """Return function(image); an error names the problem."""
  try:
    return function(image)
  except (OSError, ValueError, SyntaxError) as error:  # PIL's, of damaged files
    reason = ' '.join(str(error).split())[:200]
    raise ValueError(f'an image of problem {name!r} cannot be taken: {reason}'
                     ) from error
