"""Geometry problems from the hub's layout and local folders; numbers and letters."""

import base64
import json

import pytest

from lpo_jax import tasks
from lpo_jax.tasks import geometry3k
from tests import images_test

FORM = '<think> so </think> \\boxed{%s}'
HUB = {'problem': '<image>Find $x$.', 'answer': '2 \\sqrt { 221 }'}


@pytest.fixture
def hub(tmp_path):
  """Return a folder in the hub's layout: Parquet, images as bytes."""
  arrow = pytest.importorskip('pyarrow')
  from pyarrow import parquet
  (tmp_path / 'data').mkdir()
  for split, sizes in (('train', ((40, 30), (50, 30), (60, 30))),
                       ('test', ((50, 30),))):
    rows = [HUB | {'images': [{'bytes': images_test.picture(size), 'path': None}]}
            for size in sizes]
    parquet.write_table(arrow.Table.from_pylist(rows),
                        tmp_path / 'data' / f'{split}-00000-of-00001.parquet')
  return str(tmp_path)


def test_a_folder_of_the_hubs_layout_is_read(hub):
  task = tasks.get('geometry3k', train=hub, evals=(f'test={hub}',))
  problem, = task.eval_sets()['test'].problems
  assert problem.prompt == [{'role': 'user', 'content': [
    {'type': 'image'}, {'type': 'text', 'text': f'Find $x$.\n\n{geometry3k.REQUEST}'}]}]
  assert problem.images == (images_test.picture((50, 30)),)
  assert task.verify(problem, FORM % '2\\sqrt{221}') == 1.0
  assert task.verify(problem, FORM % '29.7') == 0.0


def test_only_the_same_question_about_the_same_figure_is_an_overlap(hub):
  task = tasks.get('geometry3k', train=hub, evals=(f'test={hub}',))
  assert len(task.problems('train')) == 2
  assert task.described()[f'train {hub.split("/")[-1]}']['dropped'] == {
    'in an evaluation set': 1}


@pytest.fixture
def local(tmp_path):
  """Return a file of JSON lines with choices, figures in a folder beside it."""
  (tmp_path / 'images').mkdir()
  (tmp_path / 'images' / 'a.png').write_bytes(images_test.picture((40, 30)))
  row = {'problem': 'Find $x$.', 'choices': ['5', '7', '3', '6'], 'answer_letter': 'B',
         'answer': '7', 'image': 'images/a.png'}
  path = tmp_path / 'rows.jsonl'
  path.write_text(json.dumps(row) + '\n')
  return path


@pytest.mark.parametrize('said,verdict', [
  ('B', 1), ('(B)', 1), ('\\text{B}', 1), ('B.', 1), ('7', 1), ('7.0', 1), ('x = 7', 1),
  ('A', 0), ('(D)', 0), ('5', 0), ('E', 0), ('b', 0), ('', 0), ('BB', 0)])
def test_a_choice_is_answered_by_its_letter_or_value(said, verdict, local):
  task = tasks.get('geometry3k', train=str(local), evals=(f'test={local}',))
  problem, = task.problems('test')
  assert '(A) 5 (B) 7 (C) 3 (D) 6' in problem.prompt[0]['content'][1]['text']
  assert problem.images == (str(local.parent / 'images' / 'a.png'),)
  assert task.verify(problem, FORM % said) == verdict


@pytest.mark.parametrize('text,key', [
  (FORM % 7, '7/1'), ('<think>a</think>\\boxed{7}', '7/1'), ('\\boxed{7}', None),
  ('<think>a \\boxed{7}', None), ('<think>a</think> 7', None), ('', None),
  ('<think></think> \\boxed{}', None)])
def test_an_answer_counts_in_the_form_that_is_asked_for(text, key):
  assert geometry3k.key(text) == key


@pytest.mark.parametrize('change,message', [
  ({'image': None}, 'a figure is in images'), ({'image': 3}, 'a figure is in images'),
  ({'problem': None}, 'a question is in problem'),
  ({'problem': '<image><image>?'}, 'has 1 images, but its text has 2 places')])
def test_a_row_that_cannot_be_is_refused_by_its_number(change, message, local):
  row = json.loads(local.read_text())
  local.write_text('\n'.join(json.dumps(r) for r in (row, row | change)))
  with pytest.raises(ValueError, match=f'row 2: .*{message}'):
    tasks.get('geometry3k', train=str(local), evals=(f'test={local}',)).problems('test')


def test_a_row_without_an_answer_is_dropped_and_counted(local):
  row = json.loads(local.read_text())
  local.write_text('\n'.join(json.dumps(r) for r in (row, row | {'answer': None})))
  task = tasks.get('geometry3k', train=str(local), evals=(f'test={local}',))
  assert len(task.problems('test')) == 1


def test_several_images_stand_where_the_text_has_them():
  images = [{'bytes': base64.b64decode('AAAA'), 'path': 'a'}, {'path': 'b'}]
  found = geometry3k.read({'problem': 'In <image> and <image>, x?', 'answer': '1',
                           'images': images})
  assert [part['type'] for part in found.prompt[0]['content']] == [
    'text', 'image', 'text', 'image', 'text']
  assert found.images == (b'\0\0\0', 'b')


def test_demonstrations_are_right(local):
  task = tasks.get('geometry3k', train=str(local), evals=(f'test={local}',),
                   overlap='drop')
  problem, = task.problems('test')
  assert task.verify(problem, task.demonstration(problem)) == 1.0
  assert task.answer(problem, task.demonstration(problem)) == '7/1'
