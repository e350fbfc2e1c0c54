"""Verdicts for the tests of the grading pool, importable by its workers."""

import os
import time


def scaled(answer, text):
  """Return a reward that names the item."""
  return int(text) / 100 / answer


def slow(answer, text):
  """Take `answer` seconds."""
  time.sleep(answer)
  return 1.0


def deadly(answer, text):
  """Die on 'die', after writing one more x to the file `answer`."""
  if text == 'die':
    with open(answer, 'a') as file:
      file.write('x')
    os._exit(3)
  return 1.0


def process(answer, text):
  """Return a reward that names the process."""
  return os.getpid() / 10**8


def noted(answer, text):
  """Do what `text` names."""
  if text == 'raise':
    raise ValueError('odd')
  if text == 'missing':
    raise RuntimeError('apt-get install something')
  if text in ('large', 'nan'):
    return {'large': 2.0, 'nan': float('nan')}[text]
  return 0.5, text


def same(answer, text, fold=False):
  """Return whether the text is the answer."""
  return float(text.lower() == answer.lower() if fold else text == answer)


def contains(answer, text):
  """Return whether the text has the answer; half a reward for anything long."""
  if text == 'slow':
    time.sleep(60)
  if text == 'raise':
    raise ValueError('odd')
  return 1.0 if answer in text else 0.5 * (len(text) > 20)
