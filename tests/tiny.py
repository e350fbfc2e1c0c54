"""A tiny policy, prompts and responses, and their plain padded sequences, for tests."""

import functools
import zlib

import jax
import numpy as np

from lpo_jax import policy as policies
from lpo_jax.types import Rollouts

SIZES = dict(vocab_size=13, width=16, layers=2, heads=4, kv_heads=2, head_dim=8,
             mlp_width=24)


@functools.cache
def policy(seed: int = 0, noise: float = 0.3, **switches) -> policies.Policy:
  """Return a policy far from uniform, drawn by NumPy: no compilation.

  Equally named parameters are equal whatever the switches.
  """
  config = policies.PolicyConfig(**{**SIZES, **switches})

  def draw(path, leaf):
    name = jax.tree_util.keystr(path)
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    value = noise * rng.normal(size=leaf.shape) + ('norm' in name)
    return jax.numpy.asarray(value, leaf.dtype)

  return jax.tree_util.tree_map_with_path(draw, shapes(config))


def shapes(config: policies.PolicyConfig) -> policies.Policy:
  """Return a policy of shapes and dtypes only."""
  return jax.eval_shape(lambda: policies.Policy(config, jax.random.key(0)))


def prompts(lengths=(4, 1, 6), width: int = 6, vocab: int = 13, seed: int = 0):
  """Return left-padded tokens i32[B, P], garbage on the padding, and their mask."""
  rng = np.random.default_rng(seed)
  tokens = rng.integers(vocab, size=(len(lengths), width), dtype=np.int32)
  return tokens, np.arange(width) >= width - np.array(lengths)[:, None]


def rollouts(lengths=(4, 1, 6), samples: int = 3, width: int = 5, vocab: int = 13,
             seed: int = 0) -> Rollouts:
  """Return random responses of unequal length, at least one token each."""
  rng = np.random.default_rng(seed + 1)
  shape = (len(lengths), samples, width)
  ends = rng.integers(1, width + 1, size=shape[:2])
  mask = np.arange(width) < ends[..., None]
  response = rng.integers(vocab, size=shape, dtype=np.int32)
  logprobs = np.where(mask, rng.uniform(-3, -0.1, shape), 0).astype(np.float32)
  return Rollouts(*prompts(lengths, vocab=vocab, seed=seed), response, mask, logprobs)


def sequences(batch: Rollouts):
  """Return tokens, positions and mask [B K, P + N] of prompts joined to responses."""
  samples, width = batch.response.shape[1], batch.response.shape[-1]

  def join(prompt, response):
    repeated = np.repeat(np.asarray(prompt), samples, axis=0)
    return np.concatenate([repeated, np.asarray(response).reshape(-1, width)], axis=1)

  mask = join(batch.prompt_mask, np.ones_like(batch.response, bool))
  positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
  return join(batch.prompt, batch.response), positions, mask


def log_softmax(logits) -> np.ndarray:
  """Return float64 log softmax over the last axis."""
  logits = np.asarray(logits, np.float64)
  logits = logits - logits.max(-1, keepdims=True)
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@jax.jit
def call(policy, tokens, positions, mask):
  """Return policy(tokens, positions, mask), compiled."""
  return policy(tokens, positions, mask)


def teacher_forced(policy: policies.Policy, batch: Rollouts, temperature=1.0):
  """Return float64 log-probabilities [B, K, N, V] of whole plain sequences."""
  logits = np.asarray(call(policy, *sequences(batch)))
  shape = (*batch.response.shape, logits.shape[-1])
  return log_softmax(logits[:, -shape[2] - 1:-1].reshape(shape) / temperature)


def assert_same(one, other) -> None:
  """Assert that two trees hold the same arrays, bit for bit."""
  (one, structure), (other, theirs) = (jax.tree.flatten(x) for x in (one, other))
  assert structure == theirs
  for mine, its in zip(one, other, strict=True):
    assert mine.dtype == its.dtype
    np.testing.assert_array_equal(np.asarray(mine), np.asarray(its))


class Tokenizer:
  """Whose texts are the tokens' numbers; a prompt has as many tokens as letters."""

  pad_id = 0

  def __init__(self, stop: int):
    self.stop_tokens = (stop,)

  def encode(self, prompt):
    return [1] * len(prompt)

  def decode(self, ids):
    return ' '.join(map(str, ids))
