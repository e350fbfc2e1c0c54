r"""Rational numbers written in LaTeX, read exactly.

`read('1\frac{1}{2}')` is Fraction(3, 2); so are '1.5', '3/2' and '\frac{15}{10}'.
Integers, decimals (also 0.\overline{3}), thousands separators, mixed numbers,
+ - * / ^ !, roots of perfect powers, binomials and 'a \times 10^{-b}' are read by
precedence, with bounds on length, depth and bits checked before any value is computed,
so no text is slow. What is not such a number is None; a number beyond the bounds is
TOO_LARGE, and equals no other.
"""

import math
import re
from fractions import Fraction

MAX_CHARACTERS = 1000
MAX_DEPTH = 40
MAX_BITS = 65536
MAX_FACTORIAL = 3000
TOO_LARGE = 'too large'

_TOKEN = re.compile(
  r'(?P<number>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)'
  r'|(?P<command>\\[a-zA-Z]+)|(?P<symbol>[-+*/^!(){}\[\]])|(?P<space>\s+)')
_TIMES = {'*', '\\cdot', '\\times', '\\ast'}
_OVER = {'/', '\\div'}
_FRACTIONS = {'\\frac', '\\dfrac', '\\tfrac', '\\cfrac'}
_BINOMIALS = {'\\binom', '\\dbinom', '\\tbinom'}
_CLOSING = {'(': ')', '[': ']', '{': '}'}
_SCIENTIFIC = re.compile(r'([-+]?[0-9]+(?:\.[0-9]+)?)[eE]([-+]?[0-9]{1,5})')


class _NotANumber(Exception):
  """The text is no rational number of this grammar."""


class _TooLarge(Exception):
  """The number lies beyond the bounds."""


def read(text: str) -> Fraction | str | None:
  """Return the exact value of `text`, TOO_LARGE, or None where it is no number."""
  if len(text) > MAX_CHARACTERS or not text.isascii():
    return None
  try:
    if match := _SCIENTIFIC.fullmatch(text.strip()):
      scale = _power(Fraction(10), Fraction(int(match[2])))
      return _multiply(Fraction(match[1]), scale)
    return _Reader(_tokenize(text)).whole()
  except _NotANumber:
    return None
  except _TooLarge:
    return TOO_LARGE


def _tokenize(text: str) -> list[str]:
  tokens, position = [], 0
  while position < len(text):
    match = _TOKEN.match(text, position)
    if not match:
      raise _NotANumber
    if match.lastgroup != 'space':
      tokens.append(match[0])
    position = match.end()
  return tokens


class _Reader:
  """Recursive descent over tokens; `depth` bounds the recursion."""

  def __init__(self, tokens: list[str]):
    self.tokens, self.position, self.depth = tokens, 0, 0

  def whole(self) -> Fraction:
    value = self.sum()
    if self.position < len(self.tokens):
      raise _NotANumber
    return value

  def peek(self) -> str:
    return self.tokens[self.position] if self.position < len(self.tokens) else ''

  def take(self, wanted: str | None = None) -> str:
    token = self.peek()
    if not token or (wanted and token != wanted):
      raise _NotANumber
    self.position += 1
    return token

  def sum(self) -> Fraction:
    self.depth += 1
    if self.depth > MAX_DEPTH:
      raise _TooLarge
    negative = False
    while self.peek() in ('-', '+'):
      negative ^= self.take() == '-'
    total = self.product()
    total = -total if negative else total
    while self.peek() in ('-', '+'):
      sign = -1 if self.take() == '-' else 1
      total = _add(total, sign * self.product())
    self.depth -= 1
    return total

  def product(self) -> Fraction:
    value, previous = self.power(), self.tokens[self.position - 1]
    while True:
      token = self.peek()
      if token in _TIMES:
        self.take()
        value = _multiply(value, self.signed())
      elif token in _OVER:
        self.take()
        value = _divide(value, self.signed())
      elif token == '(' or (token == '{' and previous == '}'):
        value = _multiply(value, self.power())
      else:
        return value
      previous = self.tokens[self.position - 1]

  def signed(self) -> Fraction:
    if self.peek() == '-':
      self.take()
      return -self.power()
    return self.power()

  def power(self) -> Fraction:
    base = self.atom()
    if self.peek() == '!':
      self.take()
      base = _factorial(base)
    if self.peek() != '^':
      return base
    self.take()
    sign = 1
    if self.peek() == '-':
      sign = -1
      self.take()
    if self.peek() in ('{', '('):
      return _power(base, sign * self.atom())
    if not self.peek().isdigit():
      raise _NotANumber
    return _power(base, Fraction(sign * int(self.take())))

  def argument(self) -> Fraction:
    r"""Read what follows \frac or \sqrt: a brace group, or one digit."""
    token = self.peek()
    if token == '{':
      return self.atom()
    if not token.isdigit():
      raise _NotANumber
    if len(token) > 1:  # \frac12 is one half
      self.tokens[self.position:self.position + 1] = [token[0], token[1:]]
    return Fraction(int(self.take()))

  def atom(self) -> Fraction:
    token = self.take()
    if token[0].isdigit() or token[0] == '.':
      value = Fraction(token.replace(',', '').rstrip('.'))
      if '.' in token and self.peek() == '\\overline':
        return value + self.repeating(len(token.partition('.')[2]))
      if token.isdigit() and self.peek() in _FRACTIONS:  # 1\frac{1}{2} is 3/2
        value = _add(value, self.atom())
      return value
    if token in _CLOSING:
      value = self.sum()
      self.take(_CLOSING[token])
      return value
    self.depth += 1
    if self.depth > MAX_DEPTH:
      raise _TooLarge
    if token in _FRACTIONS:
      value = _divide(self.argument(), self.argument())
    elif token in _BINOMIALS:
      value = _binomial(self.argument(), self.argument())
    elif token == '\\sqrt':
      value = self.root()
    else:
      raise _NotANumber
    self.depth -= 1
    return value

  def repeating(self, after: int) -> Fraction:
    r"""Read \overline{3} of 0.1\overline{3}: digits that begin after `after`."""
    self.take()
    self.take('{')
    digits = self.take()
    self.take('}')
    if not digits.isdigit():
      raise _NotANumber
    return Fraction(int(digits), (10 ** len(digits) - 1) * 10 ** after)

  def root(self) -> Fraction:
    degree = Fraction(2)
    if self.peek() == '[':
      degree = self.atom()
    value = self.argument()
    if degree not in (2, 3):
      raise _NotANumber
    found = [_exact_root(part, int(degree)) for part in value.as_integer_ratio()]
    if None in found:
      raise _NotANumber
    return Fraction(*found)


def _bits(value: Fraction) -> int:
  return value.numerator.bit_length() + value.denominator.bit_length()


def _bounded(bits: float) -> None:
  if bits > MAX_BITS:
    raise _TooLarge


def _add(left: Fraction, right: Fraction) -> Fraction:
  _bounded(_bits(left) + _bits(right))
  return left + right


def _multiply(left: Fraction, right: Fraction) -> Fraction:
  _bounded(_bits(left) + _bits(right))
  return left * right


def _divide(left: Fraction, right: Fraction) -> Fraction:
  if right == 0:
    raise _NotANumber
  return _multiply(left, 1 / right)


def _power(base: Fraction, exponent: Fraction) -> Fraction:
  if exponent.denominator != 1 or (base == 0 and exponent <= 0):
    raise _NotANumber
  if abs(base) == 1 or base == 0:
    return base if exponent % 2 else abs(base)
  _bounded(_bits(base) * abs(exponent))
  return base ** int(exponent)


def _factorial(value: Fraction) -> Fraction:
  if value.denominator != 1 or value < 0:
    raise _NotANumber
  _bounded(MAX_BITS + 1 if value > MAX_FACTORIAL else 0)
  return Fraction(math.factorial(int(value)))


def _binomial(total: Fraction, chosen: Fraction) -> Fraction:
  if total.denominator != 1 or chosen.denominator != 1 or min(total, chosen) < 0:
    raise _NotANumber
  _bounded(MAX_BITS + 1 if total > MAX_FACTORIAL else 0)
  return Fraction(math.comb(int(total), int(chosen)))


def _exact_root(value: int, degree: int) -> int | None:
  """Return the integer root, None where there is none or it is not real and exact."""
  if value < 0:
    return None
  if degree == 2:
    root = math.isqrt(value)
    return root if root * root == value else None
  low, high = 0, 1 << (value.bit_length() // 3 + 1)
  while low < high:
    middle = (low + high) // 2
    if middle ** 3 < value:
      low = middle + 1
    else:
      high = middle
  return low if low ** 3 == value else None
