"""The report's numbers are those of a hand computation on the run folders alone."""

import csv
import io
import json

import pytest
from matplotlib import image

from lpo_jax import contrast, metrics, report
from tests import run_folders


def test_command_writes_table_and_figure(tmp_path, capsys):
  for seed in range(2):
    run_folders.write(tmp_path / 'sweep' / str(seed), seed, score=0.4 + seed)
  out = tmp_path / 'out'
  assert report.main([str(tmp_path / 'sweep'), f'--out={out}']) == 0
  assert '0.900 ± 0.707' in capsys.readouterr().out
  rows = list(csv.DictReader(io.StringIO((out / 'report.csv').read_text())))
  assert float(rows[0]['val/countdown/mean@16 mean']) == pytest.approx(0.9)
  assert rows[0]['seeds'] == '2'
  assert '![Learning curves](curves.png)' in (out / 'report.md').read_text()
  assert image.imread(out / 'curves.png').shape[1] > 1000


@pytest.mark.parametrize('content', [None, '{"seed": ', '[1]'])
def test_a_folder_that_is_no_run_is_a_clear_error(tmp_path, capsys, content):
  if content is not None:
    run_folders.write(tmp_path, 0)
    (tmp_path / 'config.json').write_text(content)
  assert report.main([str(tmp_path), f'--out={tmp_path / "out"}']) == 2
  assert str(tmp_path) in capsys.readouterr().err


def _study(folder, seeds=3):
  """Write two methods whose every number is known; return group -> seed -> score."""
  found = {}
  for name, gain in (('grpo', 0.0), ('lpo_fwd', 0.1)):
    for seed in range(seeds):
      found.setdefault(name, {})[seed] = 0.4 + gain + 0.05 * seed * (-1 if gain else 1)
      run_folders.write(folder / name / f'seed_{seed}', seed, name,
                        score=found[name][seed])
  return found


def _cells(text, title):
  """Return the cells of the table under a heading, row -> column -> text."""
  lines = text.split(f'## {title}\n')[1].split('\n## ')[0].splitlines()
  head, _, *rows = [[cell.strip() for cell in line.strip('|').split('|')]
                    for line in lines if line.startswith('|')]
  return {row[0]: dict(zip(head, row, strict=True)) for row in rows}


def test_a_report_compares_seed_by_seed_and_says_that_few_are_rough(tmp_path):
  scores = _study(tmp_path / 'runs')
  out = tmp_path / 'out'
  report.write([str(tmp_path / 'runs')], str(out), against='grpo')
  text = (out / 'report.md').read_text()
  final = _cells(text, 'Final numbers')['lpo_fwd']['countdown mean@16']
  low, high = contrast.interval(list(scores['lpo_fwd'].values()))
  assert final == f'0.450 ± 0.050 [{low:.3f}, {high:.3f}]'
  assert 'With 3 seeds an interval is rough' in text
  rows = _cells(text, 'Differences, seed by seed')
  gaps = [scores['lpo_fwd'][seed] - scores['grpo'][seed] for seed in range(3)]
  low, high = contrast.interval(gaps)
  assert rows['lpo_fwd - grpo']['countdown mean@16'] == (
    f'+0.000 [{low:+.3f}, {high:+.3f}], {sum(gap > 0 for gap in gaps)} of 3')
  assert rows['wins: lpo_fwd']['countdown pass@16'].startswith(
    f'{sum(gap > 0 for gap in gaps)} of 3 ')
  for title in ('Learning curves', 'countdown mean@16 against countdown pass@16',
                'countdown pass@16 at equal countdown mean@16',
                'At equal iterations, tokens and seconds', 'Every number'):
    assert f'## {title}\n' in text


def test_a_study_of_given_groups_writes_the_same_page_with_figures_inside(tmp_path):
  _study(tmp_path / 'runs', seeds=2)
  folders = {name: [tmp_path / f'runs/{name}/seed_{seed}' for seed in range(2)]
             for name in ('lpo_fwd', 'grpo')}
  first = report.write_study(folders, [('lpo_fwd', 'grpo')], str(tmp_path / 'a'))
  report.write([str(tmp_path / 'runs')], str(tmp_path / 'b'), against='grpo')
  assert '| lpo_fwd - grpo |' in first and '![' not in first
  html = (tmp_path / 'a/report.html').read_text()
  assert html.count('src="data:image/svg+xml;base64,') == 2 and '<script' not in html
  assert html.count('src=') == 2 and 'href=' not in html
  for name in ('curves.svg', 'frontier.svg', 'curves.png', 'frontier.png'):
    assert (tmp_path / 'a' / name).stat().st_size > 10_000
  others = [sorted((tmp_path / out / 'report.csv').read_text().splitlines())
            for out in 'ab']
  assert others[0] == others[1]


def test_runs_with_one_evaluation_are_said_to_allow_no_matching(tmp_path):
  for seed in range(2):
    metrics.write_json(tmp_path / f'{seed}/config.json', {'seed': seed})
    writer = metrics.Writer(tmp_path / str(seed), tensorboard=False)
    writer.write(3, {'val/a/mean@2': 0.5, 'val/a/pass@2': 0.6})
    writer.close()
  report.write([str(tmp_path)], str(tmp_path / 'out'))
  text = (tmp_path / 'out/report.md').read_text()
  assert 'Set eval.every below num_steps' in text and 'a mean@2 | ' in text


def test_a_run_that_has_just_begun_does_not_keep_others_from_being_matched(tmp_path):
  _study(tmp_path / 'runs')
  rows = metrics.read(str(tmp_path / 'runs/grpo/seed_1'))[:1]
  (tmp_path / 'runs/grpo/seed_1/metrics.jsonl').write_text(json.dumps(rows[0]) + '\n')
  report.write([str(tmp_path / 'runs')], str(tmp_path / 'out'), against='grpo')
  text = (tmp_path / 'out/report.md').read_text()
  row = _cells(text, 'At equal iterations, tokens and seconds')['grpo']
  assert row['countdown mean@16, 20 iterations'] == '0.450 ± 0.071'  # 0.4 and 0.5
  assert 'grpo, seed 1: one evaluation alone, left out.' in text
  assert 'grpo, seed_1: stopped at step 0 of 20' in text


def test_a_name_that_is_no_group_is_refused_with_those_there_are(tmp_path, capsys):
  _study(tmp_path, seeds=1)
  assert report.main([str(tmp_path), f'--out={tmp_path}/o', '--against=maxrl']) == 2
  assert '--against=maxrl: the groups are grpo, lpo_fwd' in capsys.readouterr().err


def test_many_groups_are_paired_only_on_request(tmp_path):
  for name in ('grpo', 'dr_grpo', 'maxrl', 'lpo_fwd'):
    run_folders.write(tmp_path / 'runs' / name / 'seed_0', 0, name)
  out = tmp_path / 'out'
  report.write([str(tmp_path / 'runs')], str(out))
  assert 'Differences' not in (out / 'report.md').read_text()
  report.write([str(tmp_path / 'runs')], str(out), against='maxrl')
  assert '| grpo - maxrl |' in (out / 'report.md').read_text()
