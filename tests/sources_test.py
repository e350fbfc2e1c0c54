"""The rows of a set are the same from every kind of file, folder, hub and TFDS."""

import csv
import json
import sys
import types

import numpy as np
import pytest

from lpo_jax import hub
from lpo_jax.tasks import sources

_ROWS = [{'problem': f'What is ${i}+1$? é\n"quoted", {i}', 'answer': str(i + 1)}
         for i in range(5)]


def _write(path, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  kind = path.suffix
  if kind == '.jsonl':
    path.write_text('\n'.join(map(json.dumps, rows)) + '\n\n', encoding='utf-8')
  elif kind == '.json':
    path.write_text(json.dumps(rows), encoding='utf-8')
  elif kind == '.csv':
    with open(path, 'w', encoding='utf-8', newline='') as file:
      writer = csv.DictWriter(file, rows[0])
      writer.writeheader()
      writer.writerows(rows)
  else:
    pyarrow = pytest.importorskip('pyarrow')
    from pyarrow import parquet
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
  return str(path)


@pytest.mark.parametrize('kind', ['jsonl', 'json', 'csv', 'parquet'])
def test_a_file_is_read_whatever_its_kind(kind, tmp_path):
  path = _write(tmp_path / f'any name.{kind}', _ROWS)
  assert list(sources.rows(path, 'train')) == _ROWS
  assert list(sources.rows(path, 'test')) == _ROWS


def test_an_array_record_holds_a_json_object_a_record(tmp_path, monkeypatch):
  path = tmp_path / 'train.array_record-00000-of-00001'
  path.write_bytes(b'')
  records = [json.dumps(row).encode() for row in _ROWS]

  class Reader:  # array_record's own, of which these two methods are used
    def __init__(self, name):
      assert name == str(path)

    def num_records(self):
      return len(records)

    def read(self, indices):
      return [records[i] for i in indices]

  module = types.ModuleType('array_record.python')
  module.array_record_module = types.SimpleNamespace(ArrayRecordReader=Reader)
  monkeypatch.setitem(sys.modules, 'array_record', types.ModuleType('array_record'))
  monkeypatch.setitem(sys.modules, 'array_record.python', module)
  assert list(sources.rows(str(path), 'train')) == _ROWS
  assert list(sources.rows(str(tmp_path), 'train')) == _ROWS


def test_a_real_array_record_is_read(tmp_path):
  module = pytest.importorskip('array_record.python.array_record_module')
  path = str(tmp_path / 'train.array_record')
  writer = module.ArrayRecordWriter(path, 'group_size:1')
  for row in _ROWS:
    writer.write(json.dumps(row).encode())
  writer.close()
  assert list(sources.rows(path, 'train')) == _ROWS


@pytest.mark.parametrize(('library', 'name'), [
  ('array_record.python', 'x.array_record'), ('pyarrow', 'x.parquet')])
def test_a_missing_library_is_named(library, name, tmp_path, monkeypatch):
  (tmp_path / name).write_bytes(b'')
  monkeypatch.setitem(sys.modules, library, None)
  with pytest.raises(ValueError, match=rf'{name}.*needs.*pip install'):
    list(sources.rows(str(tmp_path / name), 'train'))


_LAYOUTS = {  # as the hub's sets have them -> config, split, the files in order
  'one file a split': (['README.md', 'train.jsonl', 'test.jsonl'], '', 'test',
                       ['test.jsonl']),
  'shards': (['data/train-00001-of-00002.jsonl', 'data/train-00000-of-00002.jsonl',
              'data/test-00000-of-00001.jsonl'], '', 'train',
             ['data/train-00000-of-00002.jsonl', 'data/train-00001-of-00002.jsonl']),
  'configs': (['main/train-00000-of-00001.parquet', 'main/test-00000-of-00001.parquet',
               'socratic/test-00000-of-00001.parquet'], 'main', 'test',
              ['main/test-00000-of-00001.parquet']),
  'a file a config': (['gpqa_diamond.csv', 'gpqa_main.csv'], 'gpqa_diamond', 'train',
                      ['gpqa_diamond.csv']),
  'converted': (['default/train/0000.parquet', 'default/test/0000.parquet'], '',
                'train', ['default/train/0000.parquet']),
  'no split named': (['deepscaler.json', 'README.md'], '', 'train',
                     ['deepscaler.json']),
  'no split named, held out': (['deepscaler.json'], '', 'test', []),
  'validation by another name': (['data/dev.jsonl', 'data/train.jsonl'], '',
                                 'validation', ['data/dev.jsonl']),
  'two kinds of one set': (['train.jsonl', 'train.parquet'], '', 'train',
                           ['train.parquet']),
  'a card is no data': (['dataset_infos.json', 'train.jsonl'], '', 'train',
                        ['train.jsonl']),
}


@pytest.mark.parametrize('layout', _LAYOUTS)
def test_the_files_of_a_split_are_found(layout):
  names, config, split, wanted = _LAYOUTS[layout]
  assert sources.choose(names, split, config) == wanted
  assert sources.choose(names[::-1], split, config) == wanted


def test_a_missing_shard_is_no_smaller_set():
  with pytest.raises(ValueError, match='train: 1 of 2 shards'):
    sources.choose(['train-00000-of-00002.parquet'], 'train')


def test_a_folder_is_read_by_split(tmp_path):
  _write(tmp_path / 'data' / 'train-00000-of-00002.jsonl', _ROWS[:2])
  _write(tmp_path / 'data' / 'train-00001-of-00002.jsonl', _ROWS[2:])
  _write(tmp_path / 'data' / 'test.jsonl', _ROWS[:1])
  assert list(sources.rows(str(tmp_path), 'train')) == _ROWS
  assert list(sources.rows(str(tmp_path), 'test')) == _ROWS[:1]
  assert sources.has(str(tmp_path), 'test') and not sources.has(str(tmp_path), 'other')
  with pytest.raises(ValueError, match=r"no file of split 'validation'.*data/test"):
    list(sources.rows(str(tmp_path), 'validation'))


@pytest.mark.parametrize('place', ['nowhere', './no/where', '/no/where', 'a/b/c',
                                   'owner/file.jsonl'])
def test_a_place_that_is_none_is_named(place):
  with pytest.raises(ValueError, match=f'no problem set {place!r}.*hub id'):
    list(sources.rows(place, 'train'))


@pytest.mark.parametrize(('text', 'message'), [
  ('{"a": 1}\n{"a": \n', 'row 2 is no JSON'), ('{"a": 1}\n[1]\n', r'row 2 .*object')])
def test_a_damaged_row_is_named(text, message, tmp_path):
  (tmp_path / 'x.jsonl').write_text(text)
  with pytest.raises(ValueError, match=rf'x\.jsonl {message}'):
    list(sources.rows(str(tmp_path / 'x.jsonl'), 'train'))


def test_a_damaged_parquet_file_is_named(tmp_path):
  pytest.importorskip('pyarrow')
  (tmp_path / 'x.parquet').write_bytes(b'PAR1 no table')
  with pytest.raises(ValueError, match=r'x\.parquet cannot be read'):
    list(sources.rows(str(tmp_path / 'x.parquet'), 'train'))


class _Hub:
  """A hub on disk, as huggingface_hub gives it: listed by revision, then fetched."""

  def __init__(self, root, online=True):
    self.root, self.online, self.fetched = root, online, []

  def list_repo_files(self, repo_id, repo_type, revision):
    assert repo_type == 'dataset'
    if not self.online:
      raise ConnectionError('no network')
    folder = self.root / repo_id / (revision or 'main').replace('/', '_')
    if not folder.is_dir():
      raise LookupError(f'{repo_id} has no {revision}')
    return [str(path.relative_to(folder)) for path in folder.rglob('*.*')]

  def snapshot_download(self, repo_id, repo_type, revision, allow_patterns=None,
                        local_files_only=False):
    assert repo_type == 'dataset'
    folder = self.root / repo_id / (revision or 'main').replace('/', '_')
    if not (self.online or local_files_only) or not folder.is_dir():
      raise ConnectionError('no network')
    self.fetched.append(allow_patterns)
    return str(folder)


@pytest.fixture
def fake_hub(tmp_path, monkeypatch):
  import huggingface_hub
  found = _Hub(tmp_path / 'hub')
  monkeypatch.setattr(huggingface_hub, 'HfApi', lambda: found)
  monkeypatch.setattr(huggingface_hub, 'snapshot_download', found.snapshot_download)
  return found


def test_a_hub_id_fetches_the_files_of_the_split_alone(fake_hub):
  _write(fake_hub.root / 'owner/name/main/train.jsonl', _ROWS)
  _write(fake_hub.root / 'owner/name/main/test.jsonl', _ROWS[:1])
  assert list(sources.rows('owner/name', 'train')) == _ROWS
  assert fake_hub.fetched == [['train.jsonl']]


def test_a_set_without_data_files_is_read_from_the_hubs_conversion(fake_hub):
  (fake_hub.root / 'owner/name/main').mkdir(parents=True)
  (fake_hub.root / 'owner/name/main/loader.py').write_text('')
  folder = fake_hub.root / 'owner/name' / hub.CONVERTED.replace('/', '_')
  _write(folder / 'all/train/0000.parquet', _ROWS)
  assert list(sources.rows('owner/name', 'train')) == _ROWS


def test_offline_the_cache_serves_and_without_it_the_remedy_is_said(fake_hub):
  fake_hub.online = False
  with pytest.raises(ValueError, match="'owner/name' is no file .*ConnectionError: no "
                                       'network.*local file or folder'):
    list(sources.rows('owner/name', 'train'))
  _write(fake_hub.root / 'owner/name/main/train.jsonl', _ROWS)
  assert list(sources.rows('owner/name', 'train')) == _ROWS


def test_a_set_that_lacks_the_split_is_named(fake_hub):
  _write(fake_hub.root / 'owner/name/main/train.jsonl', _ROWS)
  with pytest.raises(ValueError, match="'owner/name'"):
    list(sources.rows('owner/name', 'test'))


def test_tfds_gives_plain_values(monkeypatch):
  asked = []

  def data_source(name, split):
    asked.append((name, split))
    return [{'problem': b'What?', 'n': np.int64(3),
             'choices': {'text': np.array([b'a', b'b'], object)}}]

  module = types.SimpleNamespace(data_source=data_source)
  monkeypatch.setitem(sys.modules, 'tensorflow_datasets', module)
  found = list(sources.rows('tfds:ai2_arc/ARC-Challenge/test', 'ignored'))
  assert found == [{'problem': 'What?', 'n': 3, 'choices': {'text': ['a', 'b']}}]
  assert asked == [('ai2_arc/ARC-Challenge', 'test')]
  with pytest.raises(ValueError, match='write tfds:NAME/SPLIT'):
    list(sources.rows('tfds:gsm8k', 'train'))
  monkeypatch.setitem(sys.modules, 'tensorflow_datasets', None)
  with pytest.raises(ValueError, match='needs tensorflow-datasets: pip install'):
    list(sources.rows('tfds:gsm8k/train', 'train'))
