"""Every set's own columns give the question, the gold answer and the prompt."""

import pytest

from lpo_jax.tasks import math_problems, math_verdict, problem_sets

_BOXED = 'and put the final answer in \\boxed{}.'
_CASES = {  # set -> a row in its columns, its gold
  'MATH-lighteval': ({'problem': 'P', 'level': 'Level 5', 'type': 'Algebra',
                      'solution': 'So $\\boxed{\\frac{1}{2}}$.'}, '\\frac{1}{2}'),
  'MATH-500': ({'problem': 'P', 'solution': 'no box', 'answer': '(3, \\pi)',
                'subject': 'Algebra', 'level': 2, 'unique_id': 'u'}, '(3, \\pi)'),
  'Polaris': ({'problem': 'P', 'answer': '7', 'difficulty': '2/8'}, '7'),
  'DeepScaleR': ({'problem': 'P', 'answer': '-\\frac{2}{3}', 'solution': ''},
                 '-\\frac{2}{3}'),
  'aime24': ({'id': 60, 'problem': 'P', 'solution': '\\boxed{204}', 'url': 'u'}, '204'),
  'aime25': ({'problem': 'P', 'answer': 70, 'id': '0'}, '70'),
  'amc23': ({'id': 0, 'question': 'P', 'answer': 27.0}, '27.0'),
  'olympiadbench': ({'question': 'P', 'final_answer': ['2', '3'], 'solution': ['s'],
                     'is_multiple_answer': True}, '2, 3'),
  'gsm8k': ({'question': 'P', 'answer': 'He has 9.\n#### 1,018'}, '1,018'),
}


@pytest.mark.parametrize('name', _CASES)
def test_open_questions_of_each_set_are_read(name):
  row, gold = _CASES[name]
  found = math_problems.read(row)
  assert found.text == 'P' and found.answer == gold
  [message] = found.prompt
  assert message['role'] == 'user'
  assert message['content'].startswith('P\n\n') and message['content'].endswith(_BOXED)
  assert math_verdict.verify(gold, f'\\boxed{{{found.answer}}}') == 1.0


_CHOICES = {
  'arc': ({'id': 'x', 'question': 'Q', 'answerKey': '2', 'choices': {
    'text': ['no', 'yes', 'maybe'], 'label': ['1', '2', '3']}}, ['no', 'yes', 'maybe']),
  'mmlu_pro': ({'question': 'Q', 'options': ['no', 'yes', 'maybe'], 'answer': 'B',
                'answer_index': 1, 'category': 'c'}, ['no', 'yes', 'maybe']),
}


@pytest.mark.parametrize('name', _CHOICES)
def test_choices_are_lettered_in_their_order(name):
  row, choices = _CHOICES[name]
  found = math_problems.read(row)
  text = found.prompt[0]['content']
  assert 'A. {}\nB. {}\nC. {}\n'.format(*choices) in text
  assert 'letter' in text and found.answer == 'B'
  assert math_verdict.verify(found.answer, 'So \\boxed{\\text{(B)}}') == 1.0
  assert math_verdict.verify(found.answer, '\\boxed{C}') == 0.0


def test_gpqa_choices_are_shuffled_by_the_question_alone():
  def read(question):
    row = {'Question': question, 'Correct Answer': 'right', 'Incorrect Answer 1': 'x',
           'Incorrect Answer 2': 'y', 'Incorrect Answer 3': 'z', 'Record ID': '1'}
    return math_problems.read(row)
  letters = [read(f'question {i}').answer for i in range(200)]
  assert all(30 <= letters.count(letter) <= 70 for letter in 'ABCD')
  assert read('question 3') == read('question 3')
  for i in range(20):
    found = read(f'question {i}')
    assert f'{found.answer}. right' in found.prompt[0]['content']


def test_eurus_rows_keep_their_messages_and_other_subjects_are_dropped():
  messages = [{'role': 'system', 'content': 'S'}, {'role': 'user', 'content': 'Q'}]
  row = {'data_source': 'numina', 'prompt': messages, 'ability': 'math',
         'reward_model': {'ground_truth': '5', 'style': 'rule'}, 'extra_info': {}}
  found = math_problems.read(row)
  assert found.prompt == messages and found.answer == '5' and found.text == 'Q'
  with pytest.raises(problem_sets.Dropped, match='not mathematics'):
    math_problems.read(row | {'ability': 'code'})
  with pytest.raises(problem_sets.Dropped, match='no answer'):
    math_problems.read(row | {'reward_model': {'ground_truth': ''}})


@pytest.mark.parametrize('row', [
  {'problem': 'P', 'answer': None}, {'problem': 'P', 'answer': ' ', 'solution': '12'},
  {'question': 'Q', 'choices': {'text': ['a'], 'label': ['A']}, 'answerKey': ''},
  {'question': 'Q', 'options': ['a', 'b'], 'answer': ''}])
def test_a_row_without_an_answer_is_dropped(row):
  with pytest.raises(problem_sets.Dropped, match='no answer'):
    math_problems.read(row)


def test_unknown_columns_are_listed():
  with pytest.raises(ValueError, match=r"columns are \['a', 'b'\]"):
    math_problems.read({'a': 1, 'b': 2})


def test_the_suites_are_the_papers():
  counts = {name: place.samples for name, place in math_problems.PAPER.items()}
  assert counts == {'aime24': 32, 'aime25': 32, 'amc23': 32, 'minerva': 4,
                    'math500': 1, 'olympiadbench': 1}
  asked = math_problems.PAPER | math_problems.OUT_OF_DISTRIBUTION
  assert {place.temperature for place in asked.values()} == {0.6}
