"""How responses are drawn, and where: what every sampling of a run shares.

Plain numbers, so that a run, an evaluation's records and a program compiled ahead of
time mean the same; the mesh that samples follows from them and the one that trains.
"""

import dataclasses

import jax

from lpo_jax import images, resharding
from lpo_jax import tokenizer as tokenizers


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
  """How responses are drawn."""

  samples_per_prompt: int = 8  # K
  max_new_tokens: int = 1024  # N
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  chunk: int = 128
  prompts_at_once: int = 0  # whose responses are decoded at once; 0 for all
  parked: float = 0.0  # room for rows that wait for others, in loads of full length
  prompt_buckets: tuple[int, ...] = (64, 128, 256, 512, 1024)
  unroll: bool = True
  copy_weights: bool = True  # where it spares work for every token, see `resharding`
  mesh_shape: tuple[int, ...] = ()  # of the mesh that samples, see `resharding.layout`
  apart: bool = False  # that mesh is of devices that do not train
  processor: images.Processor | None = None  # None: the policy reads text only

  def arguments(self, tokenizer: tokenizers.Tokenizer) -> dict:
    """Return what `sampler.sample` is told, and what compiles it ahead of time."""
    names = 'samples_per_prompt max_new_tokens temperature top_k top_p chunk unroll'
    return {name: getattr(self, name) for name in names.split()} | {
      'stop_tokens': tokenizer.stop_tokens, 'pad_token': tokenizer.pad_id}

  def where(self, mesh: jax.sharding.Mesh) -> jax.sharding.Mesh:
    """Return the mesh that samples, beside the one that trains."""
    return resharding.mesh_of(mesh, self.mesh_shape, self.apart)
