"""math-verify with its gaps closed, called in this process on tame texts."""

import pytest

from lpo_jax.tasks import math_symbols


@pytest.mark.parametrize('gold,answer,equal', [
  ('\\frac{\\sqrt2}{2}', '\\frac{1}{\\sqrt2}', True),
  ('\\sqrt{3}', '1.732051', True),  # six decimals will do
  ('\\sqrt{3}', '1.7321', False),
  ('\\sqrt2 \\cdot 10^{-30}', '\\sqrt2 \\cdot 10^{-31}', False),  # rounds to 0 = 0
  ('(1,\\sqrt2 \\cdot 10^{-30})', '(1,\\sqrt2 \\cdot 10^{-31})', False),
  ('\\frac{\\pi}{10^{20}}', '\\frac{2\\pi}{10^{20}}', False),
  ('[0,\\infty)', '[0, \\infty)', True), ('[0,1]', '(0,1)', False),
  ('x^2+2x+1', '(x+1)^2', True), ('x', 'y', False), ('3+4i', '4i+3', True),
])
def test_verdicts(gold, answer, equal):
  assert math_symbols.equal(gold, answer) is equal


def test_what_cannot_be_parsed_equals_nothing_else():
  assert not math_symbols.equal('x', '\\frac')
  assert not math_symbols.equal('5', '')
