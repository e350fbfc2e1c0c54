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


def test_a_run_reached_twice_counts_once(tmp_path):
  metrics.write_json(tmp_path / 'a/config.json', {'seed': 0})
  metrics.write_json(tmp_path / 'a/summary.json', {})
  twice = tmp_path / 'a' / '..' / 'a'
  assert len(finished.find([tmp_path, tmp_path / 'a', twice])) == 1


def test_a_cut_run_is_judged_by_one_evaluation_not_by_its_start():
  rows = [{'step': 0, 'val/a/mean@2': 0.1, 'val/a/mean@8': 0.2},
          {'step': 5, 'val/a/mean@2': 0.3}, {'step': 6, 'val/a/mean@2': None}]
  assert finished.final(finished.Run(None, {}, rows, {})) == {'val/a/mean@2': 0.3}


def test_only_the_folder_of_the_seed_is_taken_from_where_a_run_starts(tmp_path):
  for seed in (0, 1):
    metrics.write_json(tmp_path / 'config.json', {
      'seed': seed, 'init_from': f'out/start_0/seed_{seed}'})
    assert finished.load(tmp_path).config['init_from'] == 'out/start_0/seed_{seed}'


def _rows(seconds, compiled, scores):
  rows = [{'step': 0, 'val/a/mean@2': 0.1, 'val/a/pass@2': 0.2}]
  for step, (second, count, score) in enumerate(
      zip(seconds, compiled, scores, strict=True), 1):
    row = {'step': step, 'timing_s/step': second, 'perf/compile_count': count,
           'perf/total_tokens': 100 * step}
    if score is not None:
      row |= {'val/a/mean@2': score, 'val/a/pass@2': score + 0.1}
    rows.append(row)
  return rows


def _path(rows):
  return finished.path(finished.Run(None, {}, rows, {}), 'val/a/mean@2', 'val/a/pass@2')


def test_a_path_says_what_was_spent_until_each_evaluation():
  # Compiled in the first iteration, in the fourth, and when resumed, in the sixth.
  found = _path(_rows([30.0, 2.0, 3.0, 50.0, 1.0, 20.0], [5, 5, 5, 6, 6, 4],
                      [None, 0.3, None, None, 0.4, 0.5]))
  assert found.spent['iterations'].tolist() == [0, 2, 5, 6]
  assert found.spent['tokens'].tolist() == [0, 200, 500, 600]
  # The median of the others, 2.0, stands for each: 2 2 3 2 1 2.
  assert found.spent['seconds'].tolist() == [0, 4, 10, 12]
  assert found.pass_1.tolist() == [0.1, 0.3, 0.4, 0.5]
  assert found.pass_k.tolist() == pytest.approx([0.2, 0.4, 0.5, 0.6])


def test_seconds_are_as_taken_where_every_iteration_compiled():
  assert _path(_rows([3.0, 4.0], [1, 2], [None, 0.5])).spent['seconds'].tolist() == [
    0, 7]


def test_a_run_that_was_never_evaluated_has_an_empty_path():
  found = _path([{'step': 1, 'timing_s/step': 1.0}])
  assert len(found.pass_1) == len(found.spent['seconds']) == 0
  assert len(_path([]).pass_k) == 0


def test_labels_are_scores_without_their_prefix():
  assert finished.label('val/countdown/mean@16') == 'countdown mean@16'
  assert finished.label('actor/entropy') == 'actor/entropy'
