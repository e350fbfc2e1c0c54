"""Where two graders differ is counted, shown and written; what failed is named."""

import csv
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from lpo_jax import outcomes, records, workdir
from lpo_jax.tasks import audit
from lpo_jax.types import Problem

_FAKES = str(pathlib.Path(__file__).parent)
ROOT = pathlib.Path(__file__).parents[1]
LINES = (
  {'id': 'p0', 'answer': 'a', 'responses': ['a', 'b', 'ba', 'A'],
   'rewards': [1.0, 0.0, 1.0, 0.0]},
  {'gold': 'x|y', 'response': 'see x|y\n' + 'long ' * 9 + 'x|y', 'reward': 0.0},
  {'id': 'p2', 'answer': 'a', 'responses': ['slow', 'raise', 'z' * 30]},
)


@pytest.fixture(autouse=True)
def _path(monkeypatch):
  monkeypatch.setenv('PYTHONPATH', _FAKES, prepend=os.pathsep)


@pytest.fixture
def file(tmp_path):
  path = tmp_path / 'saved.jsonl'
  path.write_text('\n\n'.join(map(json.dumps, LINES)) + '\n')
  return str(path)


def run(capsys, *flags):
  status = audit.main(list(flags))
  said = capsys.readouterr()
  return status, said.out, said.err


def tables(text):
  """Return the cells of each table's rows."""
  parts = [part.splitlines() for part in text.split('\n\n')]
  return [[[cell.strip() for cell in line.replace(r'\|', '/')[1:-1].split('|')]
           for line in part[2:]] for part in parts if part[0].startswith('|')]


FAKES = ('--a=grading_fakes:same', '--b=grading_fakes:contains', '--deadline_s=1.5')


def test_kinds_and_failures_are_counted_and_shown(file, capsys):
  status, out, _ = run(capsys, file, *FAKES, '--width=12')
  assert status == 0
  counts, shown = tables(out)
  assert {row[0]: int(row[1]) for row in counts} == {
    'only A right': 0, 'both right': 1, 'only B right': 2, 'neither right': 5,
    'rewards differ': 3, 'A timeout': 0, 'A error': 0, 'B timeout': 1, 'B error': 1,
    'all': 8}
  assert dict((row[0], row[2]) for row in counts)['both right'] == f'{1 / 8:.4f}'
  assert [row[:5] for row in shown] == [
    ['only B right', '0', '1', 'a', 'ba'],
    ['only B right', '0', '1', 'x/y', '...ong long x/y'],
    ['neither right', '0', '0 (timeout)', 'a', 'slow'],
    ['neither right', '0', '0 (error)', 'a', 'raise'],
    ['neither right', '0', '0.5', 'a', '...zzzzzzzzzzzz']]
  assert [row[5].rpartition('/')[2] for row in shown] == [
    'saved.jsonl:1:2', 'saved.jsonl:3', 'saved.jsonl:5:0', 'saved.jsonl:5:1',
    'saved.jsonl:5:2']


def test_a_graders_options_reach_it_and_few_rows_are_shown(file, capsys):
  status, out, _ = run(capsys, file, '--a=grading_fakes:same',
                       '--b=grading_fakes:same', '--b_options={"fold": true}')
  counts, shown = tables(out)
  assert status == 0 and dict(row[:2] for row in counts)['only B right'] == '1'
  assert [row[4] for row in shown] == ['A']
  _, out, _ = run(capsys, file, *FAKES, '--show=1')
  assert [row[0] for row in tables(out)[1]] == ['only B right', 'neither right']
  assert '3 more: raise --show=1' in out


def test_everything_is_written_whole(file, tmp_path, capsys):
  for name in ('out.csv', 'out.json'):
    assert run(capsys, file, *FAKES, f'--out={tmp_path}/{name}')[0] == 0
  with open(tmp_path / 'out.csv', newline='') as found:
    rows = list(csv.DictReader(found))
  assert rows[1]['response'] == LINES[1]['response'] and rows[1]['answer'] == 'x|y'
  report = json.loads((tmp_path / 'out.json').read_text())
  assert [{name: str(value) for name, value in row.items()}
          for row in report['rows']] == rows
  assert report['counts']['only B right'] == 2 and report['responses'] == 8


def test_the_saved_rewards_are_a_grader(tmp_path, capsys):
  path = tmp_path / 'one.jsonl'
  path.write_text(json.dumps(LINES[0]))
  status, out, _ = run(capsys, str(path), '--a=saved', '--b=grading_fakes:same')
  assert status == 0
  assert dict(row[:2] for row in tables(out)[0])['only A right'] == '1'


def test_what_evaluation_and_training_leave_can_be_read(tmp_path):
  answer = {'numbers': [1, 2], 'target': 3}
  problem = Problem('1 2 : 3 >', answer, 'p7')
  kept = records.Records(str(tmp_path), 'set', {})
  kept.add([problem], [outcomes.Outcome([1.0, 0.0], ['x', None], [False] * 2, [1, 2],
                                        ['one', 'two'])], {})
  workdir.write_groups(str(tmp_path), 3, [problem], [['one', 'two']],
                       np.array([[1.0, 0.0]]), [np.ones((1, 2))] * 3, np.ones((1, 2)),
                       np.ones((1, 2), int))
  for path in (kept.path, tmp_path / 'rollouts/step_000003.jsonl'):
    assert audit.read([str(path)]) == [
      audit.Saved(f'{path}:1:0', 'p7', answer, 'one', 1.0),
      audit.Saved(f'{path}:1:1', 'p7', answer, 'two', 0.0)]


def test_the_verdict_of_math_differs_from_math_verify_where_it_should(tmp_path, capsys):
  pytest.importorskip('math_verify')
  path = tmp_path / 'math.jsonl'
  cases = (('10^{-30}', r'\boxed{10^{-31}}'), (r'\frac12', r'So \boxed{0.5}.'),
           ('3', r'\boxed{4}'))
  path.write_text('\n'.join(json.dumps({'gold': gold, 'response': response})
                            for gold, response in cases))
  status, out, _ = run(capsys, str(path))
  counts, shown = tables(out)
  assert status == 0 and [int(row[1]) for row in counts[:4]] == [0, 1, 1, 1]
  assert [row[:4] for row in shown] == [['only B right', '0', '1', '10^{-30}']]


@pytest.mark.parametrize(('line', 'flags', 'message'), [
  ('{"id": "p"}', (), r":1: KeyError 'gold'"),
  ('{"answer": 1, "responses": ["a"], "rewards": [1, 0]}', (), '2 rewards of 1 resp'),
  ('{"answer": 1, "responses": [3]}', (), 'expected {"answer"'),
  ('{"answer": 1', (), 'JSONDecodeError'), ('', (), 'no response in'),
  ('{"gold": "1", "response": "1"}', ('--a=saved',), 'holds no reward'),
  ('{"gold": "1", "response": "1"}', ('--a=verify',), "verify='verify' is no module:"),
  ('{"gold": "1", "response": "1"}', ('--a=lpo_jax.tasks:none',), 'does not load'),
  ('{"gold": "1", "response": "1"}', ('--out=x.txt',), 'must end in .csv or .json'),
  ('{"gold": "1", "response": "1"}', ('--width=0',), '--width=0'),
])
def test_what_cannot_be_compared_is_named(line, flags, message, tmp_path, capsys):
  path = tmp_path / 'file.jsonl'
  path.write_text(line)
  status, out, error = run(capsys, str(path), *flags)
  assert status == 2 and not out
  assert error.startswith('error: ') and message in error


def test_the_command_explains_itself_without_jax():
  code = ('import sys; from lpo_jax.tasks import audit\n'
          'try: audit.main(["--help"])\n'
          'finally: assert "jax" not in sys.modules')
  found = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True,
                         text=True, timeout=60)
  assert found.returncode == 0, found.stderr
  for word in ('--a_options', '--out', '--deadline_s', 'DIR/eval/*.jsonl'):
    assert word in found.stdout
