"""From a Hugging Face folder or hub id to a local folder.

A folder is itself. Anything else is a hub id, whose weights, configuration and
tokenizer `huggingface_hub` downloads once and keeps in its cache; without a network
only what the cache holds can be had.
"""

import os

_WANTED = ['*.json', '*.safetensors', '*.model', '*.txt', '*.jinja']


def resolve(path: str) -> str:
  """Return the local folder of a Hugging Face folder or hub id.

  Raises:
    ValueError: no such folder, or a hub id that cannot be had; names it and the remedy.
  """
  path = os.path.expanduser(path)
  if os.path.isdir(path):
    return path
  if not path or path.startswith(('/', '.')) or path.count('/') > 1:
    raise ValueError(f'no folder {path!r}: give a Hugging Face folder (config.json, '
                     '*.safetensors, tokenizer files) or a hub id, OWNER/NAME')
  import huggingface_hub
  try:
    return huggingface_hub.snapshot_download(path, allow_patterns=_WANTED,
                                             ignore_patterns=['original/*'])
  except Exception as error:  # many kinds: no network, no such id, gated, disk full
    reason = ' '.join(str(error).split())[:300]
    raise ValueError(
      f'{path!r} is no folder here, and the Hugging Face hub did not give it '
      f'({type(error).__name__}: {reason}). Give a local folder with config.json, '
      '*.safetensors and tokenizer files; or go online, and log in where it is gated'
    ) from error
