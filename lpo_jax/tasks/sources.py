"""Rows of a problem set, from wherever it lives.

A place is a local file or folder, a Hugging Face hub id (OWNER/NAME), or
tfds:NAME/SPLIT. Files are Parquet, JSON lines, a JSON list, CSV, or ArrayRecord with
one JSON object a record. Of a folder, on disk or on the hub, those files are read that
are named after the split: `train.jsonl`, `data/train-00000-of-00002.parquet`,
`main/test-00000-of-00001.parquet`; a folder that names no split is all training set.
"""

import csv
import json
import pathlib
import re
from collections.abc import Iterator, Sequence

from lpo_jax import hub

KINDS = ('.parquet', '.array_record', '.jsonl', '.json', '.csv')  # first found counts
_SPLITS = {'train': ('train', 'training'), 'test': ('test', 'testing'),
           'validation': ('validation', 'valid', 'val', 'dev')}
_SHARD = re.compile(r'-(\d{5})-of-(\d{5})(?=\.|$)')
_CARDS = ('dataset_infos.json', 'dataset_info.json', 'features.json')
_TFDS = 'tfds:'


def rows(place: str, split: str, config: str = '') -> Iterator[dict]:
  """Yield the rows of one split, in the order of the files and within them.

  Args:
    place: see above.
    split: 'train', 'test', 'validation' or another name; a single file is taken
      whole, and tfds:NAME/SPLIT names its own.
    config: the subset of sets that have several, e.g. 'ARC-Challenge'.

  Raises:
    ValueError: nothing there, no file of the split, a file that cannot be read, or a
      library that is missing; says which, and the remedy.
  """
  if place.startswith(_TFDS):
    yield from _tfds_rows(place[len(_TFDS):])
    return
  for file in files(place, split, config):
    yield from _rows(file)


def is_one(place: str) -> bool:
  """Return whether a place is a single split: one file, or tfds:NAME/SPLIT."""
  return place.startswith(_TFDS) or pathlib.Path(place).expanduser().is_file()


def has(place: str, split: str, config: str = '') -> bool:
  """Return whether a place can be had and has files of a split of its own."""
  if is_one(place):
    return True
  try:
    return bool(files(place, split, config))
  except ValueError:
    return False


def files(place: str, split: str, config: str = '') -> list[pathlib.Path]:
  """Return the files of one split, on this machine; see `rows`."""
  path = pathlib.Path(place).expanduser()
  if path.is_file():
    return [path]
  if path.is_dir():
    names = [name.relative_to(path).as_posix() for name in path.rglob('*')
             if name.is_file()]
    if found := choose(names, split, config):
      return [path / name for name in found]
    raise ValueError(f'{place!r} has no file of split {split!r}'
                     f'{f" and config {config!r}" if config else ""}, of the kinds '
                     f'{", ".join(KINDS)}; it has {sorted(names)[:8]}')
  if not re.fullmatch(r'[\w.-]+/[\w.-]+', place) or place.startswith('.') or (
      path.suffix in KINDS):
    raise ValueError(f'no problem set {place!r} here: give a file, a folder, a hub id '
                     '(OWNER/NAME) or tfds:NAME/SPLIT')
  return [pathlib.Path(file) for file in
          hub.dataset_files(place, lambda names: choose(names, split, config))]


def choose(names: Sequence[str], split: str, config: str = '') -> list[str]:
  """Return those of a folder's files that make one split, in order; maybe none.

  Raises:
    ValueError: a shard of the split is missing.
  """
  data = [name for name in names if _kind(name) and pathlib.PurePath(name).name not in
          _CARDS and not pathlib.PurePath(name).name.startswith('.')]
  if config:
    data = [name for name in data if config in (
      *pathlib.PurePath(name).parts, pathlib.PurePath(name).stem)] or (
        [name for name in data if '/' not in name])
  found = [name for name in data if _names_split(name, split)]
  if not found and not any(_names_split(name, other) for name in data
                           for other in _SPLITS):
    found = data if split == 'train' or config else []
  kind = min(map(KINDS.index, map(_kind, found)), default=0)
  found = sorted(name for name in found if _kind(name) == KINDS[kind])
  _check_complete(found)
  return found


def _kind(name: str) -> str:
  """Return the ending that says how to read a file; '' where none does."""
  bare = _SHARD.sub('', pathlib.PurePath(name).name)  # name.array_record-00000-of-00001
  suffix = pathlib.PurePath(bare).suffix
  return suffix if suffix in KINDS else ''


def _names_split(name: str, split: str) -> bool:
  words = re.split(r'[^a-z0-9]+', _SHARD.sub('', name).lower())
  return any(word in words for word in _SPLITS.get(split, (split.lower(),)))


def _check_complete(names: Sequence[str]) -> None:
  shards = {}
  for name in names:
    if match := _SHARD.search(name):
      shards.setdefault((name[:match.start()], int(match[2])), []).append(name)
  for (stem, count), found in shards.items():
    if len(found) != count:
      raise ValueError(f'{stem}: {len(found)} of {count} shards are here: '
                       'fetch the rest')


def _rows(file: pathlib.Path) -> Iterator[dict]:
  """Yield a file's rows."""
  readers = {'.parquet': _parquet, '.array_record': _array_record, '.jsonl': _lines,
             '.json': _json, '.csv': _csv}
  kind = _kind(file.name)
  if not kind:
    raise ValueError(f'{file} is of no known kind: give {", ".join(KINDS)}')
  for number, row in enumerate(readers[kind](file), 1):
    if not isinstance(row, dict):
      raise ValueError(f'{file} row {number} is {str(row)[:60]!r}, not an object with '
                       'named fields')
    yield row


def _lines(file: pathlib.Path) -> Iterator[dict]:
  with open(file, encoding='utf-8') as lines:
    for number, line in enumerate(lines, 1):
      if line.strip():
        yield _parsed(line, file, number)


def _parsed(text: str | bytes, file: pathlib.Path, number: int):
  try:
    return json.loads(text)
  except ValueError as error:
    raise ValueError(f'{file} row {number} is no JSON: {error}') from None


def _json(file: pathlib.Path) -> Iterator[dict]:
  """Yield the rows of a JSON list, or of JSON lines under that name."""
  text = file.read_text(encoding='utf-8')
  if text.lstrip().startswith('['):
    yield from _parsed(text, file, 1)
  else:
    yield from _lines(file)


def _csv(file: pathlib.Path) -> Iterator[dict]:
  with open(file, encoding='utf-8', newline='') as lines:
    yield from csv.DictReader(lines)


def _parquet(file: pathlib.Path) -> Iterator[dict]:
  try:
    from pyarrow import parquet
  except ImportError as error:
    raise ValueError(f'{file}: reading Parquet needs pyarrow; pip install pyarrow, or '
                     'give JSON lines') from error
  try:
    for batch in parquet.ParquetFile(file).iter_batches(batch_size=1024):
      yield from batch.to_pylist()
  except (OSError, ValueError) as error:  # pyarrow's own are of these kinds
    raise ValueError(f'{file} cannot be read as Parquet: {error}') from error


def _array_record(file: pathlib.Path) -> Iterator[dict]:
  try:
    from array_record.python import array_record_module
  except ImportError as error:
    raise ValueError(f'{file}: reading ArrayRecord needs array_record; pip install '
                     'array_record, or give JSON lines') from error
  reader = array_record_module.ArrayRecordReader(str(file))
  for number in range(reader.num_records()):
    yield _parsed(reader.read([number])[0], file, number + 1)


def _tfds_rows(name: str) -> Iterator[dict]:
  """Yield the rows of NAME/SPLIT from TFDS, read without TensorFlow."""
  builder, _, split = name.rpartition('/')
  if not builder:
    raise ValueError(f'tfds:{name}: write tfds:NAME/SPLIT')
  try:
    import tensorflow_datasets
  except ImportError as error:
    raise ValueError(f'tfds:{name} needs tensorflow-datasets: pip install '
                     "'lpo_jax[data]', or give a local file") from error
  try:
    source = tensorflow_datasets.data_source(builder, split=split)
  except Exception as error:  # many kinds: unknown name or split, no network
    raise ValueError(f'tfds:{name} cannot be had ({type(error).__name__}: '
                     f'{" ".join(str(error).split())[:300]})') from error
  for index in range(len(source)):
    yield _plain(source[index])


def _plain(value):
  """Return bytes as text and arrays as lists."""
  if isinstance(value, bytes):
    return value.decode('utf-8', 'replace')
  if isinstance(value, dict):
    return {key: _plain(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(item) for item in value]
  return _plain(value.tolist()) if hasattr(value, 'tolist') else value
