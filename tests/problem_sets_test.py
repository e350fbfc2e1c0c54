"""Rows are counted, kept apart from evaluation sets, and hashed by what they say."""

import json

import pytest

from lpo_jax import tasks
from lpo_jax.tasks import math_problems, problem_sets


def _file(folder, name, rows):
  path = folder / name
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return str(path)


def _rows(*questions):
  return [{'problem': question, 'answer': '1'} for question in questions]


@pytest.fixture
def places(tmp_path):
  train = _rows('What is $x+1$?', 'B', 'C', 'D') + [{'problem': 'E', 'answer': ''}]
  return (_file(tmp_path, 'train.jsonl', train),
          _file(tmp_path, 'held.jsonl', _rows('F', 'WHAT is\n$x + 1$ ?')))


def test_questions_of_an_evaluation_set_are_not_trained_on(places):
  train, held = places
  task = tasks.get('math', train=train, evals=(f'held={held}',))
  assert [p.id for p in task.problems('train')] == ['train-1', 'train-2', 'train-3']
  assert [p.id for p in task.eval_sets()['held'].problems] == ['held-0', 'held-1']
  assert task.problems('test') == task.eval_sets()['held'].problems
  found = task.described()
  assert list(found) == ['train train', 'held']
  assert found['train train'].items() >= {
    'place': train, 'rows': 5, 'problems': 3,
    'dropped': {'in an evaluation set': 1, 'no answer': 1}}.items()
  assert found['held']['dropped'] == {} and found['held']['problems'] == 2
  with pytest.raises(ValueError, match=r"1 of 4 training .*'train-0'.*overlap=drop"):
    tasks.get('math', train=train, evals=(held,), overlap='error').problems('train')


def test_a_sign_is_no_decoration():
  assert problem_sets.key('$x - 1$') == problem_sets.key('x-1 ')
  assert problem_sets.key('x-1') != problem_sets.key('x+1')
  assert problem_sets.key('f(1\\,000)') == problem_sets.key('F(1000)')


def test_problems_that_do_not_fit_are_dropped_and_counted(places):
  task = tasks.get('math', train=places[0], evals=(places[1],))
  before = task.described()['train train']['sha256']
  task.restrict(lambda problem: not problem.id.endswith('2'))
  assert [p.id for p in task.problems('train')] == ['train-1', 'train-3']
  found = task.described()['train train']
  assert found['dropped']['too long'] == 1 and found['rows'] == 5
  assert found['sha256'] != before
  with pytest.raises(ValueError, match='longer than the largest bucket'):
    task.restrict(lambda problem: False)


def test_the_hash_is_of_the_content_not_of_the_file(tmp_path):
  def digest(name, rows, **extra):
    path = _file(tmp_path, name, [row | extra for row in rows])
    task = tasks.get('math', train=path, evals=(_file(tmp_path, 'z.jsonl',
                                                      _rows('Z')),))
    return list(task.described().values())[0]['sha256']
  same = digest('a.jsonl', _rows('A', 'B'))
  assert digest('b.jsonl', _rows('A', 'B'), level='Level 3') == same
  assert digest('c.jsonl', _rows('B', 'A')) != same
  assert digest('d.jsonl', _rows('A', 'C')) != same


def test_a_size_takes_from_the_top(places):
  task = tasks.get('math', train=places[0], evals=(places[1],), train_size=2)
  assert [p.id for p in task.problems('train')] == ['train-1']  # the first is held out
  with pytest.raises(ValueError, match='holds 4 problems, asked for 9'):
    tasks.get('math', train=places[0], evals=(places[1],),
              train_size=9).problems('train')


def test_a_named_set_keeps_its_way_of_asking_at_another_place(places):
  held = places[1]
  sets = tasks.get('math', train=places[0],
                   evals=(f'aime24={held}', f'mine={held}')).eval_sets()
  assert (sets['aime24'].samples, sets['aime24'].temperature) == (32, 0.6)
  assert (sets['mine'].samples, sets['mine'].temperature) == (None, None)


@pytest.mark.parametrize(('options', 'message'), [
  ({'train': 'polari'}, "no problem set 'polari': did you mean 'polaris'"),
  ({'evals': ('aime2',)}, "no problem set 'aime2': did you mean 'aime2[45]'"),
  ({'evals': ()}, 'at least one set'), ({'evals': 'aime24'}, 'give a tuple'),
  ({'evals': ('aime24', 'aime24')}, 'names must differ'),
  ({'evals': ('average=x.jsonl',)}, 'none be average'),
  ({'overlap': 'keep'}, "overlap='keep': choose one of drop, error")])
def test_impossible_options_are_refused_before_anything_is_read(options, message):
  with pytest.raises(ValueError, match=message):
    tasks.get('math', **options)


def test_a_set_of_nothing_but_dropped_rows_says_why(tmp_path):
  path = _file(tmp_path, 'x.jsonl', [{'problem': 'P', 'answer': ''}] * 3)
  with pytest.raises(ValueError, match=r"holds 0 problems.*'no answer': 3"):
    problem_sets.load('x', problem_sets.ProblemSet(path), math_problems.read)


def test_an_unknown_form_names_the_row(tmp_path):
  path = _file(tmp_path, 'x.jsonl', [*_rows('P'), {'text': 'T'}])
  with pytest.raises(ValueError, match=r'row 2: .*columns are'):
    problem_sets.load('x', problem_sets.ProblemSet(path), math_problems.read)


def test_verdicts_come_from_the_pool_once_it_is_started_and_are_the_same(places):
  task = tasks.get('math', train=places[0], evals=(places[1],))
  problems = list(task.problems('train'))
  texts = [['\\boxed{1}', '\\boxed{2}'], ['nothing', '\\boxed{\\frac{3}{3}}'],
           ['\\boxed{x}', '\\boxed{1+0}']]
  here = task.submit(problems, texts)()
  assert here.rewards == [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]] and not here.metrics
  task.start(workers=2, deadline_s=30.0)
  try:
    pooled = task.submit(problems, texts)()
  finally:
    task.stop()
  assert pooled.rewards == here.rewards
  assert pooled.metrics['grading/timeout_frac'] == (0.0, 6.0)
  task.stop()  # twice does no harm
