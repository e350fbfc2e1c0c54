r"""Which answers math-verify may see: small, flat, without towers or huge counts.

Checked on the text, in time linear in it, before any symbol exists. A refused answer
is wrong; an answer equal to its gold as text or as a number never comes here, and
what the gold itself holds (long exponents, sums, fractions) an answer may hold too.
Whatever gets through is still bounded by the deadline and memory of `math_worker`.
"""

import re

from lpo_jax.tasks import math_numbers

MAX_SYMBOLIC = 300  # of an answer that math-verify sees
MAX_NESTING, MAX_PARENTHESES = 10, 5
MAX_EXPONENT, MAX_GROUP_EXPONENT = 1000, 16

_UNBOUND = re.compile(
  r'\\(?:sum|prod|coprod|i{0,3}int|oint|lim|limsup|liminf)(?![a-z])')
_WORDS = re.compile(r'\\(?:text|mbox|text[bir][fmt]|math[bir][fmt])\s*\{[^{}]*\}')
_WILD = re.compile(r'[0-9]{100}|[a-zA-Z]{40}|(?:- ?){4}|\}\s*\^\s*\{?[0-9]{3}'
                   r'|\\end\{\w+\}\s*\^')
_COUNTING = re.compile(r'\\(?:Gamma|[dt]?binom|choose)(?![a-zA-Z])')
_MOST = {  # signs -> how many of them an answer may hold more than its gold
  ('\\frac', '\\sqrt', '/'): 20, ('|',): 10, ('=', '\\le', '\\ge', '<', '>'): 4,
  ('\\sin', '\\cos', '\\tan', '\\log', '\\ln', '\\exp', '\\arc'): 8, (',', ';'): 30,
  ('&',): 25, ('\\lfloor', '\\lceil', '\\gcd', '\\mod', '\\pmod', '\\bmod'): 2,
}


def is_tame(answer: str, gold: str) -> bool:
  """Return whether math-verify may see the answer: small, flat, no tower.

  What the gold itself has, an answer may have as well.
  """
  if len(answer) > max(MAX_SYMBOLIC, 2 * len(gold)) or _WILD.search(answer):
    return False
  if _UNBOUND.search(answer) and not _UNBOUND.search(gold):
    return False
  if _COUNTING.search(answer) and re.search(r'[0-9]{4}|\^', answer):
    return False
  if math_numbers.read(gold) is not None and _has_variable(answer):
    return False
  for signs, most in _MOST.items():
    if sum(map(answer.count, signs)) > most + sum(map(gold.count, signs)):
      return False
  if _depth(answer, '({[') > MAX_NESTING or _depth(answer, '(') > MAX_PARENTHESES:
    return False
  most = max([MAX_GROUP_EXPONENT, *(int(n) for n in re.findall('[0-9]{1,4}', gold))])
  return all(_is_small_power(answer, match.start(), most) for match in
             re.finditer(r'\^', answer)) and all(
    _is_small_factorial(answer[:match.start()]) for match in re.finditer('!', answer))


def _has_variable(text: str) -> bool:
  """Return whether a letter stands alone that is no constant and is not assigned."""
  bare = re.sub(r'\\[a-zA-Z]+', ' ', _WORDS.sub(' ', text))
  return '=' not in bare and '\\in' not in text and bool(
    re.search('[a-df-hj-zA-DF-HJ-Z]', bare))


def _depth(text: str, opening: str) -> int:
  depth, deepest = 0, 0
  closing = {'(': ')', '({[': ')}]'}[opening]
  for character in text:
    depth += (character in opening) - (character in closing)
    deepest = max(deepest, depth)
  return deepest


def _is_small_power(text: str, caret: int, most: int) -> bool:
  """Return whether the exponent after `caret` is neither a large number nor a tower.

  `most` bounds it where a whole group is raised, which may be multiplied out.
  """
  start = caret + 1
  while text[start:start + 1] == ' ':
    start += 1
  if text[start:start + 1] == '{':
    end = closing(text, start, len(text))
    if end is None:
      return False
    exponent, rest = text[start + 1:end], text[end + 1:]
  else:
    match = re.match(r'-?[0-9]+|\\?[a-zA-Z]+|.?', text[start:], re.DOTALL)
    exponent, rest = match[0], text[start + match.end():]
  if rest.lstrip().startswith('^') or exponent.count('^') > 1:
    return False
  if not text[:caret].rstrip().endswith((')', ']', '}')):
    most = max(most, MAX_EXPONENT)
  value = math_numbers.read(exponent)
  numbers = re.findall('[0-9]+', exponent)
  return value != math_numbers.TOO_LARGE and all(
    abs(number) <= most for number in [value or 0, *map(int, numbers)])


def _is_small_factorial(before: str) -> bool:
  """Return whether `before`, which a ! follows, ends on nothing large."""
  match = re.search(r'([0-9]+)\s*$', before)
  if match:
    return int(match[1]) <= MAX_EXPONENT
  return not before.rstrip().endswith(('!', ')', '}', ']')) or not re.search(
    r'[0-9]{3}|\^|!', before)


def closing(text: str, start: int, stop: int) -> int | None:
  """Return where the brace at `start` is closed; an escaped brace is no brace."""
  depth, position = 0, start
  while position < min(stop, len(text)):
    character = text[position]
    if character == '\\':
      position += 1
    elif character == '{':
      depth += 1
    elif character == '}':
      depth -= 1
      if depth == 0:
        return position
    position += 1
  return None
