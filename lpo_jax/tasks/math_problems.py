r"""Mathematics problem sets: where they live, their columns, and how they are asked.

Training: MATH, Polaris-53K, DeepScaleR. Evaluation as in arXiv:2605.06139 (D.2): AIME
24 and 25 and AMC 23 with 32 samples, Minerva with 4, MATH-500 and OlympiadBench with 1,
all at temperature 0.6; GSM8K, and out of distribution (its Table 4) ARC-challenge,
MMLU-Pro and GPQA-diamond, for which it states no number of samples, with 1. Columns are
known by their names, so a local file in the form of any of these loads the same.
"""

import hashlib
import string

from lpo_jax.tasks import math_verdict, problem_sets
from lpo_jax.tasks.problem_sets import Dropped, ProblemSet, Question

_T = 0.6
TRAIN = {
  'math': ProblemSet('DigitalLearningGmbH/MATH-lighteval', 'train'),
  'polaris': ProblemSet('POLARIS-Project/Polaris-Dataset-53K', 'train'),
  'deepscaler': ProblemSet('agentica-org/DeepScaleR-Preview-Dataset', 'train'),
  'eurus_math': ProblemSet('PRIME-RL/Eurus-2-RL-Data', 'train'),
}
PAPER = {
  'aime24': ProblemSet('math-ai/aime24', 'test', '', 32, _T),
  'aime25': ProblemSet('math-ai/aime25', 'test', '', 32, _T),
  'amc23': ProblemSet('math-ai/amc23', 'test', '', 32, _T),
  'minerva': ProblemSet('math-ai/minervamath', 'test', '', 4, _T),
  'math500': ProblemSet('HuggingFaceH4/MATH-500', 'test', '', 1, _T),
  'olympiadbench': ProblemSet('math-ai/olympiadbench', 'test', '', 1, _T),
}
OUT_OF_DISTRIBUTION = {
  'arc_c': ProblemSet('allenai/ai2_arc', 'test', 'ARC-Challenge', 1, _T),
  'mmlu_pro': ProblemSet('TIGER-Lab/MMLU-Pro', 'test', '', 1, _T),
  'gpqa_diamond': ProblemSet('Idavidrein/gpqa', 'train', 'gpqa_diamond', 1, _T),
}
SETS = TRAIN | PAPER | OUT_OF_DISTRIBUTION | {
  'gsm8k': ProblemSet('openai/gsm8k', 'test', 'main', 1, _T)}

PROMPT = ('{question}\n\nThink step by step, and put the final answer in \\boxed{{}}.')
CHOICE_PROMPT = ('{question}\n\n{choices}\n\nThink step by step, and put the letter of '
                 'the right choice in \\boxed{{}}.')
_QUESTIONS = ('problem', 'question', 'Problem', 'Question')
_GPQA = ('Correct Answer', 'Incorrect Answer 1', 'Incorrect Answer 2',
         'Incorrect Answer 3')


def read(row: dict) -> Question:
  """Return what a row asks: open questions, or choices answered by a letter.

  Raises:
    Dropped: it has no answer, or belongs to another subject of a mixed set.
    ValueError: columns of no form that is known; lists them.
  """
  if 'reward_model' in row:
    return _eurus(row)
  text = next((row[name] for name in _QUESTIONS if row.get(name)), None)
  if text is None:
    raise ValueError(f'a question is in one of {", ".join(_QUESTIONS)}, or in prompt '
                     f'beside reward_model; the columns are {sorted(row)}')
  text = str(text).strip()
  if found := _choices(row, text):
    choices, index = found
    letters = string.ascii_uppercase[:len(choices)]
    listed = '\n'.join(f'{letter}. {choice}' for letter, choice in
                       zip(letters, choices, strict=True))
    prompt = CHOICE_PROMPT.format(question=text, choices=listed)
    return Question(text + listed, _user(prompt), letters[index])
  return Question(text, _user(PROMPT.format(question=text)), _gold(row))


def _user(text: str) -> list[dict]:
  return [{'role': 'user', 'content': text}]


def _gold(row: dict) -> str:
  r"""Return the reference answer: stated, or that of a solution.

  Solutions end in \boxed{} (MATH) or on a line '#### 18' (GSM8K); several final
  answers (OlympiadBench) are joined by commas.
  """
  for name in ('answer', 'final_answer', 'Answer'):
    value = row.get(name)
    if isinstance(value, list | tuple):
      value = ', '.join(map(str, value))
    if value is not None and str(value).strip():
      value = str(value).strip()
      return math_verdict.boxed(value) or value
  found = math_verdict.boxed(str(row.get('solution') or ''))
  if not found or not found.strip():
    raise Dropped(problem_sets.NO_ANSWER)
  return found.strip()


def _eurus(row: dict) -> Question:
  """Read a row of Eurus-2-RL's mathematics: its own messages, system prompt included.

  Source: arXiv:2502.01456.
  """
  if row.get('ability') not in (None, 'math'):
    raise Dropped('not mathematics')
  gold = str(row['reward_model'].get('ground_truth') or '').strip()
  if not gold:
    raise Dropped(problem_sets.NO_ANSWER)
  messages = [{'role': m['role'], 'content': m['content']} for m in row['prompt']]
  return Question(messages[-1]['content'], messages, gold)


def _choices(row: dict, text: str) -> tuple[list[str], int] | None:
  """Return the choices and the right one's index; None for an open question.

  GPQA lists the right one first, so its choices are put in an order that is a
  function of the question.
  """
  if all(row.get(name) for name in _GPQA):
    choices = [str(row[name]).strip() for name in _GPQA]
    order = sorted(range(4), key=lambda i: hashlib.sha256(
      f'{text}/{choices[i]}/{i}'.encode()).digest())
    return [choices[i] for i in order], order.index(0)
  if isinstance(row.get('choices'), dict):  # ARC
    labels = [str(label) for label in row['choices']['label']]
    if row.get('answerKey') not in labels:
      raise Dropped(problem_sets.NO_ANSWER)
    return list(map(str, row['choices']['text'])), labels.index(row['answerKey'])
  if row.get('options'):  # MMLU-Pro
    options = list(map(str, row['options']))
    index = row.get('answer_index')
    if index is None:
      index = string.ascii_uppercase.find(str(row.get('answer') or '-'))
    if not 0 <= int(index) < len(options):
      raise Dropped(problem_sets.NO_ANSWER)
    return options, int(index)
  return None
