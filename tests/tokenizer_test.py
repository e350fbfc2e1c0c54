"""Vocabularies: exact round trips, clear errors, padding."""

import json

import numpy as np
import pytest

from lpo_jax import tokenizer


@pytest.fixture(scope='module')
def vocabulary():
  return tokenizer.get('countdown')


def test_rebuilding_the_embedded_vocabulary_gives_the_shipped_bytes():
  pytest.importorskip('google.protobuf')  # only the builder needs it
  assert tokenizer.build_countdown_model() == tokenizer._MODEL.read_bytes()


def test_every_word_is_one_token_and_decodes_back(vocabulary):
  for word in tokenizer._WORDS:
    ids = vocabulary.encode_response(word)
    assert len(ids) == 1
    assert vocabulary.decode(ids) == word
  every = ' '.join(tokenizer._WORDS)
  ids = vocabulary.encode_response(every)
  assert ids == list(range(4, vocabulary.vocab_size))
  assert vocabulary.decode(ids) == every
  assert vocabulary.vocab_size == 116


def test_random_word_sequences_survive_a_round_trip(vocabulary):
  rng = np.random.default_rng(0)
  for _ in range(500):
    ids = rng.integers(4, 116, size=rng.integers(1, 40)).tolist()
    assert vocabulary.encode_response(vocabulary.decode(ids)) == ids


def test_prompts_start_with_bos_and_special_tokens_vanish(vocabulary):
  assert (vocabulary.pad_id, vocabulary.stop_tokens) == (0, (3, 115))
  assert vocabulary.encode('14 4 2 : 36 >') == [2, 18, 8, 6, 112, 40, 113]
  ids = np.array([0, 0, 2, 18, 3, 115], np.int32)
  assert vocabulary.decode(ids) == '14 </answer>'


def test_an_unknown_token_stays_visible_in_the_text(vocabulary):
  assert vocabulary.decode([18, 1, 8]) not in ('14 4', '144')


@pytest.mark.parametrize('text,word', [
  ('100 4 : 3 >', "'100'"), ('14 ４ : 3 >', "'４'"), ('14 x', "'x'"), ('007', "'007'"),
  ('<pad>', "'<pad>'"), ('14+4', "'14\\+4'"), ('14 4\n: 3', 'is not in'),
])
def test_a_word_outside_the_vocabulary_is_named(vocabulary, text, word):
  with pytest.raises(ValueError, match=word):
    vocabulary.encode(text)


def test_the_embedded_vocabulary_refuses_messages(vocabulary):
  with pytest.raises(ValueError, match='takes text, not list'):
    vocabulary.encode([{'role': 'user', 'content': '14'}])


def test_a_saved_embedded_vocabulary_is_found_in_its_folder(vocabulary, tmp_path):
  vocabulary.save(str(tmp_path))
  again = tokenizer.get(str(tmp_path))
  assert again.encode('14 4 : 3 >') == vocabulary.encode('14 4 : 3 >')


def test_transformers_reads_the_saved_vocabulary_alike(vocabulary, tmp_path):
  vocabulary.save(str(tmp_path))
  exported = tokenizer.PretrainedTokenizer(str(tmp_path))
  every = ' '.join(tokenizer._WORDS)
  assert exported.encode(every) == vocabulary.encode(every)
  assert exported.decode(exported.encode(every)) == every
  assert exported.vocab_size == vocabulary.vocab_size
  assert exported.pad_id == vocabulary.pad_id


def test_a_missing_folder_is_named():
  with pytest.raises(ValueError, match='/no/such/folder'):
    tokenizer.get('/no/such/folder')


@pytest.fixture(scope='module')
def pretrained_folder(tmp_path_factory):
  tokenizers = pytest.importorskip('tokenizers')
  transformers = pytest.importorskip('transformers')
  words = ['<unk>', '<s>', '</s>', '<|end|>', '<|user|>', '<|assistant|>', 'hi', 'you']
  inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(
    {word: index for index, word in enumerate(words)}, unk_token='<unk>'))
  inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  inner.post_processor = tokenizers.processors.TemplateProcessing(
    single='<s> $A', special_tokens=[('<s>', 1)])
  inner.add_special_tokens(words[1:6])
  wrapped = transformers.PreTrainedTokenizerFast(
    tokenizer_object=inner, bos_token='<s>', eos_token='</s>', unk_token='<unk>')
  wrapped.chat_template = (
    "<s>{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }} <|end|>"
    '{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}')
  folder = tmp_path_factory.mktemp('pretrained')
  wrapped.save_pretrained(folder)
  return folder


def test_pretrained_text_gets_bos_and_a_response_does_not(pretrained_folder):
  vocabulary = tokenizer.get(str(pretrained_folder))
  assert vocabulary.encode('hi you') == [1, 6, 7]
  assert vocabulary.encode_response('hi you') == [6, 7]
  assert vocabulary.decode(np.array([1, 6, 7, 2])) == 'hi you'
  assert vocabulary.vocab_size == 8


def test_pretrained_messages_go_through_the_chat_template_once(pretrained_folder):
  vocabulary = tokenizer.get(str(pretrained_folder))
  assert vocabulary.encode([{'role': 'user', 'content': 'hi'}]) == [1, 4, 6, 3, 5]


def test_stop_tokens_join_eos_and_the_generation_config(pretrained_folder, tmp_path):
  vocabulary = tokenizer.get(str(pretrained_folder))
  assert vocabulary.stop_tokens == (2,)
  assert vocabulary.pad_id == 2  # no padding token: masked positions hold the stop
  vocabulary.save(str(tmp_path))
  (tmp_path / 'generation_config.json').write_text(json.dumps({'eos_token_id': [3]}))
  assert tokenizer.get(str(tmp_path)).stop_tokens == (2, 3)


def test_prompts_are_padded_left_to_the_smallest_bucket_that_fits():
  tokens, mask = tokenizer.pad_prompts([[5, 6], [7, 8, 9]], [8, 4, 16], 0, ['a', 'b'])
  np.testing.assert_array_equal(tokens, [[0, 0, 5, 6], [0, 7, 8, 9]])
  np.testing.assert_array_equal(mask, [[0, 0, 1, 1], [0, 1, 1, 1]])
  assert tokens.dtype == np.int32 and mask.dtype == bool
  assert tokenizer.pad_prompts([[1] * 5], [8, 4], 0, ['a'])[0].shape == (1, 8)


@pytest.mark.parametrize('prompts', [[[1], [1] * 9], [[1], []]])
def test_a_prompt_that_fits_no_bucket_is_named(prompts):
  with pytest.raises(ValueError, match=f"'b' has {len(prompts[1])} tokens.*8"):
    tokenizer.pad_prompts(prompts, [4, 8], 0, ['a', 'b'])
