"""Expressions against Python's own grammar and exact fractions."""

import ast
import random
from fractions import Fraction

from lpo_jax.tasks import countdown, expression


def _oracle(text):
  """Return (value or None, numbers) by Python's own grammar."""
  numbers = []

  def value(node):
    if isinstance(node, ast.Constant):
      numbers.append(node.value)
      return Fraction(node.value)
    if isinstance(node, ast.UnaryOp):
      assert isinstance(node.op, ast.USub)
      operand = value(node.operand)
      return None if operand is None else -operand
    left, right = value(node.left), value(node.right)
    if left is None or right is None:
      return None
    if isinstance(node.op, ast.Div):
      return left / right if right else None
    operation = {ast.Add: left.__add__, ast.Sub: left.__sub__, ast.Mult: left.__mul__}
    return operation[type(node.op)](right)

  return value(ast.parse(text.strip(), mode='eval').body), numbers


def _random_expression(rng, numbers):
  if len(numbers) == 1:
    text = str(numbers[0])
  else:
    cut = rng.randrange(1, len(numbers))
    left = _random_expression(rng, numbers[:cut])
    right = _random_expression(rng, numbers[cut:])
    text = f'{left} {rng.choice("+-*/")} {right}'
  wrap = rng.random()
  return f'({text})' if wrap < 0.4 else f'(-{text})' if wrap < 0.45 else text


def test_random_expressions_agree_with_pythons_grammar_and_fractions():
  rng = random.Random(0)
  rewarded = 0
  for _ in range(3000):
    numbers = [rng.randrange(0, 13) for _ in range(rng.randrange(1, 7))]
    text = _random_expression(rng, numbers)
    value, used = _oracle(text)
    assert sorted(used) == sorted(numbers)
    rng.shuffle(numbers)
    response = f'<answer>{text}</answer>'
    postfix = expression.parse(text)
    assert expression.evaluate(postfix) == value, text
    wrong = Fraction(1, 2) if value is None else value + 1
    assert countdown.verify(numbers, wrong, response, 0.1) == 0.1
    if value is not None:
      rewarded += 1
      assert countdown.verify(numbers, value, response, 0.1) == 1.0
      assert countdown.verify(numbers + [1], value, response, 0.1) == 0.1
  assert rewarded > 2000


def test_accepted_texts_are_those_python_accepts_less_the_named_exceptions():
  rng = random.Random(1)
  accepted = 0
  for _ in range(20_000):
    text = ''.join(rng.choice('0123+-*/() ') for _ in range(rng.randrange(1, 9)))
    if expression.parse(text) is None:
      continue
    accepted += 1
    value, used = _oracle(text)
    assert expression.evaluate(expression.parse(text)) == value, text
    assert expression.integers(expression.parse(text)) == used, text
  assert accepted > 500


def test_printed_forms_keep_the_value():
  rng = random.Random(2)
  for _ in range(2000):
    numbers = [rng.randrange(1, 13) for _ in range(rng.randrange(2, 6))]
    postfix = expression.parse(_random_expression(rng, numbers).replace('(-', '('))
    value = expression.evaluate(postfix)
    if value is None:
      continue
    printed = expression.infix(postfix)
    assert _oracle(printed)[0] == value
    assert _oracle(expression.canonical(postfix))[0] == value
    assert expression.steps(postfix)[-1][3] == value
    for i, character in enumerate(printed):  # no pair of parentheses is spare
      if character == '(':
        end = _closing(printed, i)
        without = printed[:i] + ' ' + printed[i + 1:end] + ' ' + printed[end + 1:]
        assert expression.parse(without) != postfix


def _closing(text, start):
  depth = 0
  for i in range(start, len(text)):
    depth += {'(': 1, ')': -1}.get(text[i], 0)
    if depth == 0:
      return i
  raise AssertionError(text)
