"""The one decoder: a pre-norm, rotary, grouped-query, SwiGLU transformer in Flax NNX.

It is used as a pure pytree: no split or merge, no mutable state. Blocks are stacked on
a leading layer axis and scanned. Three passes share them:

  prefill   [B, P]              prompts -> last outputs, and a Prompt of keys/values
  extend    [B, K, N]           next tokens of K responses -> outputs, the grown Cache
  together  [B, P], [B, K, N]   prompts and whole responses -> the outputs of both

Sampling is prefill, then extend by one token in a loop; training is together. Calling
the policy on [B, T] tokens runs sequences by themselves.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from lpo_jax import rows, sharding
from lpo_jax.policy import attention, block, kv, linear, mixing, norm, rotary, vision
from lpo_jax.policy.config import PolicyConfig
from lpo_jax.types import Array, Images


class Policy(nnx.Module):
  """A decoder-only transformer policy pi_theta."""

  def __init__(self, config: PolicyConfig, key: Array):
    """Initialise from scratch: normal(0.02), residual branches scaled by depth."""
    keys = jax.random.split(key, 3)
    dtype = jnp.dtype(config.param_dtype)
    shape = (config.vocab_size, config.width)
    self.embedding = nnx.Param(0.02 * jax.random.normal(keys[0], shape, dtype))
    self.blocks = jax.vmap(lambda k: block.Block(config, k))(
      jax.random.split(keys[1], config.layers))
    self.final_norm = nnx.Param(jnp.ones(config.width, dtype))
    if not config.tied_embeddings:
      self.unembedding = nnx.Param(
        0.02 * jax.random.normal(keys[2], shape[::-1], dtype))
    if config.vision is not None:
      self.vision = vision.Tower(config.vision, config.width, dtype,
                                 jax.random.fold_in(key, 3))
    self.config = config

  def __call__(self, tokens: Array, positions: Array, mask: Array,
               images=None) -> Array:
    """Return logits f32[B, T, V] for whole sequences.

    Args:
      tokens: i32[B, T].
      positions: i32[B, T], 0 at each row's first real token; or i32[3, B, T], see
        `vision.positions`.
      mask: bool[B, T], False on padding, left or right.
      images: None, or patches f32[patches, patch_dim] and grids i32[images, 3] of the
        images of all rows, one after the other.

    Raises:
      ValueError: images, or three-part positions, for a policy that reads text only;
        or images whose tokens do not match those in `tokens`.
    """
    if positions.ndim == 3:
      self._require_vision('positions [3, B, T]')
      rope = rotary.sectioned_angles(positions[:, :, None], self.config)
    else:
      rope = rotary.angles(positions[:, None], self.config)
    features = None
    if images is not None:
      self._require_vision('images')
      features = self._features_by_row(tokens, mask, *images)
    x = self._embed(tokens, mask, features)[:, None]
    hidden, _ = self._layers(x, rope, lambda *_: mixing.whole(self.config,
                                                              mask[:, None]))
    return self.logits(hidden[:, 0])

  def encode(self, images: Images) -> Images:
    """Return images with their tokens' vectors, [B, M / m^2, D], instead of patches.

    As they are if they have been encoded.
    """
    if images.features is not None:
      return images
    features = self.vision(images.patches, images.grid, jnp.dtype(self.config.dtype))
    return Images(images.grid, None, features)

  def prefill(self, tokens: Array, mask: Array,
              images: Images | None = None) -> tuple[Array, kv.Prompt]:
    """Run left-padded prompts once.

    Args:
      tokens: i32[B, P].
      mask: bool[B, P], False on the left padding.
      images: of the B prompts; None for text only.

    Returns:
      The last position's output [B, D], which predicts the first response token, and
      the Prompt that responses attend to.
    """
    x, rope, after = self._prompt(tokens, mask, images)
    rope = tuple(angle[:, None] for angle in rope)
    hidden, layers = self._layers(x[:, None], rope, lambda *_: mixing.whole(
      self.config, mask[:, None]))
    layers = jax.tree.map(lambda kv: jnp.squeeze(kv, -4), layers)  # drop K = 1
    return hidden[:, 0, -1], kv.Prompt(layers, mask, after)

  def extend(self, tokens: Array, prompt: kv.Prompt,
             cache: kv.Cache) -> tuple[Array, kv.Cache]:
    """Run N more tokens of each of the K responses to each prompt.

    Args:
      tokens: i32[B, K, N].
      prompt: of the B prompts.
      cache: the responses' earlier tokens.

    Returns:
      Outputs [B, K, N, D], and the cache with the N tokens in it.
    """
    config, width, size = self.config, tokens.shape[-1], prompt.mask.shape[-1]
    start = prompt.next[:, None, None] + cache.length
    positions = start + jnp.arange(width)[None, None]  # the same for all K
    rope = rotary.angles(positions, config, limit=size + cache.slots)
    mask = _causal(width, cache.slots, cache.length, config)
    prompt_mask = (_causal(width, size, size + cache.length, config)
                   & prompt.mask[:, None, None, :])

    def attend(prompt, slots):
      return mixing.cached(attention.Part(*prompt, prompt_mask), slots, mask,
                           cache.length)

    hidden, layers = self._layers(self._embed(tokens), rope, attend, prompt.layers,
                                  cache.layers)
    return hidden, kv.Cache(layers, cache.length + width)

  def together(self, tokens: Array, mask: Array, responses: Array,
               images: Images | None = None, layout: rows.Layout | None = None,
               ) -> tuple[Array, Array]:
    """Run left-padded prompts, each once, and the K responses to each.

    Prompt and responses lie in one row, [B, P + K N], so that a layer's weights are
    read, gathered and given a gradient once.

    Args:
      tokens: i32[B, P], prompts.
      mask: bool[B, P], False on the left padding.
      responses: i32[B, K, N].
      images: of the B prompts; None for text only.
      layout: of the real tokens of [B, P + K N]: then only these are computed, and the
        outputs are 0 elsewhere.

    Returns:
      The last output of each prompt, [B, D], which predicts the first response token,
      and the outputs of the responses, [B, K, N, D].
    """
    batch, samples, width = responses.shape
    size = tokens.shape[1]
    x, rope, after = self._prompt(tokens, mask, images)
    later = rotary.angles(after[:, None] + jnp.arange(width)[None], self.config,
                          limit=size + width)
    rope = tuple(jnp.concatenate([first, jnp.tile(rest, (1, samples, 1))], axis=1)
                 for first, rest in zip(rope, later, strict=True))
    x = jnp.concatenate([x, self._embed(responses.reshape(batch, -1))], axis=1)
    if layout is not None:
      x, *rope = (rows.pack(part, layout) for part in (x, *rope))
    hidden, _ = self._layers(x, rope, lambda *_: mixing.together(
      self.config, mask, samples, layout))
    if layout is not None:
      hidden = rows.unpack(hidden, layout, batch)
    return hidden[:, size - 1], hidden[:, size:].reshape(*responses.shape, -1)

  def logits(self, hidden: Array) -> Array:
    """Return f32[..., V] for outputs [..., D]."""
    tied = self.config.tied_embeddings
    if isinstance(self.blocks, tuple | list) and self.blocks[0].turned:
      weight = self.embedding if tied else self.unembedding
      return linear.turned(hidden, weight[...], jnp.float32)
    weight = self.embedding[...].T if tied else self.unembedding[...]
    return jnp.matmul(hidden, weight.astype(hidden.dtype),
                      preferred_element_type=jnp.float32)

  def unstack(self) -> 'Policy':
    """Return the same policy with its blocks as a tuple, so layers run unrolled.

    A program of few layers runs faster so, on CPU above all, since XLA fuses across
    them and slices no stacked weights; it takes longer to compile.
    """
    if isinstance(self.blocks, tuple | list):
      return self
    leaves, structure = jax.tree.flatten(self)
    policy = jax.tree.unflatten(structure, leaves)
    policy.blocks = nnx.data(tuple(
      jax.tree.map(lambda a, i=i: a[i], self.blocks)
      for i in range(self.config.layers)))
    return policy

  def turn(self) -> 'Policy':
    """Return the same policy, unstacked, with its matrices as `linear.turned` reads.

    It decodes faster on a CPU, the more the fewer rows there are.
    """
    policy = jax.tree.map(lambda x: x, self.unstack())
    policy.blocks = nnx.data(tuple(each.turn() for each in policy.blocks))
    if not self.config.tied_embeddings:
      policy.unembedding = nnx.Param(self.unembedding[...].T)
    return policy

  def stack(self) -> 'Policy':
    """Return the inverse of `unstack`."""
    leaves, structure = jax.tree.flatten(self)
    policy = jax.tree.unflatten(structure, leaves)
    policy.blocks = jax.tree.map(lambda *layers: jnp.stack(layers), *self.blocks)
    return policy

  def _require_vision(self, what: str) -> None:
    if self.config.vision is None:
      raise ValueError(f'{what} given to a policy that reads text only')

  def _features_by_row(self, tokens, mask, patches, grid):
    """Return the vectors of all rows' images as [B, T, D], each row's at its start."""
    here = mask & (tokens == self.config.vision.image_token)
    counts = [here, grid]
    if not any(isinstance(x, jax.core.Tracer) for x in counts):
      wanted = int(jnp.sum(jnp.prod(grid, axis=-1))) // self.config.vision.unit
      if int(jnp.sum(here)) != wanted:
        raise ValueError(f'tokens hold {int(jnp.sum(here))} image tokens, but the '
                         f'images are {wanted}')
    features = self.vision(patches[None], grid[None], jnp.dtype(self.config.dtype))[0]
    counts = jnp.sum(here, axis=-1)
    index = (jnp.cumsum(counts) - counts)[:, None] + jnp.arange(tokens.shape[1])[None]
    return features[jnp.minimum(index, features.shape[0] - 1)]

  def _prompt(self, tokens, mask, images):
    """Return prompts' vectors [B, P, D], rope f32[B, P, d / 2], next positions [B]."""
    config, features = self.config, None
    if images is None:
      positions = jnp.maximum(jnp.cumsum(mask, axis=-1) - 1, 0)
      rope = rotary.angles(positions, config, limit=tokens.shape[1])
    else:
      self._require_vision('images')
      features = self.encode(images).features
      positions = vision.positions(tokens, mask, images.grid, config.vision)
      rope = rotary.sectioned_angles(positions, config, limit=tokens.shape[1])
    last = jnp.max(positions.reshape(-1, *tokens.shape), axis=(0, 2))
    return self._embed(tokens, mask, features), rope, last + 1

  def _embed(self, tokens, mask=None, features=None):
    """Return the vectors [..., D] of tokens, of images where those are."""
    x = sharding.lookup(self.embedding[...].astype(self.config.dtype), tokens)
    if features is None:
      return x
    here = mask & (tokens == self.config.vision.image_token)
    return vision.insert(x, here, features)

  def _layers(self, x, rope, attend, prompt=None, cache=None):
    """Return outputs [*rows, D], and what each layer keeps.

    Args:
      x: [*rows, D].
      rope: see `block.Block`.
      attend: (a layer's prompt, its cache) -> what its rows attend to, of `mixing`.
      prompt: every layer's, or None.
      cache: every layer's, or None.
    """
    config = self.config

    def body(block, x, prompt, cache):
      return block(x, rope, attend(prompt, cache))

    blocks = self.unstack().blocks if config.unroll else self.blocks
    x = sharding.constrain_residual(x, config.sequence_sharding)
    x, layers = _each_layer(_remat(body, config.remat), blocks, x, prompt, cache)
    return norm.rms_norm(x, self.final_norm[...], config.norm_eps), layers


def _each_layer(body, blocks, x, prompt, cache):
  """Carry x through the layers: a loop over a tuple, or a scan over stacked blocks.

  The scan carries the stacked cache along, so that it is updated and not collected.
  """
  if isinstance(blocks, tuple | list):
    body, collected = jax.jit(body), []  # traced once for all layers
    for i, block in enumerate(blocks):
      x, layer = body(block, x, prompt and prompt[i], cache and cache[i])
      collected.append(layer)
    return x, tuple(collected)
  if cache is None:
    return jax.lax.scan(lambda x, block: body(block, x, None, None), x, blocks)

  def cached(carry, layer):
    x, cache = carry
    i, block, prompt = layer
    mine = jax.tree.map(lambda c: c[i], cache)
    x, mine = body(block, x, prompt, mine)
    return (x, jax.tree.map(lambda c, new: c.at[i].set(new), cache, mine)), None

  layers = jnp.arange(jax.tree.leaves(blocks)[0].shape[0])
  return jax.lax.scan(cached, (x, cache), (layers, blocks, prompt))[0]


def _remat(body, policy: str):
  if policy == 'none':
    return body
  if policy == 'dots':
    saved = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return jax.checkpoint(body, policy=saved)
  return jax.checkpoint(body)


def _causal(queries: int, keys: int, offset, config: PolicyConfig) -> Array:
  """Return bool[1, 1, N, S]: query n sees key s when 0 <= n + offset - s < window.

  `offset` is how many positions query 0 stands after key 0.
  """
  distance = jnp.arange(queries)[:, None] + offset - jnp.arange(keys)[None]
  seen = distance >= 0
  if config.sliding_window is not None:
    seen &= distance < config.sliding_window
  return seen[None, None]
