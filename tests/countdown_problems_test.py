"""Countdown's problems: splits, ranges, prompts, demonstrations, local files."""

import json
import pathlib
import random

import pytest

from lpo_jax import tasks, tokenizer
from lpo_jax.tasks import countdown, countdown_problems, expression

_DATA = pathlib.Path(__file__).parent / 'data' / 'countdown'


def _keys(problems):
  return [(tuple(sorted(p.answer['numbers'])), p.answer['target']) for p in problems]


def test_problems_are_a_pure_function_of_seed_split_and_index():
  problems = tasks.get('countdown', seed=4).problems('train')
  again = tasks.get('countdown', seed=4, train_size=700).problems('train')
  order = random.Random(0).sample(range(700), 50)
  assert [problems[i] for i in order] == [again[i] for i in order]
  other = tasks.get('countdown', seed=5).problems('train')
  assert [problems[i].prompt for i in order] != [other[i].prompt for i in order]
  assert (tasks.get('countdown', seed=4).problems('test')[:]
          == tasks.get('countdown', seed=4).problems('test')[:])


def test_first_problem_of_seed_zero_is_the_recorded_one():
  # Golden: a resumed or repeated run elsewhere must see the same problems.
  problem = tasks.get('countdown').problems('train')[0]
  assert problem.prompt == '17 17 9 : 9 >'
  assert problem.answer == {
    'numbers': [17, 17, 9], 'target': 9, 'witness': '(9 * (17 / 17))'}


def test_splits_are_disjoint_whatever_the_seeds():
  train, test = set(), set()
  for seed in range(2):
    task = tasks.get('countdown', seed=seed)
    train |= set(_keys(task.problems('train')[:3000]))
    test |= set(_keys(task.problems('test')))
  assert not train & test
  assert all(countdown_problems.is_held_out(*key) for key in test)


def test_test_problems_are_distinct_and_ids_unique():
  problems = tasks.get('countdown', test_size=512).problems('test')
  assert len(problems) == 512
  assert len(set(_keys(problems))) == 512
  assert len({problem.id for problem in problems}) == 512


@pytest.mark.parametrize('format', ['compact', 'tinyzero'])
@pytest.mark.parametrize('split,count', [('train', 2000), ('test', 256)])
def test_demonstrations_earn_the_reward_with_right_steps(format, split, count):
  task = tasks.get('countdown', max_numbers=4, format=format)
  for problem in task.problems(split)[:count]:
    response = task.demonstration(problem)
    assert task.verify(problem, response) == 1.0
    assert task.diagnostics(problem, response, 1.0) == {'trace_valid_frac': (1.0, 1.0)}


def test_problems_keep_to_their_ranges_with_the_larger_operand_first():
  task = tasks.get('countdown', min_numbers=2, max_numbers=4)
  counts = set()
  for problem in task.problems('train')[:2000]:
    numbers, target = problem.answer['numbers'], problem.answer['target']
    counts.add(len(numbers))
    assert all(1 <= number <= 20 for number in numbers)
    assert 1 <= target <= 50
    for a, _, b, c in expression.steps(expression.parse(problem.answer['witness'])):
      assert a >= b
      assert c == int(c) and 0 <= c <= 99
  assert counts == {2, 3, 4}


@pytest.mark.parametrize('numbers,longest', [(3, 20), (4, 30)])
def test_demonstrations_encode_without_unknowns_and_decode_back(numbers, longest):
  task = tasks.get('countdown', max_numbers=numbers)
  vocabulary = tokenizer.get('countdown')
  lengths = set()
  for problem in task.problems('train')[:1000]:
    response = task.demonstration(problem)
    ids = vocabulary.encode_response(response)
    lengths.add(len(ids))
    assert vocabulary.decode(ids) == response
    assert ids[-1] in vocabulary.stop_tokens
    assert not set(ids[:-1]) & set(vocabulary.stop_tokens)
    prompt = vocabulary.encode(problem.prompt)
    assert len(prompt) == len(problem.answer['numbers']) + 4
    assert vocabulary.decode(prompt) == problem.prompt
  assert max(lengths) == longest


def test_three_number_demonstration_reads_as_documented():
  problem = countdown.Problem(
    '14 4 2 : 36 >', {'numbers': [14, 4, 2], 'target': 36,
                      'witness': '((14 + 4) * 2)'}, 'x')
  assert tasks.get('countdown').demonstration(problem) == (
    '14 + 4 = 18 , 18 * 2 = 36 <answer> ( 14 + 4 ) * 2 </answer>')


def test_a_problem_without_witness_has_no_demonstration():
  problem = countdown.Problem(
    '', {'numbers': [1, 2], 'target': 3, 'witness': None}, 'lonely')
  with pytest.raises(ValueError, match='lonely'):
    tasks.get('countdown').demonstration(problem)


@pytest.mark.parametrize('split', ['train', 'test'])
def test_tinyzero_prompts_and_witnesses_match_the_recorded_rows(split):
  task = tasks.get('countdown', path=str(_DATA), format='tinyzero', format_reward=0.1)
  rows = [json.loads(line) for line in (_DATA / f'{split}.jsonl').open()]
  problems = task.problems(split)
  assert len(problems) == len(rows) == 3
  for problem, row in zip(problems, rows, strict=True):
    assert problem.prompt == row['prompt_base']
    assert problem.id == row['id']
    assert task.verify(problem, f'<answer>{row["witness"]}</answer>') == 1.0
    assert task.verify(problem, f'<answer>{row["target"]}</answer>') == 0.1
    assert task.verify(problem, task.demonstration(problem)) == 1.0


def test_tinyzero_instruct_prompt_wraps_the_same_question_in_a_chat():
  base = countdown._PROMPTS['tinyzero']([1, 2], 3)
  chat = countdown._PROMPTS['tinyzero_instruct']([1, 2], 3)
  question = base.split('User: ')[1].split('\nAssistant')[0]
  assert f'<|im_start|>user\n {question}<|im_end|>\n<|im_start|>assistant' in chat
  assert chat.endswith('Let me solve this step by step.\n<think>')


def test_local_rows_are_counted_and_checked(tmp_path):
  with pytest.raises(ValueError, match='holds 3 rows; asked for 4'):
    tasks.get('countdown', path=str(_DATA), train_size=4).problems('train')
  assert len(tasks.get('countdown', path=str(_DATA), test_size=2).problems('test')) == 2
  (tmp_path / 'train.jsonl').write_text('{"target": 3}\n')
  with pytest.raises(ValueError, match="line 1: needs nums and target.*'target'"):
    tasks.get('countdown', path=str(tmp_path)).problems('train')


@pytest.mark.parametrize('options,message', [
  ({'format': 'verbose'}, 'verbose'),
  ({'format_reward': 2.0}, 'format_reward=2.0'),
  ({'min_numbers': 4, 'max_numbers': 3}, 'min_numbers=4.*max_numbers=3'),
  ({'max_target': 120}, 'max_target=120.*max_intermediate=99'),
  ({'max_number': 120}, '120'),
  ({'max_number': 0}, 'max_number=0'),
])
def test_impossible_options_are_refused_at_build_time(options, message):
  with pytest.raises(ValueError, match=message):
    tasks.get('countdown', **options)


def test_ranges_too_small_for_a_distinct_test_split_are_refused():
  task = tasks.get('countdown', min_numbers=2, max_numbers=2, max_number=8,
                   max_target=9, test_size=50)
  with pytest.raises(ValueError, match='of the 50 asked'):
    task.problems('test')
  with pytest.raises(ValueError, match="unknown split 'dev'"):
    task.problems('dev')


SETS = {'cd34': (3, 4), 'cd4': (4, 4)}


def test_evaluation_sets_are_drawn_by_their_counts():
  task = tasks.get('countdown', max_numbers=4, test_size=40, sets=SETS)
  sets = {name: held_out.problems for name, held_out in task.eval_sets().items()}
  assert {name: len(problems) for name, problems in sets.items()} == {
    'cd34': 40, 'cd4': 40}
  counts = {name: {len(problem.answer['numbers']) for problem in problems}
            for name, problems in sets.items()}
  assert counts == {'cd34': {3, 4}, 'cd4': {4}}
  for problems in sets.values():
    assert all(countdown_problems.is_held_out(p.answer['numbers'], p.answer['target'])
               for p in problems)
  assert tasks.get('countdown').eval_sets().keys() == {'countdown'}


@pytest.mark.parametrize('sets', [{'cd': (3,)}, {'cd': (4, 3)}, {'average': (3, 3)}])
def test_impossible_sets_are_named(sets):
  with pytest.raises(ValueError, match=f'sets: {next(iter(sets))}='):
    tasks.get('countdown', sets=sets)


def hub_rows(kind, folder):
  """Write 400 rows in the hub's schema, as one file."""
  rng = random.Random(0)
  rows = [{'target': rng.randint(10, 100),
           'nums': [rng.randint(1, 99) for _ in range(rng.choice((3, 4)))]}
          for _ in range(400)]
  path = folder / f'rows.{kind}'
  if kind == 'jsonl':
    path.write_text('\n'.join(map(json.dumps, rows)))
  else:
    pyarrow = pytest.importorskip('pyarrow')
    from pyarrow import parquet
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
  return str(path), rows


@pytest.mark.parametrize('kind', ['jsonl', 'parquet'])
def test_one_file_in_the_hubs_schema_is_parted_without_overlap(kind, tmp_path):
  path, rows = hub_rows(kind, tmp_path)
  task = tasks.get('countdown', path=path, test_size=10, sets=SETS)
  train = [(p.answer['numbers'], p.answer['target']) for p in task.problems('train')]
  assert train == [(row['nums'], row['target']) for row in rows
                   if not countdown_problems.is_held_out(row['nums'], row['target'])]
  for name, held_out in task.eval_sets().items():
    assert len(held_out.problems) == 10
    for problem in held_out.problems:
      numbers, target = problem.answer['numbers'], problem.answer['target']
      assert countdown_problems.is_held_out(numbers, target)
      assert (numbers, target) not in train
      assert len(numbers) >= SETS[name][0]
  with pytest.raises(ValueError, match=r'rows of 4 to 4 numbers; asked for 300'):
    tasks.get('countdown', path=path, test_size=300, sets=SETS).problems('cd4')


def test_a_folders_own_file_of_a_set_is_taken_else_its_test_file(tmp_path):
  for name, numbers in (('test', [1, 2, 3]), ('cd4', [1, 2, 3, 4])):
    (tmp_path / f'{name}.jsonl').write_text(
      json.dumps({'nums': numbers, 'target': 6}) + '\n')
  sets = tasks.get('countdown', path=str(tmp_path), sets=SETS).eval_sets()
  assert {name: held_out.problems[0].answer['numbers']
          for name, held_out in sets.items()} == {
            'cd34': [1, 2, 3], 'cd4': [1, 2, 3, 4]}


def test_rows_of_a_held_out_file_are_not_trained_on_and_are_counted(tmp_path):
  for name, rows in (('train', [([1, 2, 3], 6), ([4, 2], 6), ([3, 1, 2], 6)]),
                     ('test', [([2, 3, 1], 6), ([2, 4], 2)])):
    (tmp_path / f'{name}.jsonl').write_text(''.join(
      json.dumps({'nums': nums, 'target': target}) + '\n' for nums, target in rows))
  task = tasks.get('countdown', path=str(tmp_path))
  assert [p.answer['numbers'] for p in task.problems('train')] == [[4, 2]]
  found = task.described()
  assert found['train']['dropped'] == {'in an evaluation set': 2}
  assert (found['train']['rows'], found['countdown']['problems']) == (3, 2)
  assert found['train']['sha256'] != found['countdown']['sha256']
  assert tasks.get('countdown').described() == {}
