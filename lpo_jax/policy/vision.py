"""The vision tower of Qwen2.5-VL (arXiv:2502.13923): patches in, a token's vectors out.

A row holds the patches of a prompt's images one after the other, each image token by
token: m x m patches that stand together make a token. Rotary angles are those of a
patch's row and column, half of the pairs each. Tokens are sorted by window, so that a
patch finds its window among the neighbouring blocks of keys; some blocks attend within
whole images instead. What follows from the grids is computed, not compiled: one program
serves all images that fit the width M of a row.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from lpo_jax import sharding
from lpo_jax.policy import linear, norm, rotary, swiglu
from lpo_jax.policy.vision_config import VisionConfig
from lpo_jax.types import Array

EPSILON = 1e-6  # of every norm
THETA = 10_000.0  # of the rotary frequencies
_QUERIES = 512  # patches whose scores against all others exist at once
_MASKED = -1e30


class Places(NamedTuple):
  """Where the tokens of a row's images stand, each i32[M / m^2]."""

  image: Array  # which one; their number, on padding
  frame: Array
  row: Array  # in tokens
  column: Array


class Layout(NamedTuple):
  """How the patches of a row are taken, sorted by window."""

  order: Array  # i32[M / m^2]: the tokens in their new order
  row: Array  # i32[M], in patches
  column: Array
  window: Array  # i32[M]: patches of one window have one number
  frame: Array  # i32[M]: likewise those of one frame of an image


class Block(nnx.Module):
  """One layer: attention, then SwiGLU, each with biases and behind an RMSNorm."""

  def __init__(self, config: VisionConfig, dtype, key: Array):
    keys = iter(jax.random.split(key, 5))
    width, inner = config.width, config.mlp_width
    depth_scale = (2 * config.layers) ** -0.5

    def matrix(*shape, scale=1.0):
      std = scale * shape[0] ** -0.5
      return nnx.Param(std * jax.random.normal(next(keys), shape, dtype))

    def zeros(*shape):
      return nnx.Param(jnp.zeros(shape, dtype))

    self.attention_norm = nnx.Param(jnp.ones(width, dtype))
    self.qkv, self.qkv_bias = matrix(width, 3, width), zeros(3, width)
    self.out, self.out_bias = matrix(width, width, scale=depth_scale), zeros(width)
    self.mlp_norm = nnx.Param(jnp.ones(width, dtype))
    self.gate, self.gate_bias = matrix(width, inner), zeros(inner)
    self.up, self.up_bias = matrix(width, inner), zeros(inner)
    self.down, self.down_bias = matrix(inner, width, scale=depth_scale), zeros(width)
    self.config = config

  def __call__(self, x: Array, rope: tuple, layout: Layout, full: Array) -> Array:
    """Run the layer on x [B, M, D].

    Args:
      x: [B, M, D], sorted by window.
      rope: (cos, sin), f32[B, M, d / 2].
      layout: [B, ...].
      full: bool[], attend within frames instead of windows.
    """
    config = self.config
    y = norm.rms_norm(x, self.attention_norm[...], EPSILON)
    weight, bias = self.qkv[...], self.qkv_bias[...]
    queries, keys, values = (
      _affine(y, weight[:, i], bias[i]).reshape(*x.shape[:2], config.heads, -1)
      for i in range(3))
    queries, keys = rotary.rotate(queries, *rope), rotary.rotate(keys, *rope)
    size = config.window**2 * config.unit
    mixed = jax.lax.cond(
      full, lambda *qkv: _within_frames(*qkv, layout.frame),
      lambda *qkv: _within_windows(*qkv, layout.window, size), queries, keys, values)
    x = x + self._linear('out', mixed.reshape(x.shape))
    y = norm.rms_norm(x, self.mlp_norm[...], EPSILON)
    wide = swiglu.swiglu(self._linear('gate', y), self._linear('up', y))
    x = x + self._linear('down', wide)
    return sharding.constrain_batch(x)

  def _linear(self, name: str, x: Array) -> Array:
    return _affine(x, getattr(self, name)[...], getattr(self, f'{name}_bias')[...])


class Tower(nnx.Module):
  """Patches of images to vectors as wide as the decoder's."""

  def __init__(self, config: VisionConfig, out_width: int, dtype, key: Array):
    """Initialise from scratch: normal, variance 1 / fan-in, residuals less by depth.

    Args:
      config: sizes.
      out_width: D of the decoder.
      dtype: of the parameters.
      key: a PRNG key.
    """
    keys, inner = jax.random.split(key, 4), config.unit * config.width

    def matrix(key, rows, columns):
      std = rows ** -0.5
      return nnx.Param(std * jax.random.normal(key, (rows, columns), dtype))

    self.patch = matrix(keys[0], config.patch_dim, config.width)
    self.blocks = jax.vmap(lambda k: Block(config, dtype, k))(
      jax.random.split(keys[1], config.layers))
    self.merge_norm = nnx.Param(jnp.ones(config.width, dtype))
    self.merge_in = matrix(keys[2], inner, inner)
    self.merge_in_bias = nnx.Param(jnp.zeros(inner, dtype))
    self.merge_out = matrix(keys[3], inner, out_width)
    self.merge_out_bias = nnx.Param(jnp.zeros(out_width, dtype))
    self.config = config

  def __call__(self, patches: Array, grid: Array, dtype) -> Array:
    """Return the vectors [B, M / m^2, D] of the images' tokens, in their order.

    Args:
      patches: f32[B, M, patch_dim] as the processor gives them, M a multiple of m^2.
      grid: i32[B, I, 3], frames, rows and columns of each image in patches; 0 for
        none. What lies beyond the images is padding, whose vectors mean nothing.
      dtype: of the computation.
    """
    config, count = self.config, patches.shape[1]
    if count % config.unit or patches.shape[2] != config.patch_dim:
      raise ValueError(
        f'patches have shape {patches.shape}: give [B, M, {config.patch_dim}], M a '
        f'multiple of {config.unit}')
    short = -count % (config.window**2 * config.unit)
    patches = jnp.pad(patches.astype(dtype), ((0, 0), (0, short), (0, 0)))
    layout = jax.vmap(lambda g: _layout(g, count + short, config))(grid)
    x = linear.linear(patches, self.patch[...])
    tokens = x.reshape(x.shape[0], -1, config.unit * config.width)
    x = jnp.take_along_axis(tokens, layout.order[..., None], 1).reshape(x.shape)
    rope = _angles(layout, config)
    full = jnp.isin(jnp.arange(config.layers), jnp.array(config.full_blocks, int))

    def body(x, layer):
      block, full = layer
      return jax.checkpoint(block.__call__)(x, rope, layout, full), None

    x, _ = jax.lax.scan(body, sharding.constrain_batch(x), (self.blocks, full))
    x = norm.rms_norm(x, self.merge_norm[...], EPSILON).reshape(tokens.shape)
    x = _affine(x, self.merge_in[...], self.merge_in_bias[...])
    x = jax.nn.gelu(x, approximate=False)
    x = _affine(x, self.merge_out[...], self.merge_out_bias[...])
    back = jnp.argsort(layout.order, axis=-1)[:, :count // config.unit]
    return jnp.take_along_axis(x, back[..., None], axis=1)


def places(grid: Array, tokens: int, config: VisionConfig) -> Places:
  """Return where the tokens of a row's images stand.

  Args:
    grid: i32[I, 3], in patches.
    tokens: M / m^2.
    config: of the tower.
  """
  index = jnp.arange(tokens)
  sizes = jnp.prod(grid, axis=-1) // config.unit
  ends = jnp.cumsum(sizes)
  image = jnp.searchsorted(ends, index, side='right').astype(jnp.int32)
  known = jnp.minimum(image, grid.shape[0] - 1)
  index = index - (ends - sizes)[known]
  _, rows, columns = jnp.maximum(_in_tokens(grid, config)[known].T, 1)
  return Places(image, index // (rows * columns), index // columns % rows,
                index % columns)


def positions(tokens: Array, mask: Array, grid: Array, config: VisionConfig) -> Array:
  """Return the three-part rotary positions i32[3, B, T] of prompts with images.

  Text counts on; an image's tokens stand at its start plus frame, row and column, and
  text goes on after its longer side. 0 on padding.

  Args:
    tokens: i32[B, T].
    mask: bool[B, T], False on padding.
    grid: i32[B, I, 3], in patches; 0 for none.
    config: of the tower.
  """
  def one(tokens, mask, grid):
    seen = mask & (tokens == config.image_token)
    text = mask & ~seen
    ends = jnp.cumsum(jnp.prod(grid, axis=-1) // config.unit)
    index = jnp.cumsum(seen) - seen  # image tokens before this one
    whole = jnp.searchsorted(ends, index, side='right')  # images before this token
    longer = jnp.max(_in_tokens(grid, config)[:, 1:], axis=-1)
    steps = jnp.concatenate([jnp.zeros(1, int), jnp.cumsum(longer)])
    base = jnp.cumsum(text) - text + steps[whole]
    place = places(grid, tokens.shape[0], config)
    inside = jnp.stack([place.frame, place.row, place.column])[:, index]
    found = base[None] + jnp.where(seen[None], inside, 0)
    return jnp.where(mask[None], found, 0).astype(jnp.int32)

  return jnp.moveaxis(jax.vmap(one)(tokens, mask, grid), 1, 0)


def insert(x: Array, here: Array, features: Array) -> Array:
  """Return embeddings with images' vectors in their places, row by row.

  Args:
    x: [B, T, D].
    here: bool[B, T], where images' tokens stand.
    features: [B, F, D]; a row's are taken one after the other.
  """
  index = jnp.clip(jnp.cumsum(here, axis=-1) - 1, 0, features.shape[1] - 1)
  found = jnp.take_along_axis(features, index[..., None], axis=1)
  return jnp.where(here[..., None], found.astype(x.dtype), x)


def _in_tokens(grid: Array, config: VisionConfig) -> Array:
  """Return grids [I, 3] in tokens instead of patches."""
  return grid // jnp.array([[1, config.merge_size, config.merge_size]])


def _layout(grid: Array, patches: int, config: VisionConfig) -> Layout:
  """Return how a row's patches are taken; padding is a frame and a window of its own.

  Within a window, tokens keep their order.
  """
  place = places(grid, patches // config.unit, config)
  frames, rows, columns = _in_tokens(grid, config).T
  down, across = (-(-x // config.window) for x in (rows, columns))

  def before(counts):  # of the images before each one; all, on padding
    return jnp.concatenate([jnp.zeros(1, int), jnp.cumsum(counts)])[place.image]

  known = jnp.minimum(place.image, grid.shape[0] - 1)
  real = place.image < grid.shape[0]
  window = ((place.frame * down[known] + place.row // config.window) * across[known]
            + place.column // config.window)
  window = before(frames * down * across) + jnp.where(real, window, 0)
  frame = before(frames) + jnp.where(real, place.frame, 0)
  order = jnp.argsort(window, stable=True)

  def spread(x):  # from tokens to their patches
    return jnp.repeat(x[order], config.unit)

  size = config.merge_size
  inner = jnp.arange(patches) % config.unit
  return Layout(order, size * spread(place.row) + inner // size,
                size * spread(place.column) + inner % size, spread(window),
                spread(frame))


def _angles(layout: Layout, config: VisionConfig) -> tuple[Array, Array]:
  """Return cos and sin f32[B, M, d / 2]: rows turn half of the pairs, columns half."""
  half = config.head_dim // 2
  frequency = (THETA ** -(jnp.arange(0, half, 2) / half)).astype(jnp.float32)
  turns = [x[..., None].astype(jnp.float32) * frequency.reshape(1, 1, -1)
           for x in (layout.row, layout.column)]
  angle = jnp.concatenate(turns, axis=-1)
  return jnp.cos(angle), jnp.sin(angle)


def _within_windows(queries, keys, values, window, size):
  """Attend within windows: at most `size` patches that stand together.

  So those of a block of `size` are in it or in the blocks beside it.
  """
  def blocks(x):
    return x.reshape(x.shape[0], -1, size, *x.shape[2:])

  def beside(x, fill=0):
    x = blocks(x)
    edges = ((0, 0), (1, 1)) + ((0, 0),) * (x.ndim - 2)
    x = jnp.pad(x, edges, constant_values=fill)
    return jnp.concatenate([x[:, :-2], x[:, 1:-1], x[:, 2:]], axis=2)

  same = blocks(window)[..., :, None] == beside(window, -1)[..., None, :]
  return _attend(blocks(queries), beside(keys), beside(values), same).reshape(
    queries.shape)


def _within_frames(queries, keys, values, frame):
  """Attend within frames, some queries at a time."""
  def some(part):
    query, own = part
    return _attend(query, keys, values, own[..., :, None] == frame[..., None, :])

  count = queries.shape[1]
  if count <= _QUERIES:
    return some((queries, frame))
  parts = next(n for n in range(-(-count // _QUERIES), count + 1) if count % n == 0)

  def split(x):
    return jnp.moveaxis(x.reshape(x.shape[0], parts, -1, *x.shape[2:]), 1, 0)

  out = jax.lax.map(jax.checkpoint(some), (split(queries), split(frame)))
  return jnp.moveaxis(out, 0, 1).reshape(queries.shape)


def _attend(queries, keys, values, same):
  """Attend from [..., M, H, d] to [..., S, H, d] where `same`, bool[..., M, S]."""
  scores = jnp.einsum('...mhd,...shd->...hms', queries * queries.shape[-1] ** -0.5,
                      keys, preferred_element_type=jnp.float32)
  weights = jax.nn.softmax(jnp.where(same[..., None, :, :], scores, _MASKED), axis=-1)
  return jnp.einsum('...hms,...shd->...mhd', weights.astype(values.dtype), values)


def _affine(x: Array, weight: Array, bias: Array) -> Array:
  """Return x W + b."""
  bias = bias.astype(x.dtype)
  return linear.linear(x, weight) + bias.reshape((1,) * (x.ndim - 1) + bias.shape)
