"""What distinguishes one decoder from another: sizes and switches, all in one place.

One module (`transformer.Policy`) serves Qwen2/2.5, Qwen3, Llama 3, Mistral, the
DeepSeek-R1 distillations and the small policies trained from scratch; this frozen
record says which switches each of them sets:

  qkv_bias (Qwen2)   qk_norm (Qwen3)   rope_scaling (Llama 3.1)
  sliding_window (Mistral)   tied_embeddings (small models)
"""

import dataclasses

DTYPES = ('float32', 'bfloat16', 'float16')
REMAT = ('none', 'dots', 'full')


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
  sliding_window: int | None = None  # keys a query sees, itself included
  dtype: str = 'float32'  # of activations and matmuls
  param_dtype: str = 'float32'
  remat: str = 'none'  # what the backward pass recomputes per block

  def __post_init__(self):
    if self.heads % self.kv_heads:
      raise ValueError(
        f'kv_heads={self.kv_heads} does not divide heads={self.heads}: each key/value '
        'head serves a whole number of query heads'
      )
    if self.head_dim % 2:
      raise ValueError(f'head_dim={self.head_dim} is odd: rotary halves need it even')
    if self.sliding_window is not None and self.sliding_window < 1:
      raise ValueError(
        f'policy.sliding_window={self.sliding_window}: give at least 1, the token '
        'itself, or None for no window'
      )
    for field, choices in (('dtype', DTYPES), ('param_dtype', DTYPES),
                           ('remat', REMAT)):
      if getattr(self, field) not in choices:
        raise ValueError(
          f'policy.{field}={getattr(self, field)!r}: choose one of {", ".join(choices)}'
        )

  @property
  def matmul_params_per_token(self) -> int:
    """Count the weights each token is multiplied with, the unembedding included."""
    attention = 2 * self.width * self.head_dim * (self.heads + self.kv_heads)
    mlp = 3 * self.width * self.mlp_width
    return self.layers * (attention + mlp) + self.vocab_size * self.width
