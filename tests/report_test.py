"""The report's numbers are those of a hand computation on the run folders alone."""

import csv
import io
import statistics

import pytest
from matplotlib import image

from lpo_jax import finished, metrics, report


def _run(path, seed, name='lpo_fwd', score=0.5, steps=20, **fields):
  config = {'seed': seed, 'num_steps': 20, 'workdir': str(path)}
  config |= {'objective': {'name': name, 'token_clip': None}} | fields
  metrics.write_json(path / 'config.json', config)
  writer = metrics.Writer(path, tensorboard=False)
  for step in range(steps + 1):
    row = {} if step == 0 else {'actor/entropy': 1 / step, 'actor/grad_norm': score}
    if step % 10 == 0:
      value = score * step / steps
      row |= {'val/countdown/mean@16': value, 'val/countdown/mean@16_stderr': 0.01}
      row |= {'val/countdown/pass@4': value, 'val/countdown/pass@16': value}
    writer.write(step, row)
  writer.close()
  return path


def _table(*paths):
  groups = report.group([finished.load(path) for path in finished.find(paths)])
  return groups, report.table(groups)


def test_seeds_are_grouped_and_groups_named_by_the_fields_that_differ(tmp_path):
  for name in ('lpo_fwd', 'grpo'):
    for seed in range(2):
      _run(tmp_path / f'{name}_{seed}', seed, name)
  groups, _ = _table(tmp_path)
  assert {name: len(runs) for name, runs in groups.items()} == {
    'objective.name=grpo': 2,
    'objective.name=lpo_fwd': 2,
  }


def test_a_field_that_only_some_configs_have_tells_groups_apart(tmp_path):
  _run(tmp_path / 'a', 0)
  _run(tmp_path / 'b', 0, extra=3)
  assert list(_table(tmp_path)[0]) == ['extra=3', 'extra=absent']


def test_runs_that_differ_in_nothing_but_the_seed_are_one_group(tmp_path):
  for seed in range(3):
    _run(tmp_path / str(seed), seed)
  assert list(_table(tmp_path)[0]) == ['all runs']


def test_seeds_that_start_from_policies_of_their_own_are_one_group(tmp_path):
  for seed in range(2):
    _run(tmp_path / str(seed), seed, init_from=f'runs/base_{seed}')
  _run(tmp_path / 'other', 0, init_from='runs/larger_0')
  groups, _ = _table(tmp_path)
  assert {name: len(runs) for name, runs in groups.items()} == {
    'init_from=runs/base_{seed}': 2, 'init_from=runs/larger_{seed}': 1}


def test_cells_are_the_mean_and_sample_deviation_of_the_last_evaluation(tmp_path):
  scores = [0.2, 0.5, 0.6]
  for seed, score in enumerate(scores):
    _run(tmp_path / str(seed), seed, score=score)
  cell = _table(tmp_path)[1]['all runs']['val/countdown/mean@16']
  assert cell.mean == pytest.approx(statistics.fmean(scores))
  assert cell.deviation == pytest.approx(statistics.stdev(scores))


def test_training_numbers_average_the_last_tenth_of_the_steps(tmp_path):
  cells = _table(_run(tmp_path, 0))[1]['all runs']
  assert cells['actor/entropy'].mean == pytest.approx((1 / 19 + 1 / 20) / 2)


def test_columns_are_ordered_and_leave_out_standard_errors(tmp_path):
  assert list(_table(_run(tmp_path, 0))[1]['all runs']) == [
    'val/countdown/mean@16',
    'val/countdown/pass@4',
    'val/countdown/pass@16',
    'actor/entropy',
    'actor/grad_norm',
  ]


def test_null_values_do_not_count(tmp_path):
  _run(tmp_path, 0)
  with (tmp_path / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 21, "val/countdown/mean@16": null, "actor/entropy": null}\n')
  cells = _table(tmp_path)[1]['all runs']
  assert cells['val/countdown/mean@16'].mean == 0.5


def test_a_run_that_only_evaluated_is_read_from_its_summary(tmp_path):
  metrics.write_json(tmp_path / 'config.json', {'seed': 0})
  metrics.write_json(tmp_path / 'summary.json', {'val/countdown/mean@16': 0.25, 'x': 1})
  cells = _table(tmp_path)[1]['all runs']
  assert {name: cell.mean for name, cell in cells.items()} == {
    'val/countdown/mean@16': 0.25
  }


def test_unfinished_runs_and_doubled_seeds_are_noted(tmp_path):
  for name, seed, steps in (('a', 0, 20), ('b', 0, 20), ('c', 1, 10)):
    _run(tmp_path / name, seed, steps=steps)
  notes = report.warnings(_table(tmp_path)[0])
  assert notes == [
    'all runs: seed 0 appears more than once',
    'c: stopped at step 10 of 20',
  ]


def test_command_writes_table_and_figure(tmp_path, capsys):
  for seed in range(2):
    _run(tmp_path / 'sweep' / str(seed), seed, score=0.4 + seed)
  out = tmp_path / 'out'
  assert report.main([str(tmp_path / 'sweep'), f'--out={out}']) == 0
  assert '0.900 ± 0.707' in capsys.readouterr().out
  rows = list(csv.DictReader(io.StringIO((out / 'report.csv').read_text())))
  assert float(rows[0]['val/countdown/mean@16 mean']) == pytest.approx(0.9)
  assert rows[0]['seeds'] == '2'
  assert '![Learning curves](curves.png)' in (out / 'report.md').read_text()
  assert image.imread(out / 'curves.png').shape[1] > 1000


def test_one_seed_has_no_deviation(tmp_path):
  groups, cells = _table(_run(tmp_path, 0))
  assert '| 0.500 |' in report.markdown(groups, cells)
  assert ',0.5,,1,' in report.table_csv(groups, cells)


@pytest.mark.parametrize('content', [None, '{"seed": ', '[1]'])
def test_a_folder_that_is_no_run_is_a_clear_error(tmp_path, capsys, content):
  if content is not None:
    _run(tmp_path, 0)
    (tmp_path / 'config.json').write_text(content)
  assert report.main([str(tmp_path), f'--out={tmp_path / "out"}']) == 2
  assert str(tmp_path) in capsys.readouterr().err


def test_a_run_reached_twice_counts_once(tmp_path):
  _run(tmp_path / 'a', 0)
  twice = tmp_path / 'a' / '..' / 'a'
  assert len(finished.find([tmp_path, tmp_path / 'a', twice])) == 1
