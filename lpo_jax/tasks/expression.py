"""Arithmetic expressions over + - * / and parentheses: parse, evaluate, print.

Nothing is ever handed to `eval`. A text becomes a postfix program, a tuple of
non-negative integers and operators, e.g. '(14 + 4) * 2' -> (14, 4, '+', 2, '*'),
by precedence climbing on an explicit stack, so nesting costs no recursion. Size is
bounded before parsing. A minus sign may open an expression or a parenthesis, as in
'-3 + 5', where it is written NEGATE; stacked signs and a unary plus are not accepted.
"""

import re
from fractions import Fraction

MAX_CHARACTERS = 4096
MAX_TOKENS = 1024
MAX_DIGITS = 12
NEGATE = 'negate'
_PRECEDENCE = {'+': 1, '-': 1, '*': 2, '/': 2, NEGATE: 3}
_ALPHABET = re.compile(r'[0-9+\-*/() \t\r\n]*')
_TOKEN = re.compile(r'[0-9]+|[-+*/()]')

Postfix = tuple[int | str, ...]


def parse(text: str) -> Postfix | None:
  """Return the postfix program of `text`; None where it is not well formed.

  Only ASCII digits, + - * / ( ), space, tab and line ends are accepted; integers
  have no leading zeros and at most MAX_DIGITS digits.
  """
  tokens = _tokenize(text)
  if tokens is None:
    return None
  output, pending = [], []
  wants_operand, previous = True, '('
  for token in tokens:
    if wants_operand:
      if token.isdigit():
        output.append(int(token))
        wants_operand = False
      elif token == '(':
        pending.append(token)
      elif token == '-' and previous == '(':
        pending.append(NEGATE)
      else:
        return None
    elif token in _PRECEDENCE:
      while pending and _PRECEDENCE.get(pending[-1], 0) >= _PRECEDENCE[token]:
        output.append(pending.pop())
      pending.append(token)
      wants_operand = True
    elif token == ')':
      while pending and pending[-1] != '(':
        output.append(pending.pop())
      if not pending:
        return None
      pending.pop()
    else:
      return None
    previous = token
  output.extend(reversed(pending))
  return None if wants_operand or '(' in pending else tuple(output)


def _tokenize(text: str) -> list[str] | None:
  """Return the tokens of `text`; None on a foreign character or beyond the bounds."""
  core = text.strip()  # of any space: the alphabet then refuses the foreign ones
  if len(core) > MAX_CHARACTERS or not _ALPHABET.fullmatch(text):
    return None
  tokens = _TOKEN.findall(core)
  if len(tokens) > MAX_TOKENS:
    return None
  for token in tokens:
    if len(token) > 1 and (token[0] == '0' or len(token) > MAX_DIGITS):
      return None
  return tokens


def integers(postfix: Postfix) -> list[int]:
  """Return the numbers written in the expression, from left to right."""
  return [item for item in postfix if isinstance(item, int)]


def apply(operator: str, left: int | Fraction, right: int | Fraction):
  """Return `left operator right` exactly.

  Raises:
    ZeroDivisionError: division by zero.
    ValueError: an unknown operator.
  """
  if operator == '+':
    return left + right
  if operator == '-':
    return left - right
  if operator == '*':
    return left * right
  if operator == '/':
    return Fraction(left) / right
  raise ValueError(f'unknown operator {operator!r}: known: + - * /')


def evaluate(postfix: Postfix) -> int | Fraction | None:
  """Return the exact value; None where it divides by zero."""
  stack = []
  for item in postfix:
    if isinstance(item, int):
      stack.append(item)
    elif item == NEGATE:
      stack.append(-stack.pop())
    else:
      right, left = stack.pop(), stack.pop()
      if item == '/' and right == 0:
        return None
      stack.append(apply(item, left, right))
  return stack[0]


def steps(postfix: Postfix) -> list[tuple]:
  """Return the (left, operator, right, value) rows in the order they are computed.

  Raises:
    ValueError: the expression holds a sign, which is no step between two numbers.
    ZeroDivisionError: it divides by zero.
  """
  stack, rows = [], []
  for item in postfix:
    if isinstance(item, int):
      stack.append(item)
      continue
    if item == NEGATE:
      raise ValueError(f'a sign has no step: {postfix}')
    right, left = stack.pop(), stack.pop()
    value = apply(item, left, right)
    rows.append((left, item, right, value))
    stack.append(value)
  return rows


def infix(postfix: Postfix) -> str:
  """Return the expression, space separated, with no parenthesis it can do without.

  'a + (b - c)' loses its parentheses too: the value is the same.

  Raises:
    ValueError: the expression holds a sign.
  """
  stack = []
  for item in postfix:
    if isinstance(item, int):
      stack.append((str(item), 3))
      continue
    if item == NEGATE:
      raise ValueError(f'a sign has no infix form here: {postfix}')
    (right, right_level), (left, left_level) = stack.pop(), stack.pop()
    level = _PRECEDENCE[item]
    if left_level < level:
      left = f'( {left} )'
    if right_level < level or (right_level == level and item in '-/'):
      right = f'( {right} )'
    stack.append((f'{left} {item} {right}', level))
  return stack[0][0]


def canonical(postfix: Postfix) -> str:
  """Return one text for expressions that differ in spaces or operand order only."""
  stack = []
  for item in postfix:
    if isinstance(item, int):
      stack.append(str(item))
    elif item == NEGATE:
      stack.append(f'(-{stack.pop()})')
    else:
      right, left = stack.pop(), stack.pop()
      if item in '+*':
        left, right = sorted((left, right))
      stack.append(f'({left}{item}{right})')
  return stack[0]
