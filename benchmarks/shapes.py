"""What the benchmarks run: the shapes of a batch, one policy in JAX and in torch.

A forward pass of n tokens after c others, p of which are predicted from, costs

  2 n W + 2 p V D + 4 L H d (n c + n (n + 1) / 2)   floating-point operations,

W the blocks' weights; the last term is attention's two products over visible keys. A
backward pass costs two forward ones. Each side is charged with what its way of doing
the job needs, and not with what it computes again or masks.
"""

import os
from typing import NamedTuple

import numpy as np


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
}


def batch(shape: Shape, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
  """Return random prompts i32[B, P] and responses i32[B, K, N]."""
  prompts, samples, width, new = shape
  tokens = np.random.default_rng(0).integers(
    0, vocab_size, (prompts, width + samples * new), np.int32)
  return tokens[:, :width], tokens[:, width:].reshape(prompts, samples, new)


def policy_config():
  """Return the PolicyConfig of configs/models.py that every shape runs."""
  from configs import models

  return models.POLICIES['bench']


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
  """Return transformers' Qwen3 of a PolicyConfig's fields, random weights, float32."""
  import torch
  import transformers

  torch.set_num_threads(os.cpu_count())
  torch.manual_seed(0)
  return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(
    vocab_size=fields['vocab_size'], hidden_size=fields['width'],
    num_hidden_layers=fields['layers'], num_attention_heads=fields['heads'],
    num_key_value_heads=fields['kv_heads'], head_dim=fields['head_dim'],
    intermediate_size=fields['mlp_width'], rms_norm_eps=fields['norm_eps'],
    tie_word_embeddings=fields['tied_embeddings'], max_position_embeddings=longest,
    bos_token_id=None, eos_token_id=None, pad_token_id=0)).float()
