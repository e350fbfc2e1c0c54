"""Problems to what a policy reads: tokens, padded to few widths, and images' patches.

A prompt has one place for each of its images; there the tokens that stand for it are
counted from its grid. A prompt that is too long is an error: none is cut, and so no
image is.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lpo_jax import images as images_lib
from lpo_jax import tokenizer as tokenizers
from lpo_jax.types import Images, Problem


class Prompts(NamedTuple):
  """B prompts, on the host."""

  tokens: np.ndarray  # i32[B, P], left-padded to a bucket
  mask: np.ndarray  # bool[B, P]
  images: Images | None = None  # as patches


def tokens(problem: Problem, tokenizer: tokenizers.Tokenizer,
           processor: images_lib.Processor | None = None) -> list[int]:
  """Return a problem's tokens, those of its images and its prefix included.

  Raises:
    ValueError: its images do not match its prompt, or cannot be taken, or the policy
      reads text only; names the problem.
  """
  found, begun = tokenizer.encode(problem.prompt), problem.prefix
  begun = [] if begun is None else list(begun.tokens)
  if processor is not None:
    return processor.expand(found, problem.images or (), problem.id) + begun
  if problem.images:
    raise ValueError(f'problem {problem.id!r} has images, but the policy reads text '
                     'only: choose a policy with a vision tower')
  return found + begun


def encode_text(problems: Sequence[Problem], tokenizer: tokenizers.Tokenizer,
                buckets: Sequence[int],
                processor: images_lib.Processor | None = None) -> Prompts:
  """Return prompts without patches; see `encode`."""
  return Prompts(*tokenizers.pad_prompts(
    [tokens(problem, tokenizer, processor) for problem in problems], buckets,
    tokenizer.pad_id, [problem.id for problem in problems]))


def encode(problems: Sequence[Problem], tokenizer: tokenizers.Tokenizer,
           buckets: Sequence[int],
           processor: images_lib.Processor | None = None) -> Prompts:
  """Return prompts.

  Args:
    problems: B of them.
    tokenizer: of the policy.
    buckets: allowed widths P.
    processor: of images; None for a policy that reads text only.

  Raises:
    ValueError: a prompt fits no bucket, or see `tokens`; names the problem.
  """
  found = encode_text(problems, tokenizer, buckets, processor)
  pictures = processor and processor.batch(
    [problem.images or () for problem in problems],
    [problem.id for problem in problems])
  return found._replace(images=pictures and Images(*pictures))
