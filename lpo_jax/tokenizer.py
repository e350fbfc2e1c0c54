"""Text to token ids and back, for small policies and pretrained ones alike.

'countdown' names the embedded vocabulary: a SentencePiece word model of 116 pieces,
one token per space-separated word, so that decoding undoes encoding exactly. Any
other name is a local folder or hub id, read by transformers. Rebuild the former with

  python -m lpo_jax.tokenizer --build lpo_jax/countdown.model
"""

import argparse
import os
import pathlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

_SPECIAL = ('<pad>', '<unk>', '<bos>', '<eos>')
_WORDS = (*map(str, range(100)), *'+-*/()=,:>', '<answer>', '</answer>')
_MODEL = pathlib.Path(__file__).parent / 'countdown.model'
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

  def decode(self, ids: Sequence[int]) -> str:
    """Return the text of ids; padding, <bos> and <eos> vanish."""
    ...

  def save(self, folder: str) -> None:
    """Write into `folder` what `get(folder)` reads back."""
    ...


def get(name_or_path: str) -> Tokenizer:
  """Return the embedded vocabulary ('countdown') or that of a folder or hub id.

  Raises:
    ValueError: a folder that does not exist, or no padding or end token in it.
    OSError: transformers finds no tokenizer there.
  """
  if name_or_path == 'countdown':
    return CountdownTokenizer()
  model = pathlib.Path(name_or_path) / _MODEL.name
  if model.exists():
    return CountdownTokenizer(model)
  if name_or_path.startswith(('/', '.', '~')) and not os.path.isdir(name_or_path):
    raise ValueError(f'no folder {name_or_path!r}; use "countdown", a folder or a hub '
                     'id')
  return PretrainedTokenizer(name_or_path)


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
  """A Hugging Face tokenizer: chat template for messages, its own stop tokens."""

  def __init__(self, path: str):
    import transformers
    self._tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    try:
      config = transformers.GenerationConfig.from_pretrained(path)
      stops = config.eos_token_id
    except OSError:  # a folder without generation_config.json
      stops = None
    stops = stops if isinstance(stops, list | tuple) else [stops]
    eos, pad = self._tokenizer.eos_token_id, self._tokenizer.pad_token_id
    self.stop_tokens = tuple(sorted({s for s in (*stops, eos) if s is not None}))
    if not self.stop_tokens:
      raise ValueError(f'{path!r} names no end token: eos_token is missing')
    self.pad_id = self.stop_tokens[0] if pad is None else pad
    self.vocab_size = len(self._tokenizer)

  def encode(self, prompt: str | Sequence[dict]) -> list[int]:
    """Return the ids of text, or of messages through the chat template."""
    if isinstance(prompt, str):
      return self._ids(prompt, add_special_tokens=True)
    text = self._tokenizer.apply_chat_template(
      list(prompt), tokenize=False, add_generation_prompt=True)
    return self._ids(text, add_special_tokens=False)  # the template wrote them

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
