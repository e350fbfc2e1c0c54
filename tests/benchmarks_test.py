"""The benchmarks run from end to end at a tiny shape; speeds are never asserted."""

import itertools
import json
import os
import sys
import time
import types

import pytest

from benchmarks import (
  peers,
  performance,
  processes,
  roofline,
  scaling,
  shapes,
  startup,
  step,
  tail,
  timing,
  update,
)

TINY = ['--shape=tiny', '--quiet_s=0', '--reps=1']


def _run(monkeypatch, module, path, *flags):
  monkeypatch.setattr(sys, 'argv', [module.__name__, *TINY, f'--json={path}', *flags])
  module.main()
  return json.loads(path.read_text())


def test_a_step_is_timed_and_absent_peers_are_named(monkeypatch, tmp_path, capsys):
  found = _run(monkeypatch, step, tmp_path / 'step.json', '--micro_prompts=2',
               '--chunk=16')
  assert found['absent'] == ['trl', 'tunix']
  row, = found['rows']
  assert row['tokens'] == 2 * 4 * 16 and row['tokens_per_s'] > 0
  said = capsys.readouterr()
  assert 'tunix is absent: name its interpreter with --tunix_python' in said.err
  page = performance.document(performance.read(tmp_path))
  assert timing.table('step', found['rows']) in page and timing.table(
    'step', found['rows']) in said.out
  assert 'not compared: trl, tunix' in page
  assert 'benchmarks.step --shape=W1' not in page and 'benchmarks.update' in page


def test_a_phase_takes_its_share_of_measured_peaks(monkeypatch, tmp_path):
  ticks = itertools.count()  # each job seems to take longer than the one before
  monkeypatch.setattr(roofline, 'time', types.SimpleNamespace(
    perf_counter=lambda: next(ticks)**2, process_time=time.process_time))
  found = _run(monkeypatch, roofline, tmp_path / 'roofline.json', '--chunk=16')
  rows = {row['phase']: row for row in found['rows']}
  assert set(rows) == {'prefill', 'decode', 'update'}
  for row in rows.values():
    share = row['gflops_per_s'] / row['matmul_peak_gflops_per_s']
    assert row['share_of_matmul'] == pytest.approx(share)
    assert row['share_of_bound'] == pytest.approx(
      max(row['share_of_matmul'], row['share_of_copy']))


def test_a_step_splits_over_forced_devices_and_pods_are_predicted(
    monkeypatch, tmp_path):
  found = _run(monkeypatch, scaling, tmp_path / 'scaling.json', '--vary=devices',
               '--devices=2', '--chunk=16')
  row, = found['rows']
  assert (row['size'], row['value'], row['tokens']) == ('devices', 2, 128)
  pods = {(row['policy'], row['machine']): row for row in found['predicted']}
  assert pods['qwen3_4b', 'v5p_64']['devices'] == 64
  for row in pods.values():
    assert row['tokens_per_s'] * row['seconds'] == pytest.approx(128 * 8 * 1024)
  assert 'v5p_64' in performance.document(performance.read(tmp_path))


def test_a_heavy_tail_is_held_against_one_load_of_full_length(monkeypatch, tmp_path):
  found = _run(monkeypatch, tail, tmp_path / 'tail.json', '--chunk=16', '--pack=4')
  jobs = {job: {row['way']: row for row in found['rows'] if row['job'] == job}
          for job in ('sampling, chunk 16', 'update')}
  rows, update_rows = jobs.values()
  peak = rows['peak']
  assert (peak['tokens'], peak['over_ideal']) == (2 * 4 * 32, pytest.approx(1))
  lengths = shapes.heavy_tailed(8, 4, 32)
  assert abs(lengths.mean() - 8) < 1 and 1 <= lengths.min() < lengths.max() <= 32
  for way in ('waiting', 'one by one'):
    assert rows[way]['tokens'] == lengths.sum()
    ideal = lengths.sum() / peak['tokens_per_s']
    assert rows[way]['over_ideal'] == pytest.approx(rows[way]['seconds'] / ideal)
  assert list(update_rows) == ['peak', 'padded', 'packed 4']
  tokens = lengths.sum() + 8 * 8  # and prompts
  padded, packed = update_rows['padded'], update_rows['packed 4']
  assert padded['tokens'] == packed['tokens'] == tokens
  assert padded['padding'] == pytest.approx(1 - tokens / (8 * (8 + 4 * 32)))
  assert packed['padding'] < padded['padding'] / 2
  assert update_rows['peak']['padding'] == 0
  assert tail.table(found['rows']) in performance.document(performance.read(tmp_path))


def test_a_run_says_when_it_takes_its_first_steps(tmp_path):
  environment = dict(startup.os.environ, JAX_PLATFORMS='cpu')
  found = startup._run('experiments/countdown.py:tiny', tmp_path, environment)
  gradient, iteration = found['gradient'], found['step']
  assert 0 < gradient[0] < iteration[0] and 0 < iteration[1] < iteration[0]


def test_an_entry_runs_in_an_interpreter_of_its_own():
  entry = processes.Entry('matmul', '', timing.matmuls, ('float32', 'cpu'), 1.0,
                          python=sys.executable)
  runner = processes.Runner(entry)
  assert runner.repeat(0) > 0
  runner.close()


def told(member=None):
  """Build a job of a team: to say on which core which member is."""
  cores = sorted(os.sched_getaffinity(0))
  return (lambda: (member.index, member.count, cores)), lambda result: result


def test_a_team_has_a_process_on_each_core():
  entry = processes.Entry('peer', '', told, (), 1.0, processes=2)
  runner = processes.Runner(entry)
  assert runner.repeat(0) > 0
  (index, count, cores), = (one.found for one in runner.repetitions)
  runner.close()
  assert (index, count) == (0, 2) and cores == [min(os.sched_getaffinity(0))]
  first, second = processes._members(entry)
  assert first.member.address == second.member.address and second.member.index == 1


def test_a_team_is_a_side_of_its_own_in_an_update(monkeypatch):
  def entries(*flags):
    found = []
    monkeypatch.setattr(sys, 'argv', ['update', *TINY, *flags])
    monkeypatch.setattr(timing, 'run', lambda job, args, contest: found.extend(
      contest('tiny')[1]))
    update.main()
    return [(entry.side, entry.setting, entry.args[2:], entry.processes)
            for entry in found]

  monkeypatch.setattr(processes, 'cores', lambda: [0, 1])
  assert entries('--micro_prompts=1,2', '--devices=1,2', '--teams=2',
                 '--torch_micro=4') == [
    ('lpo_jax', 'micro_prompts=1', (1, 1), 1),
    ('lpo_jax', 'micro_prompts=2', (2, 1), 1),
    ('lpo_jax', 'micro_prompts=2, 2 devices', (2, 2), 1),
    ('lpo_jax, 2 processes', 'micro_prompts=2', (2, 2), 2),
    ('torch', '4 sequences', (4,), 1), ('torch, 2 processes', '4 sequences', (4,), 2)]
  monkeypatch.setattr(processes, 'cores', lambda: [0])
  with pytest.raises(SystemExit, match='--teams=1,2: processes can be kept on 1 cores'):
    entries('--micro_prompts=2', '--teams=1,2')
  with pytest.raises(SystemExit, match='--micro_prompts=1 splits over --devices=2'):
    entries('--micro_prompts=1', '--devices=2')


def test_a_loop_does_one_step_when_it_is_told_to():
  done = []

  def loop():
    for number in range(2):
      turns.begin()
      done.append(number)
      turns.end(number)
  turns = peers.Turns(loop)
  assert turns.once() == 0 and done == [0]
  assert turns.once() == 1 and done == [0, 1]
  with pytest.raises(RuntimeError, match='the loop ended'):
    turns.once()


def test_words_are_read_back_and_nothing_ends_a_response():
  words = shapes.Words(13)
  assert words.encode(words.decode([5, 12, 0])) == [5, 12, 0]
  assert words.stop_tokens == () and words.pad_id == 0 == words.pad_id()
  texts = shapes.prompts(shapes.SHAPES['tiny'], 13)
  assert [len(words.encode(text)) for text in texts] == [8, 8]


def test_the_page_is_up_to_date_and_says_what_was_not_measured():
  results = performance.read(performance.RESULTS)
  text = (performance.DOCS / 'performance.md').read_text()
  assert text == performance.document(results), 'run python -m benchmarks.performance'
  measured = {result['job'] for result in results if result['platform'] == 'cpu'}
  for job in performance.COMMANDS:
    asked = f'/{job}.json`' in text.partition('## Not measured')[2].partition('##')[0]
    assert asked != (job in measured)


def test_a_file_that_no_benchmark_wrote_is_refused(tmp_path):
  (tmp_path / 'step.json').write_text('{"job": "update", "rows": [1]}')
  with pytest.raises(ValueError, match='step.json: holds job=\'update\''):
    performance.read(tmp_path)
