"""Tiny tokenizers with the special tokens and chat templates of each family.

Byte-level BPE of 400 pieces, merged on Countdown prompts, so that any text survives
and a prompt has few tokens. The templates have the structure of the published ones.
"""

import functools
import json
import pathlib
from typing import NamedTuple

SIZE = 400
_CHATML = (
  "{%% if messages[0]['role'] == 'system' %%}{{ '<|im_start|>system\\n' + "
  "messages[0]['content'] + '<|im_end|>\\n' }}%s{%% endif %%}"
  "{%% for m in messages %%}{%% if not (loop.first and m['role'] == 'system') %%}"
  "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}"
  '{%% endif %%}{%% endfor %%}'
  "{%% if add_generation_prompt %%}{{ '<|im_start|>assistant\\n' }}{%% endif %%}")
_QWEN_DEFAULT = (
  "{% else %}{{ '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are "
  "a helpful assistant.<|im_end|>\\n' }}")
_LLAMA = (
  "{{ bos_token }}{% if not date_string is defined %}{% set date_string = "
  "strftime_now('%d %b %Y') %}{% endif %}"
  "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
  "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
  "{{ '<|start_header_id|>system<|end_header_id|>\\n\\nCutting Knowledge Date: "
  "December 2023\\nToday Date: ' + date_string + '\\n\\n' + system + '<|eot_id|>' }}"
  "{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + "
  "'<|end_header_id|>\\n\\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
  "{% if add_generation_prompt %}"
  "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}")
_MISTRAL = (
  "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != "
  "(loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate "
  "user/assistant/user/assistant/...') }}{% endif %}{% if m['role'] == 'user' %}"
  "{{ '[INST] ' + m['content'] + ' [/INST]' }}{% else %}"
  "{{ m['content'] + eos_token }}{% endif %}{% endfor %}")
_DEEPSEEK = (
  "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}"
  "{{ m['content'] }}{% elif m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}"
  "{% else %}{{ '<｜Assistant｜>' + m['content'] + eos_token }}{% endif %}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}")


class Vocabulary(NamedTuple):
  """Special tokens, template and end tokens of a family's generation config."""

  special: tuple[str, ...]
  bos: str | None
  eos: str
  template: str | None
  stops: tuple[str, ...]


VOCABULARIES = {
  'qwen2.5': Vocabulary(('<|endoftext|>', '<|im_start|>', '<|im_end|>'), None,
                        '<|im_end|>', _CHATML % _QWEN_DEFAULT,
                        ('<|im_end|>', '<|endoftext|>')),
  'qwen3': Vocabulary(('<|endoftext|>', '<|im_start|>', '<|im_end|>'), None,
                      '<|endoftext|>', _CHATML % '', ('<|endoftext|>',)),
  'llama3': Vocabulary(
    ('<|begin_of_text|>', '<|end_of_text|>', '<|start_header_id|>', '<|end_header_id|>',
     '<|eom_id|>', '<|eot_id|>'), '<|begin_of_text|>', '<|eot_id|>', _LLAMA,
    ('<|end_of_text|>', '<|eom_id|>', '<|eot_id|>')),
  'mistral': Vocabulary(('<s>', '</s>'), '<s>', '</s>', _MISTRAL, ('</s>',)),
  'deepseek_qwen': Vocabulary(
    ('<｜begin▁of▁sentence｜>', '<｜end▁of▁sentence｜>', '<｜User｜>',
     '<｜Assistant｜>'),
    '<｜begin▁of▁sentence｜>', '<｜end▁of▁sentence｜>', _DEEPSEEK,
    ('<｜end▁of▁sentence｜>',)),
  'base': Vocabulary(('<s>', '</s>'), '<s>', '</s>', None, ('</s>',)),
}


def write(folder, family: str) -> list[int]:
  """Write a family's tokenizer and generation config; return the stop tokens."""
  import transformers
  found = VOCABULARIES[family]
  inner = _bpe(found.special, found.bos)
  transformers.PreTrainedTokenizerFast(
    tokenizer_object=inner, bos_token=found.bos, eos_token=found.eos,
    chat_template=found.template).save_pretrained(folder)
  stops = [inner.token_to_id(token) for token in found.stops]
  (pathlib.Path(folder) / 'generation_config.json').write_text(json.dumps(
    {'eos_token_id': stops if len(stops) > 1 else stops[0]}))
  return stops


@functools.cache
def _bpe(special: tuple[str, ...], bos: str | None):
  import tokenizers

  from lpo_jax import tasks
  task = tasks.get('countdown', format='tinyzero')
  text = [problem.prompt for problem in task.problems('train')[:20]]
  inner = tokenizers.Tokenizer(tokenizers.models.BPE())
  inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  inner.decoder = tokenizers.decoders.ByteLevel()
  inner.train_from_iterator(text, tokenizers.trainers.BpeTrainer(
    vocab_size=SIZE, special_tokens=list(special), show_progress=False,
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()))
  if bos is not None:
    inner.post_processor = tokenizers.processors.TemplateProcessing(
      single=f'{bos} $A', special_tokens=[(bos, inner.token_to_id(bos))])
  return inner
