"""Prompts hold as many tokens as their images need, and name the problem where not."""

import numpy as np
import pytest

from lpo_jax import images, prompts, tokenizer
from lpo_jax.tasks import figures, geometry3k
from lpo_jax.types import Problem
from tests import images_test

TOKENIZER = 'experiments/samples/figures'
PROCESSOR = images.Processor(image_token=3, patch_size=12, min_pixels=576,
                             buckets=(48, 96))


@pytest.fixture(scope='module')
def words():
  return tokenizer.get(TOKENIZER)


def problem(count: int = 1, text: str = '<image>Find x.', name: str = 'p') -> Problem:
  one = figures.Figures(train_size=1).problems('train')[0].images
  return Problem(geometry3k.prompt(text), None, name, one * count)


def test_an_image_has_as_many_tokens_as_its_grid_says(words):
  found = prompts.tokens(problem(), words, PROCESSOR)
  assert found == [2, *[3] * 12, 4, *words.encode_response('Find x.')]


def test_a_batch_holds_rows_with_and_without_images(words):
  rows = [problem(), Problem('Find x.', None, 'text'),
          problem(2, '<image>Find<image>x.', 'two')]
  found = prompts.encode(rows, words, (16, 32), PROCESSOR)
  assert found.tokens.shape == (3, 32)
  assert ((found.tokens == 3) & found.mask).sum(axis=1).tolist() == [12, 0, 24]
  assert found.images.grid.tolist() == [[[1, 6, 8], [0] * 3], [[0] * 3] * 2,
                                        [[1, 6, 8]] * 2]
  assert found.images.patches.shape == (3, 96, PROCESSOR.patch_dim)
  bare = prompts.encode_text(rows, words, (16, 32), PROCESSOR)
  assert bare.images is None
  np.testing.assert_array_equal(bare.tokens, found.tokens)


def test_text_alone_has_no_images(words):
  found = prompts.encode([Problem('Find x.', None, 'text')], words, (4,), PROCESSOR)
  assert found.images is None
  assert prompts.encode([Problem('Find x.', None, 'text')], words, (4,)).images is None


@pytest.mark.parametrize('count,text,places', [(1, 'Find x.', 0), (0, '<image>', 1),
                                               (1, '<image><image>', 2)])
def test_images_that_do_not_match_are_refused_by_name(count, text, places, words):
  message = f"'row 9' has {count} images, but its prompt has {places} places"
  with pytest.raises(ValueError, match=message):
    prompts.tokens(problem(count, text, 'row 9'), words, PROCESSOR)


def test_a_prompt_that_would_be_cut_is_refused_by_name(words):
  with pytest.raises(ValueError, match="'p' has 16 tokens.*1 to 15"):
    prompts.encode([problem()], words, (15,), PROCESSOR)


def test_images_for_a_policy_without_a_tower_are_refused_by_name(words):
  with pytest.raises(ValueError, match="'p' has images, but the policy reads text"):
    prompts.tokens(problem(), words)


def test_too_many_patches_are_refused_before_anything_is_decoded(words):
  cut = images_test.picture((300, 300))[:3000]  # its header is whole
  large = Problem(geometry3k.prompt('<image>'), None, 'large', (cut,))
  with pytest.raises(ValueError, match="'large' have 576 patches"):
    prompts.tokens(large, words, PROCESSOR)


def test_plain_text_has_no_place_for_images():
  plain = tokenizer.get(TOKENIZER, 'plain')
  with pytest.raises(ValueError, match="prompt_style='plain' has no place for images"):
    prompts.tokens(problem(), plain, PROCESSOR)
