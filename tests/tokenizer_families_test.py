"""The exact prompt each family sees, plain and through its chat template."""

import pytest

from lpo_jax import tasks, tokenizer
from lpo_jax.tasks import countdown
from tests.parity import vocabularies

FAMILIES = tuple(vocabularies.VOCABULARIES)
QUESTION = [{'role': 'user', 'content': 'What is 1 + 1?'}]
RENDERED = {
  'qwen2.5': '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a '
             'helpful assistant.<|im_end|>\n<|im_start|>user\nWhat is 1 + 1?'
             '<|im_end|>\n<|im_start|>assistant\n',
  'qwen3': '<|im_start|>user\nWhat is 1 + 1?<|im_end|>\n<|im_start|>assistant\n',
  'llama3': '<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting '
            'Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n<|eot_id|>'
            '<|start_header_id|>user<|end_header_id|>\n\nWhat is 1 + 1?<|eot_id|>'
            '<|start_header_id|>assistant<|end_header_id|>\n\n',
  'mistral': '<s>[INST] What is 1 + 1? [/INST]',
  'deepseek_qwen': '<｜begin▁of▁sentence｜><｜User｜>'
                   'What is 1 + 1?<｜Assistant｜><think>\n',
}
STARTS = {'qwen2.5': '', 'qwen3': '', 'llama3': '<|begin_of_text|>', 'mistral': '<s>',
          'deepseek_qwen': '<｜begin▁of▁sentence｜>', 'base': '<s>'}


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  room = tmp_path_factory.mktemp('vocabularies')
  for family in FAMILIES:
    (room / family).mkdir()
    vocabularies.write(room / family, family)
  return {family: str(room / family) for family in FAMILIES}


@pytest.mark.parametrize('family', RENDERED)
def test_messages_are_rendered_by_the_chat_template(family, folders):
  words = tokenizer.get(folders[family])
  assert words.render(QUESTION) == RENDERED[family]
  raw = words._tokenizer(RENDERED[family], add_special_tokens=False)['input_ids']
  assert words.encode(QUESTION) == raw  # no second <bos>


@pytest.mark.parametrize('family', RENDERED)
def test_style_chat_makes_text_a_user_message(family, folders):
  words = tokenizer.get(folders[family], 'chat')
  assert words.encode('What is 1 + 1?') == tokenizer.get(folders[family]).encode(
    QUESTION)


@pytest.mark.parametrize('style', ['auto', 'plain'])
@pytest.mark.parametrize('family', FAMILIES)
def test_text_reaches_the_policy_as_it_is(family, style, folders):
  words = tokenizer.get(folders[family], style)
  prompt = tasks.get('countdown', format='tinyzero').problems('train')[0].prompt
  assert prompt.endswith('Assistant: Let me solve this step by step.\n<think>')
  assert words.render(prompt) == STARTS[family] + prompt
  ids = words.encode_response(prompt)
  assert words.encode(prompt)[-len(ids):] == ids
  assert len(words.encode(prompt)) == len(ids) + bool(STARTS[family])
  assert words.decode(words.encode(prompt)) == prompt


def test_tinyzeros_instruct_prompt_is_the_chat_template_written_out(folders):
  prompt = countdown._template_prompt(countdown._TINYZERO_INSTRUCT, [3, 5], 8)
  words = tokenizer.get(folders['qwen3'])
  start = words._tokenizer.convert_tokens_to_ids('<|im_start|>')
  assert words.render(prompt) == prompt
  assert words.encode(prompt).count(start) == 3


def test_style_plain_joins_messages(folders):
  words = tokenizer.get(folders['base'], 'plain')
  assert words.render([{'role': 'system', 'content': 'Be brief.'},
                       {'role': 'user', 'content': 'Why?'}]) == '<s>Be brief.\n\nWhy?'


def test_a_missing_chat_template_is_named(folders):
  with pytest.raises(ValueError, match="no chat template.*prompt_style='plain'"):
    tokenizer.get(folders['base'], 'chat')
  with pytest.raises(ValueError, match="no chat template.*prompt_style='plain'"):
    tokenizer.get(folders['base']).encode(QUESTION)


def test_an_unknown_style_is_named():
  with pytest.raises(ValueError, match="prompt_style='chatty'.*auto, plain, chat"):
    tokenizer.get('countdown', 'chatty')
  with pytest.raises(ValueError, match='no chat template'):
    tokenizer.get('countdown', 'chat')


@pytest.mark.parametrize('family', FAMILIES)
def test_every_end_token_of_the_generation_config_stops(family, folders):
  words = tokenizer.get(folders[family])
  special = vocabularies.VOCABULARIES[family]
  ids = words._tokenizer.convert_tokens_to_ids([*special.stops, special.eos])
  assert words.stop_tokens == tuple(sorted(set(ids)))


def test_a_folder_without_tokenizer_is_named(tmp_path):
  with pytest.raises(ValueError, match='no tokenizer can be read from .*policy.token'):
    tokenizer.get(str(tmp_path))


def test_saved_files_render_alike(folders, tmp_path):
  words = tokenizer.get(folders['llama3'])
  words.save(str(tmp_path))
  assert tokenizer.get(str(tmp_path)).render(QUESTION) == RENDERED['llama3']
