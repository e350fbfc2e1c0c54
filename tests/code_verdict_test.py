"""The code verdict against a corpus of right, wrong and hostile programs."""

import json
import logging
import pathlib
import shutil
import time

import pytest

from lpo_jax import tasks
from lpo_jax.tasks import code_verdict as code
from lpo_jax.tasks import sandbox as sandboxes

_ROWS = [json.loads(line) for line in (
  pathlib.Path(__file__).parent / 'corpora' / 'code.jsonl').read_text().splitlines()]
KIND = 'bubblewrap' if shutil.which('bwrap') else 'rlimits'
TOTAL_S = 20.0


@pytest.mark.parametrize('row', _ROWS, ids=[row['why'] for row in _ROWS])
def test_corpus_program_gets_its_verdict_in_time(row):
  if KIND == 'rlimits' and row.get('hostile'):
    pytest.skip('hostile programs are run behind walls only: install bubblewrap')
  limits = sandboxes.Limits(test_s=row.get('test_s', 8.0), total_s=TOTAL_S)
  start = time.perf_counter()
  reward, note = tasks.code.judge(row['tests'], row['response'], sandbox=KIND,
                                  limits=limits)
  assert time.perf_counter() - start < TOTAL_S + 5
  assert isinstance(reward, float)
  assert reward == pytest.approx(row['reward'])
  assert note in ('', code.TIMEOUT)


def test_corpus_is_large_and_every_row_says_why():
  assert len(_ROWS) >= 120
  assert len({row['why'] for row in _ROWS}) == len(_ROWS)


def test_all_or_nothing_needs_all():
  tests = {'inputs': ['1', '2'], 'outputs': ['1', '2']}
  def verify(program):
    return code.verify(tests, program, sandbox=KIND, all_or_nothing=True)
  assert verify('print(input())') == 1.0
  assert verify('print(1)') == 0.0


def test_what_is_expected_never_enters_the_sandbox(monkeypatch):
  sent = []
  exchange = sandboxes._Inside._exchange
  def spy(self, request, deadline):
    sent.append(request)
    return exchange(self, request, deadline)
  monkeypatch.setattr(sandboxes._Inside, '_exchange', spy)
  tests = {'fn_name': 'f', 'inputs': ['1', '2'], 'outputs': ['"secret"', '"hidden"']}
  assert code.verify(tests, 'def f(x):\n  return "secret"', sandbox=KIND) == 0.5
  assert len(sent) == 3
  assert not any('hidden' in request for request in sent)
  for test, request in enumerate(sent[1:]):  # one input at a time
    assert json.loads(request)['arguments'] == [test + 1]


@pytest.mark.parametrize('response,program', [
  ('x = 1', 'x = 1'), ('```python\na\n```', 'a'), ('```\na\n```\n```py\nb\n```', 'b'),
  ('```python\na\n```\n```\nout\n```', 'a'), ('```cpp\na\n```', 'a'),
  ('```python\na\n```\n```python\nb', 'b'), ('~~~\na\n~~~', 'a'),
  ('````python\n```\na\n```\n````', '```\na\n```'),
  ('  ```python\n  a\n    b\n  ```', 'a\n  b'),
  ('<think>```python\na\n```</think>\n```python\nb\n```', 'b'), ('', ''),
])
def test_the_last_fenced_program_is_extracted(response, program):
  assert code.extract(response) == program


@pytest.mark.parametrize('unit', ['```', '```python\n', '~~~\n', '`', '\n', '``` \n\t'])
def test_extraction_is_quick_on_any_text(unit):
  start = time.perf_counter()
  code.extract(unit * 100_000)
  assert time.perf_counter() - start < 2


def test_tests_of_no_known_form_are_refused():
  with pytest.raises(ValueError, match='known'):
    code.verify({'input': []}, 'print(1)', sandbox=KIND)


def test_without_bubblewrap_the_verdict_refuses_and_says_how(monkeypatch):
  monkeypatch.setenv('PATH', '/nonexistent')
  sandboxes._failure.cache_clear()
  with pytest.raises(RuntimeError, match='apt-get install bubblewrap'):
    code.verify({'inputs': ['1'], 'outputs': ['1']}, 'print(1)')
  sandboxes._failure.cache_clear()


def test_the_weaker_sandbox_works_and_says_so_loudly(caplog):
  sandboxes._failure.cache_clear()
  with caplog.at_level(logging.WARNING):
    assert code.verify({'inputs': ['1'], 'outputs': ['1']}, 'print(input())',
                       sandbox='rlimits') == 1.0
  assert 'WITHOUT isolation' in caplog.text
