"""Run folders are found once each, and say what they are judged by."""

import pytest

from lpo_jax import finished, metrics


def test_a_broken_config_is_named(tmp_path):
  metrics.write_json(tmp_path / 'summary.json', {'final': {'val/a/mean@2': 0.5}})
  (tmp_path / 'config.json').write_text('{"seed":')
  with pytest.raises(ValueError, match='config.json is not JSON'):
    finished.load(tmp_path)
  (tmp_path / 'config.json').write_text('[]')
  with pytest.raises(ValueError, match='holds a list'):
    finished.load(tmp_path)


def test_training_numbers_are_those_of_the_last_tenth(tmp_path):
  metrics.write_json(tmp_path / 'config.json', {'seed': 0})
  writer = metrics.Writer(tmp_path, tensorboard=False)
  for step in range(21):
    writer.write(step, {'actor/entropy': float(step), 'val/a/mean@2': step / 20,
                        'val/a/mean@2_stderr': 9.0})
  writer.close()
  assert finished.final(finished.load(tmp_path)) == {
    'actor/entropy': 19.5, 'val/a/mean@2': 1.0}


def test_scores_come_by_set_kind_and_size():
  names = ['val/b/mean@2', 'val/a/pass@16', 'val/a/pass@2', 'val/a/maj@2',
           'val/a/mean@2', 'actor/grad_norm', 'actor/entropy']
  assert sorted(names, key=finished.order) == [
    'val/a/mean@2', 'val/a/pass@2', 'val/a/pass@16', 'val/a/maj@2', 'val/b/mean@2',
    'actor/entropy', 'actor/grad_norm']
  assert finished.is_score('val/a/pass@16')
  assert not finished.is_score('val/a/pass@16_stderr')
