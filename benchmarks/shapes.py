"""What the benchmarks run: the shapes of a batch, one policy in JAX and in torch.

A forward pass of n tokens after c others, p of which are predicted from, costs

  2 n W + 2 p V D + 4 L H d (n c + n (n + 1) / 2)   floating-point operations,

W the blocks' weights; the last term is attention's two products over visible keys. A
backward pass costs two forward ones. Each side is charged with what its way of doing
the job needs, and not with what it computes again or masks.
"""

import dataclasses
import os
import zlib
from typing import NamedTuple

import numpy as np

from benchmarks import processes


class Shape(NamedTuple):
  """B prompts of P tokens, K responses of exactly N tokens each."""

  prompts: int
  samples: int
  prompt_width: int
  new_tokens: int


SHAPES = {
  'W1': Shape(16, 8, 32, 128),
  'W2': Shape(8, 8, 256, 256),
  'tiny': Shape(2, 4, 8, 16),  # to see that everything runs
  # For accelerators: the preset of that name in bfloat16, random weights.
  'qwen3_1.7b': Shape(64, 8, 512, 1024),
  'qwen3_4b': Shape(64, 8, 512, 1024),
}


def batch(shape: Shape, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
  """Return random prompts i32[B, P] and responses i32[B, K, N]."""
  prompts, samples, width, new = shape
  tokens = np.random.default_rng(0).integers(
    0, vocab_size, (prompts, width + samples * new), np.int32)
  return tokens[:, :width], tokens[:, width:].reshape(prompts, samples, new)


def heavy_tailed(prompts: int, samples: int, longest: int, seed: int = 0) -> np.ndarray:
  """Return lengths i32[B, K] from 1 to `longest`, on average a quarter of it.

  They are log-normal with deviation 1.1, cut at `longest`.
  """
  wild = np.exp(np.random.default_rng(seed).normal(0, 1.1, (prompts, samples)))
  low, high = 1e-3 * longest, 1e3 * longest
  for _ in range(60):
    middle = np.sqrt(low * high)
    lengths = np.clip(np.ceil(wild * middle), 1, longest).astype(np.int32)
    low, high = (low, middle) if lengths.mean() > longest / 4 else (middle, high)
  return lengths


def vocabulary(size: int) -> list[str]:
  """Return the words of a benchmark's language: token i is `t{i}`."""
  return [f't{i}' for i in range(size)]


class Words:
  """That language as a tokenizer, of ours and of tunix; nothing ends a response."""

  def __init__(self, vocab_size: int, never: int = -1):
    """Take the vocabulary's size, and the id that tunix is told ends a response."""
    self.vocab_size, self.pad_id, self.stop_tokens = vocab_size, _Id(0), ()
    self._never = never

  def encode(self, text: str, **_) -> list[int]:
    """Return the ids of words."""
    return [int(word[1:]) for word in text.split()]

  def decode(self, ids, **_) -> str:
    """Return the words of ids."""
    return ' '.join(f't{int(i)}' for i in ids)

  def bos_id(self) -> None:
    """Return no id: prompts begin with their first word."""

  def eos_id(self) -> int:
    """Return the id that ends a response."""
    return self._never


class _Id(int):
  """An id that is a number, as we ask, and a call that returns it, as tunix does."""

  def __call__(self) -> int:
    return int(self)


def prompts(shape: Shape, vocab_size: int) -> list[str]:
  """Return the texts of B random prompts of P words; 0 to 2 are not among them."""
  tokens = np.random.default_rng(0).integers(
    3, vocab_size, (shape.prompts, shape.prompt_width))
  return [Words(vocab_size).decode(row) for row in tokens]


def verdict(text: str) -> float:
  """Return the reward of a response: a coin that its text decides."""
  return float(zlib.crc32(text.encode()) % 2)


def policy_config(name: str = 'W1'):
  """Return the PolicyConfig of configs/models.py that a shape runs."""
  from configs import models

  if name not in models.POLICIES:
    return models.POLICIES['bytes_tiny' if name == 'tiny' else 'bench']
  return dataclasses.replace(models.POLICIES[name], param_dtype='bfloat16',
                             remat='full', unroll=False)


def our_config(fields: dict, new_tokens: int):
  """Return the PolicyConfig of `fields`, with the attention `train` would choose."""
  import jax

  from lpo_jax import policy

  config = policy.PolicyConfig(**fields)
  attention, _ = policy.choose_attention('auto', config, new_tokens,
                                         jax.default_backend())
  return dataclasses.replace(config, attention=attention)


def to_sample(fields: dict, new_tokens: int, prompts: int, samples: int):
  """Return a random policy as `train` would sample from it, and the mesh it is on.

  Args:
    fields: of the PolicyConfig.
    new_tokens: N.
    prompts: decoded at once.
    samples: K.
  """
  import jax

  from lpo_jax import policy, resharding, sharding

  config, mesh = our_config(fields, new_tokens), sharding.make_mesh((1, 1, 1))
  found = jax.jit(lambda key: policy.Policy(config, key))(jax.random.key(0))
  onto = resharding.mesh_of(mesh, resharding.layout(
    (), mesh, prompts, samples, config, policy.platform_of(mesh)))
  return resharding.copied(found, mesh, onto), onto


def forward_flops(policy, sequences: int, context: int, tokens: int,
                  predicted: int) -> float:
  """Return the operations of one forward pass; see the file's formula.

  Args:
    policy: PolicyConfig.
    sequences: how many; the rest is per sequence.
    context: tokens before, whose keys and values are at hand.
    tokens: taken in this pass.
    predicted: of them, those whose logits are needed.
  """
  unembedding = policy.vocab_size * policy.width
  blocks = policy.matmul_params_per_token - unembedding
  keys = tokens * context + tokens * (tokens + 1) / 2
  attention = 4 * policy.layers * policy.heads * policy.head_dim * keys
  return sequences * (2 * tokens * blocks + 2 * predicted * unembedding + attention)


def torch_policy(fields: dict, longest: int):
  """Return transformers' Qwen3 of a PolicyConfig's fields, with random weights.

  On the GPU where JAX is told to use one, else on the CPU; in the fields' type.
  """
  import torch
  import transformers

  torch.set_num_threads(len(processes.cores()) or os.cpu_count())
  torch.manual_seed(0)
  policy = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(
    vocab_size=fields['vocab_size'], hidden_size=fields['width'],
    num_hidden_layers=fields['layers'], num_attention_heads=fields['heads'],
    num_key_value_heads=fields['kv_heads'], head_dim=fields['head_dim'],
    intermediate_size=fields['mlp_width'], rms_norm_eps=fields['norm_eps'],
    tie_word_embeddings=fields['tied_embeddings'], max_position_embeddings=longest,
    bos_token_id=None, eos_token_id=None, pad_token_id=0))
  device = 'cpu' if os.environ.get('JAX_PLATFORMS', 'cpu') == 'cpu' else 'cuda'
  return policy.to(device, getattr(torch, fields['dtype']))
