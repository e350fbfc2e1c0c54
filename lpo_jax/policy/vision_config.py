"""Sizes of a vision tower: Qwen2.5-VL's (arXiv:2502.13923), or a small one like it.

An image is cut into patches of p x p pixels, those of T frames to one; m x m of them
become one token of the decoder. Most blocks attend within windows of `window_size`
pixels, `full_blocks` within the whole image.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class VisionConfig:
  """Sizes and switches of one vision tower; its outputs are as wide as the decoder."""

  width: int = 1280
  layers: int = 32
  heads: int = 16
  mlp_width: int = 3420
  channels: int = 3
  patch_size: int = 14  # p, pixels
  temporal_patch_size: int = 2  # T; a still image is repeated
  merge_size: int = 2  # m
  window_size: int = 112  # pixels
  full_blocks: tuple[int, ...] = (7, 15, 23, 31)
  image_token: int = 151655  # stands in a prompt once for each token of an image
  start_token: int = 151652  # before an image; for transformers alone
  frozen: bool = True  # not trained by reinforcement: images are encoded once a step

  def __post_init__(self):
    if self.width % self.heads or self.head_dim % 4:
      raise ValueError(f'vision.width={self.width} and vision.heads={self.heads}: the '
                       'width of a head must be a multiple of 4, two axes of pairs')
    if self.window < 1:
      raise ValueError(f'vision.window_size={self.window_size} is less than one token, '
                       f'{self.pixels_per_token} pixels')
    beyond = [block for block in self.full_blocks if not 0 <= block < self.layers]
    if beyond:
      raise ValueError(f'vision.full_blocks={self.full_blocks}: there are only '
                       f'vision.layers={self.layers}, counted from 0')

  @property
  def head_dim(self) -> int:
    """Return the width of a head."""
    return self.width // self.heads

  @property
  def patch_dim(self) -> int:
    """Return the numbers of a patch: channels, frames, rows, columns."""
    return self.channels * self.temporal_patch_size * self.patch_size**2

  @property
  def unit(self) -> int:
    """Return the patches of a token, m * m."""
    return self.merge_size**2

  @property
  def pixels_per_token(self) -> int:
    """Return how many pixels high and wide a token is."""
    return self.merge_size * self.patch_size

  @property
  def window(self) -> int:
    """Return how many tokens high and wide a window is, whatever part of one is cut."""
    return self.window_size // self.merge_size // self.patch_size

  @property
  def block_params(self) -> int:
    """Count the weights of a block that each patch is multiplied with."""
    return 4 * self.width**2 + 3 * self.width * self.mlp_width

  @property
  def split_sizes(self) -> dict[str, int]:
    """Return the sizes that must split over a mesh, by axis, see `sharding`."""
    return {'heads': self.heads, 'mlp': self.mlp_width, 'embed': self.width}

  def parameters(self, width: int) -> tuple[int, int]:
    """Count the parameters in matrices, and in norms and biases.

    Args:
      width: of the decoder.
    """
    inner = self.unit * self.width
    matrices = (self.patch_dim * self.width + self.layers * self.block_params
                + inner * (inner + width))
    a_layer = 7 * self.width + 2 * self.mlp_width
    return matrices, self.layers * a_layer + self.width + inner + width

  def forward_flops(self, patches: int, width: int) -> float:
    """Return the operations of one row of patches, scores that are masked included."""
    inner, full = self.unit * self.width, len(self.full_blocks)
    weights = (self.patch_dim * self.width + self.layers * self.block_params
               + inner * (inner + width) / self.unit)
    beside = 3 * min(self.window**2 * self.unit, patches)  # see `vision`
    keys = full * patches + (self.layers - full) * beside
    return patches * (2.0 * weights + 4.0 * self.width * keys)
