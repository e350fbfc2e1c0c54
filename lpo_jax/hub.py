"""From a Hugging Face hub id to local files.

Of a policy: a folder is itself; anything else is a hub id, whose weights, configuration
and tokenizer `huggingface_hub` downloads once and keeps in its cache. Of a problem set:
the files that are asked for. Without a network only what the cache holds can be had.
"""

import os
import pathlib
from collections.abc import Callable, Sequence

_WANTED = ['*.json', '*.safetensors', '*.model', '*.txt', '*.jinja']
CONVERTED = 'refs/convert/parquet'  # every set once more, by the hub


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
    raise ValueError(
      f'{path!r} is no folder here, and the Hugging Face hub did not give it '
      f'({_reason(error)}). Give a local folder with config.json, *.safetensors and '
      'tokenizer files; or go online, and log in where it is gated') from error


def dataset_files(name: str, choose: Callable[[list[str]], Sequence[str]]) -> list[str]:
  """Return local copies of some of a problem set's files.

  Args:
    name: hub id, OWNER/NAME.
    choose: from the names of the files to those wanted; none of them: the hub's own
      conversion to Parquet is looked at. Raises ValueError where some are missing.

  Raises:
    ValueError: it cannot be had; names it and the remedy.
  """
  import huggingface_hub
  offline = None
  for revision in (None, CONVERTED):
    wanted = {'repo_id': name, 'repo_type': 'dataset', 'revision': revision}
    try:
      there = huggingface_hub.HfApi().list_repo_files(**wanted)
    except Exception as error:  # many kinds: no network, no such id, gated
      offline, folder = offline or error, _cached(wanted)
      there = [] if folder is None else _names(folder)
    if not (files := choose(there)):
      continue
    try:
      folder = huggingface_hub.snapshot_download(
        **wanted, allow_patterns=list(files), local_files_only=offline is not None)
      return [os.path.join(folder, file) for file in files]
    except Exception as error:  # the same, and a full disk
      offline = offline or error
  if offline is None:
    raise ValueError(f'the Hugging Face hub has {name!r}, but no file of it fits')
  raise ValueError(
    f'{name!r} is no file or folder here, and the Hugging Face hub did not give it '
    f'({_reason(offline)}). Give a local file or folder of JSON lines or Parquet with '
    'the same columns; or go online, and log in where it is gated') from offline


def _cached(wanted: dict) -> str | None:
  """Return the folder of what was downloaded before; None without."""
  import huggingface_hub
  try:
    return huggingface_hub.snapshot_download(**wanted, local_files_only=True)
  except Exception:  # of several kinds: nothing of it is in the cache
    return None


def _names(folder: str) -> list[str]:
  root = pathlib.Path(folder)
  return [path.relative_to(root).as_posix() for path in root.rglob('*')
          if path.is_file()]


def _reason(error: Exception) -> str:
  return f'{type(error).__name__}: {" ".join(str(error).split())[:300]}'
