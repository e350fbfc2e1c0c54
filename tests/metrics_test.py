"""Means merge exactly; files are whole, strictly JSON, and resume without a trace."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from lpo_jax import metrics
from lpo_jax.types import Mean


def _strict(text):
  def refuse(name):
    raise ValueError(name)

  return json.loads(text, parse_constant=refuse)


def _lines(workdir):
  return (workdir / 'metrics.jsonl').read_text().splitlines()


def _write(workdir, steps, resume_step=None):
  writer = metrics.Writer(workdir, resume_step, tensorboard=False)
  for step in steps:
    writer.write(step, {'reward/mean': step / 3})
  writer.close()


def test_merged_means_are_those_of_the_whole_under_unequal_counts():
  values = np.arange(7.0)
  parts = [
    {'x': Mean(jnp.sum(part), jnp.float32(len(part)))}
    for part in (values[:2], values[2:])
  ]
  merged = metrics.merge(
    parts[0], parts[1] | {'y': Mean(jnp.float32(3), jnp.float32(2))}
  )
  assert metrics.reduce(merged) == {'x': 3.0, 'y': 1.5}


def test_reduce_gives_nan_where_nothing_was_counted():
  empty = {'x': Mean(jnp.float32(0), jnp.float32(0))}
  assert math.isnan(metrics.reduce(empty)['x'])


def test_what_is_read_back_is_bit_identical(tmp_path):
  numbers = {
    'a': 0.1 + 0.2,
    'b': np.float32(1 / 3),
    'c': jnp.float32(2.0**-140),
    'd': 7,
  }
  writer = metrics.Writer(tmp_path, tensorboard=False)
  writer.write(1, numbers)
  row = metrics.read(tmp_path)[0]
  assert row == {'step': 1} | {name: float(value) for name, value in numbers.items()}
  assert isinstance(row['d'], int)


def test_non_finite_numbers_are_null_in_strict_json(tmp_path):
  writer = metrics.Writer(tmp_path, tensorboard=False)
  writer.write(1, {'a': float('nan'), 'b': jnp.float32(jnp.inf), 'c': 1.0})
  assert _strict(_lines(tmp_path)[0]) == {'step': 1, 'a': None, 'b': None, 'c': 1.0}


def test_a_line_is_readable_as_soon_as_it_is_written(tmp_path):
  writer = metrics.Writer(tmp_path, tensorboard=False)
  writer.write(1, {'a': 1.0})
  assert metrics.read(tmp_path) == [{'step': 1, 'a': 1.0}]


@pytest.mark.parametrize('cut', [0, 1, 5, 20])
def test_resumed_file_equals_an_uninterrupted_one(tmp_path, cut):
  _write(tmp_path / 'whole', range(10))
  _write(tmp_path / 'cut', range(8))
  path = tmp_path / 'cut' / 'metrics.jsonl'
  path.write_bytes(path.read_bytes()[: -cut or None])
  _write(tmp_path / 'cut', range(5, 10), resume_step=4)
  assert _lines(tmp_path / 'cut') == _lines(tmp_path / 'whole')


def test_without_a_step_to_resume_from_the_file_starts_empty(tmp_path):
  _write(tmp_path, range(5))
  _write(tmp_path, range(2))
  assert [row['step'] for row in metrics.read(tmp_path)] == [0, 1]


def test_a_broken_line_in_the_middle_is_left_out(tmp_path):
  _write(tmp_path, range(3))
  path = tmp_path / 'metrics.jsonl'
  path.write_text(path.read_text().replace('{"step": 1', '{"st'))
  assert [row['step'] for row in metrics.read(tmp_path)] == [0, 2]


def test_a_step_cannot_be_written_twice(tmp_path):
  writer = metrics.Writer(tmp_path, resume_step=4, tensorboard=False)
  with pytest.raises(ValueError, match='step=4 .*step=4'):
    writer.write(4, {})
  writer.write(5, {})
  with pytest.raises(ValueError, match='step=5 .*step=5'):
    writer.write(5, {})


def test_tensorboard_purges_the_steps_that_are_written_again(tmp_path):
  for resume_step, steps in ((None, range(1, 6)), (3, range(4, 7))):
    writer = metrics.Writer(tmp_path, resume_step)
    for step in steps:
      writer.write(step, {'reward/mean': 0.5, 'skipped': float('nan')})
    writer.sync()
    writer.close()
  files = sorted((tmp_path / 'tensorboard').iterdir(), key=lambda f: f.stat().st_mtime)
  assert len(files) >= 1
  event_file_loader = pytest.importorskip('tensorboardX.proto.event_pb2')
  purged = []
  for file in files:
    data = file.read_bytes()
    while data:
      size = int.from_bytes(data[:8], 'little')
      event = event_file_loader.Event.FromString(data[12 : 12 + size])
      if event.HasField('session_log'):
        purged.append(event.step)
      data = data[16 + size :]
  assert 4 in purged


def test_an_unwritable_workdir_is_named(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(ValueError, match='workdir=.*file/run cannot be written'):
    metrics.Writer(tmp_path / 'file' / 'run')


def test_json_files_are_replaced_whole(tmp_path):
  path = tmp_path / 'new' / 'summary.json'
  metrics.write_json(path, {'old': 1})
  with pytest.raises(TypeError):
    metrics.write_json(path, {'new': 1, 'bad': object})
  assert _strict(path.read_text()) == {'old': 1}
  metrics.write_json(path, {'x': np.float32(0.5), 'y': [np.nan, True], 'z': 'text'})
  assert _strict(path.read_text()) == {'x': 0.5, 'y': [None, True], 'z': 'text'}
  assert [file.name for file in path.parent.iterdir()] == ['summary.json']


def test_rollouts_are_one_json_object_a_line_whatever_the_texts(tmp_path):
  rows = [
    {'prompt': 'a\nb', 'rewards': np.array([0.0, 1.0])},
    {'texts': ['é\u2028', '"']},
  ]
  path = tmp_path / 'rollouts' / 'step_1.jsonl'
  metrics.write_rollouts(path, rows)
  lines = path.read_text(encoding='utf-8').split('\n')
  assert [_strict(line) for line in lines[:-1]] == [
    {'prompt': 'a\nb', 'rewards': [0.0, 1.0]},
    rows[1],
  ]
