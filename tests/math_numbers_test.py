"""Numbers in LaTeX against exact fractions, and bounds that hold in no time."""

import random
import time
from fractions import Fraction

import pytest

from lpo_jax.tasks import math_numbers


def _random_number(rng, depth):
  """Return (LaTeX, value) drawn from the grammar; value None on division by zero."""
  kind = rng.randrange(7) if depth else 0
  if kind == 0:
    if rng.random() < 0.3:
      text = f'{rng.randrange(100)}.{rng.randrange(100):02d}'
      return text, Fraction(text)
    value = rng.randrange(100)
    return str(value), Fraction(value)
  left, one = _random_number(rng, depth - 1)
  right, other = _random_number(rng, depth - 1)
  if one is None or other is None:
    return '0', Fraction(0)
  if kind == 1:
    return f'({left})+({right})', one + other
  if kind == 2:
    return f'{left}-({right})', one - other
  if kind == 3:
    times = rng.choice(['*', '\\cdot ', '\\times ', ''])
    return f'({left}){times}({right})', one * other
  if kind == 4:
    frac = rng.choice(['\\frac', '\\dfrac', '\\tfrac'])
    return f'{frac}{{{left}}}{{{right}}}', one / other if other else None
  if kind == 5:
    return f'({left})/({right})', one / other if other else None
  exponent = rng.randrange(-3, 4)
  power = one ** exponent if one or exponent > 0 else None
  return f'({left})^{{{exponent}}}', power


def test_random_numbers_are_read_as_fractions_compute_them():
  rng, read = random.Random(0), 0
  for _ in range(5000):
    text, value = _random_number(rng, 3)
    assert math_numbers.read(text) == value, text
    read += value is not None
  assert read > 3000


@pytest.mark.parametrize('text,value', [
  ('1\\frac{1}{2}', '3/2'), ('-1\\frac12', '-3/2'), ('4\\cdot 2\\frac{1}{2}', '10'),
  ('\\frac{270}7', '270/7'), ('1,234,567.5', '2469135/2'), ('.5', '1/2'), ('3.', '3'),
  ('2^10', '1024'), ('-2^2', '-4'), ('(-2)^2', '4'), ('5!', '120'), ('1e3', '1000'),
  ('\\sqrt{\\frac{4}{9}}', '2/3'), ('\\sqrt[3]{27}', '3'), ('\\binom{5}{2}', '10'),
  ('1.2\\times10^{-3}', '3/2500'), ('1/2/3', '1/6'), ('0.1\\overline{6}', '1/6'),
  ('2+3*4', '14'),
])
def test_written_forms_have_their_value(text, value):
  assert math_numbers.read(text) == Fraction(value)


@pytest.mark.parametrize('text', [
  '', '-', '5x', '3,5', '1,23', '1,000,00', '3!!', '\\sqrt2', '1/0', '0^0', '0^{-1}',
  '٣', '(', ')', '2^', '\\frac{1}', 'e', '\\pi', '1 2', '--', '1e', '(-1)^{1/2}',
])
def test_what_is_no_rational_number_is_none(text):
  assert math_numbers.read(text) is None


@pytest.mark.parametrize('text', [
  '9^{9^{9^9}}', '((((9^9)^9)^9)^9)^9', '10000000!', '((9!)!)!', '\\binom{10^9}{10^8}',
  '2^{-999999}', '1e99999', '(' * 400 + '1' + ')' * 400,
  '+'.join(f'\\frac{{1}}{{{n}^{{999}}}}' for n in range(2, 70)),
])
def test_numbers_beyond_the_bounds_are_refused_in_no_time(text):
  start = time.perf_counter()
  assert math_numbers.read(text) in (math_numbers.TOO_LARGE, None)
  assert time.perf_counter() - start < 0.1


def test_tiny_and_huge_numbers_stay_apart():
  read = math_numbers.read
  assert read('10^{-30}') != read('10^{-31}')
  assert read('\\frac{1}{2^{99}}') == 2 * read('2^{-100}') != read('2^{-98}')
  assert read('10^{300}') + 1 == read('10^{300}+1')
