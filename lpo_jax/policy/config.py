"""What distinguishes one decoder from another: sizes and switches, all in one place.

One module (`transformer.Policy`) serves Qwen2/2.5, Qwen3, Llama 3, Mistral, the
DeepSeek-R1 distillations and the small policies trained from scratch; this frozen
record says which switches each of them sets:

  qkv_bias (Qwen2)   qk_norm (Qwen3)   rope_scaling (Llama 3.1)
  sliding_window (Mistral)   tied_embeddings (small models)
  rope_sections, vision (Qwen2.5-VL)

`lora` gives its matrices low-rank adapters, which are then all that is trained.
"""

import dataclasses

from lpo_jax.policy.vision_config import VisionConfig

DTYPES = ('float32', 'bfloat16', 'float16')
ATTENTION = ('xla', 'cudnn', 'pallas')
REMAT = ('none', 'dots', 'full')
CACHE_DTYPES = ('same', 'bfloat16', 'int8')
MATRICES = ('query', 'key', 'value', 'out', 'gate', 'up', 'down')  # of a block


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """How rotary frequencies are stretched beyond the pre-training length.

  `linear` divides every frequency by `factor`; `llama3` divides the long
  wavelengths only and blends in between (Llama 3.1).
  """

  kind: str = 'llama3'
  factor: float = 8.0
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  original_max_position: int = 8192

  def __post_init__(self):
    if self.kind not in ('linear', 'llama3'):
      raise ValueError(f'rope_scaling.kind={self.kind!r}: choose linear or llama3')


@dataclasses.dataclass(frozen=True)
class Lora:
  """Low-rank adapters, in float32: see `policy/lora.py`."""

  rank: int = 16
  alpha: float = 32.0  # what they add is scaled by alpha / rank
  targets: tuple[str, ...] = MATRICES

  def __post_init__(self):
    if self.rank < 1:
      raise ValueError(f'policy.lora.rank={self.rank}: give at least 1, or 0 for none')
    if not self.alpha > 0:
      raise ValueError(f'policy.lora.alpha={self.alpha}: must be > 0')
    unknown = [name for name in self.targets if name not in MATRICES]
    if unknown or not self.targets or len(set(self.targets)) < len(self.targets):
      raise ValueError(f'policy.lora.targets={self.targets}: name some of '
                       f'{", ".join(MATRICES)}, each once')

  @property
  def scale(self) -> float:
    """Return alpha / rank."""
    return self.alpha / self.rank


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
  """Sizes and switches of one decoder-only transformer."""

  vocab_size: int
  width: int  # D
  layers: int  # L
  heads: int  # H query heads
  kv_heads: int  # key/value heads; each serves heads / kv_heads queries
  head_dim: int
  mlp_width: int
  qkv_bias: bool = False
  qk_norm: bool = False
  tied_embeddings: bool = False
  norm_eps: float = 1e-6
  rope_theta: float = 10_000.0
  rope_scaling: RopeScaling | None = None
  rope_sections: tuple[int, ...] = ()  # pairs turned by frame, row, column; () for text
  sliding_window: int | None = None  # keys a query sees, itself included
  dtype: str = 'float32'  # of activations and matmuls
  param_dtype: str = 'float32'
  cache_dtype: str = 'same'  # of responses' keys and values while sampling
  attention: str = 'xla'  # of whole responses: see lpo_jax/policy/flash.py
  remat: str = 'none'  # what the backward pass recomputes per block
  unroll: bool = False  # layers one after the other, not a scan: see `Policy.unstack`
  sequence_sharding: bool = False  # long activations split over the mesh's tensor axis
  lora: Lora | None = None
  vision: VisionConfig | None = None  # None: it reads text only

  def __post_init__(self):
    if self.heads % self.kv_heads:
      raise ValueError(
        f'kv_heads={self.kv_heads} does not divide heads={self.heads}: each key/value '
        'head serves a whole number of query heads'
      )
    if self.head_dim % 2:
      raise ValueError(f'head_dim={self.head_dim} is odd: rotary halves need it even')
    if bool(self.rope_sections) != (self.vision is not None):
      raise ValueError(f'rope_sections={self.rope_sections} and vision={self.vision}: '
                       'give both, or neither')
    if self.rope_sections and (len(self.rope_sections) != 3
                               or 2 * sum(self.rope_sections) != self.head_dim):
      raise ValueError(f'rope_sections={self.rope_sections}: give three parts of the '
                       f'{self.head_dim // 2} pairs of a head')
    if self.vision and not 0 <= self.vision.image_token < self.vocab_size:
      raise ValueError(f'vision.image_token={self.vision.image_token} is beyond '
                       f'vocab_size={self.vocab_size}')
    if self.sliding_window is not None and self.sliding_window < 1:
      raise ValueError(
        f'policy.sliding_window={self.sliding_window}: give at least 1, the token '
        'itself, or None for no window'
      )
    for field, choices in (('dtype', DTYPES), ('param_dtype', DTYPES),
                           ('remat', REMAT), ('attention', ATTENTION),
                           ('cache_dtype', CACHE_DTYPES)):
      if getattr(self, field) not in choices:
        raise ValueError(
          f'policy.{field}={getattr(self, field)!r}: choose one of {", ".join(choices)}'
        )
    for name in self.lora.targets if self.lora else ():
      rows, columns = self.matrix_shapes[name]
      if self.lora.rank > min(rows, columns):
        raise ValueError(
          f'policy.lora.rank={self.lora.rank} is larger than a dimension of {name}, '
          f'{rows} x {columns}: lower it, or leave {name} out of policy.lora.targets')

  @property
  def vision_is_frozen(self) -> bool:
    """Return whether there is a vision tower that is not trained."""
    return self.vision is not None and (self.vision.frozen or self.lora is not None)

  @property
  def split_sizes(self) -> dict[str, int]:
    """Return the sizes that must split over a mesh, by axis, see `sharding`."""
    return {'heads': self.heads, 'kv_heads': self.kv_heads, 'mlp': self.mlp_width,
            'embed': self.width, 'vocab': self.vocab_size}

  @property
  def matrix_shapes(self) -> dict[str, tuple[int, int]]:
    """Return [D, F] of each of a block's MATRICES."""
    queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
    return dict(zip(MATRICES, (
      (self.width, queries), (self.width, keys), (self.width, keys),
      (queries, self.width), (self.width, self.mlp_width),
      (self.width, self.mlp_width), (self.mlp_width, self.width)), strict=True))

  @property
  def adapter_params(self) -> int:
    """Count the parameters of the adapters, 0 without."""
    if self.lora is None:
      return 0
    return self.layers * self.lora.rank * sum(
      sum(self.matrix_shapes[name]) for name in self.lora.targets)

  @property
  def matmul_params_per_token(self) -> int:
    """Count the weights each token is multiplied with, the unembedding included.

    Adapters do not count, see `adapter_params`.
    """
    attention = 2 * self.width * self.head_dim * (self.heads + self.kv_heads)
    mlp = 3 * self.width * self.mlp_width
    return self.layers * (attention + mlp) + self.vocab_size * self.width
