"""Prompts to token ids, ids to text, for small policies and pretrained ones alike.

'countdown' names the embedded vocabulary: a SentencePiece word model of 116 pieces,
one token per space-separated word, so that decoding undoes encoding exactly. Any
other name is a local folder or hub id, read by transformers. Rebuild the former with

  python -m lpo_jax.tokenizer --build lpo_jax/countdown.model
"""

import argparse
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from lpo_jax import hub

STYLES = ('auto', 'plain', 'chat')
_SPECIAL = ('<pad>', '<unk>', '<bos>', '<eos>')
_WORDS = (*map(str, range(100)), *'+-*/()=,:>', '<answer>', '</answer>')
_MODEL = pathlib.Path(__file__).parent / 'countdown.model'
_TODAY = '26 Jul 2024'  # Llama's templates ask for the date; a prompt must not change
_SPACE = '\u2581'  # SentencePiece's mark at the start of a word


class Tokenizer(Protocol):
  """What sampling, warm start and export need of a vocabulary."""

  pad_id: int
  stop_tokens: tuple[int, ...]  # a response ends with the first of these
  vocab_size: int

  def encode(self, prompt: str | Sequence[dict]) -> list[int]:
    """Return a prompt's ids, text or messages, <bos> included where there is one."""
    ...

  def encode_response(self, text: str) -> list[int]:
    """Return a response's ids, nothing added in front or behind."""
    ...

  def render(self, prompt: str | Sequence[dict]) -> str:
    """Return the text that `encode` turns into ids, special tokens written out."""
    ...

  def decode(self, ids: Sequence[int]) -> str:
    """Return the text of ids; padding, <bos> and <eos> vanish."""
    ...

  def save(self, folder: str) -> None:
    """Write into `folder` what `get(folder)` reads back."""
    ...


def get(name_or_path: str, prompt_style: str = 'auto') -> Tokenizer:
  """Return the embedded vocabulary ('countdown') or that of a folder or hub id.

  Args:
    name_or_path: where from.
    prompt_style: how prompts reach a pretrained policy. 'auto': text as it is,
      messages through the chat template, so the task decides; 'plain': always text,
      messages joined by blank lines (base models); 'chat': always the template, text
      as one user message (instruct models).

  Raises:
    ValueError: no such folder or hub id, no tokenizer or end token in it, no chat
      template where the style needs one, or an unknown style.
  """
  if prompt_style not in STYLES:
    raise ValueError(f'policy.prompt_style={prompt_style!r}: choose one of '
                     f'{", ".join(STYLES)}')
  model = None if name_or_path == 'countdown' else (
    pathlib.Path(name_or_path) / _MODEL.name)
  if model is None or model.exists():
    if prompt_style == 'chat':
      raise ValueError("policy.prompt_style='chat': the embedded vocabulary has no "
                       "chat template; choose 'auto' or 'plain'")
    return CountdownTokenizer(model or _MODEL)
  return PretrainedTokenizer(hub.resolve(name_or_path), prompt_style)


class CountdownTokenizer:
  """One token per word: 0..99, + - * / ( ) = , : > and the answer tags.

  `</answer>` stops a response, as does <eos>.
  """

  def __init__(self, path: str | os.PathLike = _MODEL):
    import sentencepiece
    self._path = pathlib.Path(path)
    self._model = sentencepiece.SentencePieceProcessor(model_file=os.fspath(path))
    self.pad_id = self._model.pad_id()
    self.vocab_size = self._model.get_piece_size()
    close = self._model.piece_to_id(f'{_SPACE}</answer>')
    self.stop_tokens = (self._model.eos_id(), close)

  def encode(self, prompt: str | Sequence[dict]) -> list[int]:
    """Return <bos> and one id per word; see `encode_response` for errors."""
    return [self._model.bos_id(), *self.encode_response(prompt)]

  def encode_response(self, text: str) -> list[int]:
    """Return one id per word.

    Raises:
      ValueError: a word outside the vocabulary, named; or messages, not text.
    """
    if not isinstance(text, str):
      raise ValueError(
        f'the countdown vocabulary takes text, not {type(text).__name__}')
    ids = self._model.encode(text)
    if self._model.unk_id() in ids:
      known = set(_WORDS)
      unknown = next((word for word in text.split() if word not in known), text)
      raise ValueError(f'{unknown[:80]!r} is not in the countdown vocabulary '
                       f'(integers 0..99, {" ".join(_WORDS[100:])}) of {text[:80]!r}')
    return ids

  def render(self, prompt: str | Sequence[dict]) -> str:
    """Return the words behind <bos>."""
    return f'{_SPECIAL[self._model.bos_id()]} {prompt}'

  def decode(self, ids: Sequence[int]) -> str:
    """Return the words, one space between."""
    return self._model.decode([int(i) for i in ids])

  def save(self, folder: str) -> None:
    """Write the model file, and the same vocabulary in transformers' own form."""
    (pathlib.Path(folder) / _MODEL.name).write_bytes(self._path.read_bytes())
    _transformers_tokenizer().save_pretrained(folder)


def _transformers_tokenizer():
  """Return the embedded vocabulary as a transformers tokenizer, for exports."""
  import tokenizers
  import transformers
  pad, unk, bos, eos = _SPECIAL
  ids = {word: index for index, word in enumerate((*_SPECIAL, *_WORDS))}
  inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token=unk))
  inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  inner.post_processor = tokenizers.processors.TemplateProcessing(
    single=f'{bos} $A', special_tokens=[(bos, ids[bos])])
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=inner, pad_token=pad, unk_token=unk, bos_token=bos, eos_token=eos)


class PretrainedTokenizer:
  """A Hugging Face tokenizer: its chat template and its stop tokens."""

  def __init__(self, folder: str, prompt_style: str = 'auto'):
    """Read a local folder; see `get`."""
    import transformers
    try:
      self._tokenizer = transformers.AutoTokenizer.from_pretrained(
        folder, local_files_only=True)
    except Exception as error:  # of many kinds, from missing and damaged files
      reason = ' '.join(str(error).split())[:300]
      raise ValueError(f'no tokenizer can be read from {folder!r} ({reason}); name '
                       'another folder by policy.tokenizer') from error
    self._folder, self._style = folder, prompt_style
    if prompt_style == 'chat':
      self._require_template()
    eos, pad = self._tokenizer.eos_token_id, self._tokenizer.pad_token_id
    self.stop_tokens = tuple(sorted({*_stop_tokens(folder), *([] if eos is None
                                                              else [eos])}))
    if not self.stop_tokens:
      raise ValueError(f'{folder!r} names no end token: eos_token is missing')
    self.pad_id = self.stop_tokens[0] if pad is None else pad
    self.vocab_size = len(self._tokenizer)

  def encode(self, prompt: str | Sequence[dict]) -> list[int]:
    """Return the ids of text, or of messages through the chat template.

    Raises:
      ValueError: messages need a chat template that is not there, or have images
        that plain text has no place for.
    """
    if self._style == 'chat' and isinstance(prompt, str):
      prompt = [{'role': 'user', 'content': prompt}]
    if self._style == 'plain' and not isinstance(prompt, str):
      if not all(isinstance(message['content'], str) for message in prompt):
        raise ValueError("policy.prompt_style='plain' has no place for images: choose "
                         "'auto' or 'chat'")
      prompt = '\n\n'.join(message['content'] for message in prompt)
    if isinstance(prompt, str):
      return self._ids(prompt, add_special_tokens=True)
    self._require_template()
    text = self._tokenizer.apply_chat_template(
      list(prompt), tokenize=False, add_generation_prompt=True,
      date_string=_TODAY, strftime_now=lambda _: _TODAY)
    return self._ids(text, add_special_tokens=False)  # the template wrote them

  def render(self, prompt: str | Sequence[dict]) -> str:
    """Return the text of a prompt's ids, special tokens included."""
    return self._tokenizer.decode(self.encode(prompt), skip_special_tokens=False,
                                  clean_up_tokenization_spaces=False)

  def _require_template(self) -> None:
    if not self._tokenizer.chat_template:
      raise ValueError(f'{self._folder!r} has no chat template: set '
                       "policy.prompt_style='plain' for a base model")

  def encode_response(self, text: str) -> list[int]:
    """Return the ids of text alone."""
    return self._ids(text, add_special_tokens=False)

  def _ids(self, text: str, add_special_tokens: bool) -> list[int]:
    encoded = self._tokenizer(text, add_special_tokens=add_special_tokens)
    return list(encoded['input_ids'])

  def decode(self, ids: Sequence[int]) -> str:
    """Return the text without special tokens."""
    return self._tokenizer.decode(
      [int(i) for i in ids], skip_special_tokens=True,
      clean_up_tokenization_spaces=False)

  def save(self, folder: str) -> None:
    """Write the tokenizer's files into `folder`."""
    self._tokenizer.save_pretrained(folder)


def _stop_tokens(folder: str) -> list[int]:
  """Return the end tokens of generation_config.json, else of config.json."""
  for name in ('generation_config.json', 'config.json'):
    path = pathlib.Path(folder) / name
    if not path.exists():
      continue
    try:
      found = json.loads(path.read_text()).get('eos_token_id')
    except (ValueError, AttributeError) as error:
      raise ValueError(f'{path} is not a JSON object: {error}') from error
    if found is not None:
      return found if isinstance(found, list) else [found]
  return []


def pad_prompts(
    prompts: Sequence[Sequence[int]], buckets: Sequence[int], pad_id: int,
    names: Sequence[str],
) -> tuple[np.ndarray, np.ndarray]:
  """Left-pad prompts to the smallest bucket that holds the longest of them.

  Args:
    prompts: B lists of ids.
    buckets: allowed widths P; few, so that few shapes are compiled.
    pad_id: what fills the left.
    names: B problem ids, for errors.

  Returns:
    tokens i32[B, P] and mask bool[B, P], True on the prompt's own tokens.

  Raises:
    ValueError: an empty prompt, or one longer than every bucket.
  """
  if not prompts or not buckets or len(prompts) != len(names):
    raise ValueError(f'need prompts, buckets and one name per prompt; got '
                     f'{len(prompts)} prompts, {len(buckets)} buckets, '
                     f'{len(names)} names')
  largest = max(buckets)
  for ids, name in zip(prompts, names, strict=True):
    if not 0 < len(ids) <= largest:
      raise ValueError(f'prompt {name!r} has {len(ids)} tokens; it must have 1 to '
                       f'{largest}, the largest bucket')
  longest = max(map(len, prompts))
  width = min(bucket for bucket in buckets if bucket >= longest)
  tokens = np.full((len(prompts), width), pad_id, np.int32)
  mask = np.zeros((len(prompts), width), bool)
  for row, ids in enumerate(prompts):
    tokens[row, width - len(ids):] = ids
    mask[row, width - len(ids):] = True
  return tokens, mask


def build_countdown_model() -> bytes:
  """Return the embedded vocabulary as a SentencePiece model, the same every time.

  The model is written out, not trained: a word model whose ids are, in order, the
  four special pieces and then the words. Needs protobuf.
  """
  from sentencepiece import sentencepiece_model_pb2 as schema
  model: Any = schema.ModelProto()
  kind = schema.ModelProto.SentencePiece
  for piece in _SPECIAL:
    piece_type = kind.UNKNOWN if piece == '<unk>' else kind.CONTROL
    model.pieces.add(piece=piece, score=0.0, type=piece_type)
  for word in _WORDS:
    model.pieces.add(piece=_SPACE + word, score=0.0, type=kind.NORMAL)
  model.trainer_spec.model_type = schema.TrainerSpec.WORD
  model.trainer_spec.vocab_size = len(model.pieces)
  for index, piece in enumerate(_SPECIAL):
    setattr(model.trainer_spec, f'{piece[1:-1]}_id', index)
    setattr(model.trainer_spec, f'{piece[1:-1]}_piece', piece)
  model.normalizer_spec.name = 'identity'
  model.normalizer_spec.add_dummy_prefix = True
  model.normalizer_spec.remove_extra_whitespaces = True
  model.normalizer_spec.escape_whitespaces = True
  return model.SerializeToString(deterministic=True)


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description='Write the embedded vocabulary.')
  parser.add_argument('--build', required=True, metavar='FILE')
  pathlib.Path(parser.parse_args().build).write_bytes(build_countdown_model())
