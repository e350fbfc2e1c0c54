"""Seeds are grouped, groups named, and numbers are those of a hand computation."""

import statistics

import pytest

from lpo_jax import finished, grouping, metrics
from tests import run_folders


def _table(*paths):
  groups = grouping.group([finished.load(path) for path in finished.find(paths)])
  return groups, grouping.table(groups)


def test_seeds_are_grouped_and_groups_named_by_the_fields_that_differ(tmp_path):
  for name in ('lpo_fwd', 'grpo'):
    for seed in range(2):
      run_folders.write(tmp_path / f'{name}_{seed}', seed, name)
  groups, _ = _table(tmp_path)
  assert {name: len(runs) for name, runs in groups.items()} == {
    'objective.name=grpo': 2,
    'objective.name=lpo_fwd': 2,
  }


def test_a_field_that_only_some_configs_have_tells_groups_apart(tmp_path):
  run_folders.write(tmp_path / 'a', 0)
  run_folders.write(tmp_path / 'b', 0, extra=3)
  assert list(_table(tmp_path)[0]) == ['extra=3', 'extra=absent']


def test_runs_that_differ_in_nothing_but_the_seed_are_one_group(tmp_path):
  for seed in range(3):
    run_folders.write(tmp_path / str(seed), seed)
  assert list(_table(tmp_path)[0]) == ['all runs']


def test_seeds_that_start_from_policies_of_their_own_are_one_group(tmp_path):
  for seed in range(2):
    run_folders.write(tmp_path / str(seed), seed, init_from=f'runs/base_{seed}')
  run_folders.write(tmp_path / 'other', 0, init_from='runs/larger_0')
  groups, _ = _table(tmp_path)
  assert {name: len(runs) for name, runs in groups.items()} == {
    'init_from=runs/base_{seed}': 2, 'init_from=runs/larger_{seed}': 1}


def test_cells_are_the_mean_and_sample_deviation_of_the_last_evaluation(tmp_path):
  scores = [0.2, 0.5, 0.6]
  for seed, score in enumerate(scores):
    run_folders.write(tmp_path / str(seed), seed, score=score)
  cell = _table(tmp_path)[1]['all runs']['val/countdown/mean@16']
  assert cell.mean == pytest.approx(statistics.fmean(scores))
  assert cell.deviation == pytest.approx(statistics.stdev(scores))


def test_training_numbers_average_the_last_tenth_of_the_steps(tmp_path):
  cells = _table(run_folders.write(tmp_path, 0))[1]['all runs']
  assert cells['actor/entropy'].mean == pytest.approx((1 / 19 + 1 / 20) / 2)


def test_columns_are_ordered_and_leave_out_standard_errors(tmp_path):
  assert list(_table(run_folders.write(tmp_path, 0))[1]['all runs']) == [
    'val/countdown/mean@16',
    'val/countdown/pass@4',
    'val/countdown/pass@16',
    'actor/entropy',
    'actor/grad_norm',
  ]


def test_null_values_do_not_count(tmp_path):
  run_folders.write(tmp_path, 0)
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
    run_folders.write(tmp_path / name, seed, steps=steps)
  notes = grouping.warnings(_table(tmp_path)[0])
  assert notes == [
    'all runs: seed 0 appears more than once',
    'all runs, c: stopped at step 10 of 20',
  ]


def test_groups_in_folders_of_a_study_are_called_by_them(tmp_path):
  for name in ('grpo', 'lpo_fwd'):
    for seed in range(2):
      run_folders.write(tmp_path / f'{name}-x/seed_{seed}', seed, name,
                        init_from=f'{tmp_path}/start_0/seed_{seed}')
  assert {name: len(runs) for name, runs in _table(tmp_path)[0].items()} == {
    'grpo-x': 2, 'lpo_fwd-x': 2}
  # One folder, two configurations.
  run_folders.write(tmp_path / 'grpo-x/seed_7', 7, 'maxrl')
  assert 'objective.name=maxrl' in ' '.join(_table(tmp_path)[0])


def test_headline_scores_are_the_largest_that_all_runs_have(tmp_path):
  run_folders.write(tmp_path / 'a', 0)
  groups = _table(tmp_path)[0]
  assert grouping.headline(groups) == ['val/countdown/mean@16', 'val/countdown/pass@16']
  other = finished.Run(tmp_path, {}, [{'step': 0, 'val/countdown/pass@4': 0.5}], {})
  assert grouping.headline(groups | {'b': [other]}) == ['val/countdown/pass@4']


def test_runs_without_numbers_are_left_out_and_named(tmp_path):
  run_folders.write(tmp_path / 'a', 0)
  run_folders.write(tmp_path / 'b', 1)
  (tmp_path / 'b/metrics.jsonl').write_text('')
  groups, notes = grouping.measured(_table(tmp_path)[0])
  assert [run.path.name for run in groups['all runs']] == ['a']
  assert notes == ['all runs, b: has no numbers yet, left out']
  with pytest.raises(ValueError, match='no run has numbers yet: all runs, b'):
    grouping.measured({'all runs': [finished.load(tmp_path / 'b')]})


def test_wins_are_summed_by_objective_or_else_by_name(tmp_path):
  for name in ('grpo', 'lpo_fwd'):
    for tau in (1, 2):
      run_folders.write(tmp_path / f'{name}{tau}/seed_0', 0, name, tau=tau)
  groups = _table(tmp_path)[0]
  pairs = [('lpo_fwd1', 'grpo1'), ('lpo_fwd2', 'grpo2'), ('lpo_fwd1', 'lpo_fwd2')]
  assert list(grouping.families(groups, pairs).values()) == [
    'lpo_fwd', 'lpo_fwd', 'lpo_fwd1']


def test_a_sets_paths_need_an_evaluation_of_every_run(tmp_path):
  run_folders.write(tmp_path / 'a', 0)
  run_folders.write(tmp_path / 'b', 1, 'grpo')
  groups = _table(tmp_path)[0]
  (part, (found, names)), = grouping.paths(groups).items()
  assert part == 'countdown' and names == ('countdown mean@16', 'countdown pass@16')
  path = found['objective.name=grpo'][1]
  assert path.spent['iterations'].tolist() == [0, 10, 20]
  assert path.pass_1.tolist() == [0, 0.25, 0.5]
  never = finished.Run(tmp_path, {}, [{'step': 0, 'actor/entropy': 1.0}], {})
  assert grouping.paths(groups | {'c': [never]}) == {}
