r"""Whether two LaTeX texts mean the same, by math-verify, with its gaps closed.

Runs in the child of `math_worker` only: nothing here is bounded in time. math-verify
rounds to decimals, so it calls 10^{-30} \sqrt{2} and 10^{-31} \sqrt{2} equal; where
both sides are plain values they must also agree relative to their size.
"""

import functools
import logging

import math_verify
import sympy
from math_verify import parser

DIGITS = 6  # decimals a rounded answer needs, e.g. 1.414214 for \sqrt{2}
_PRECISION = 60  # digits; those beyond 50 are rounding
_CONFIG = (parser.LatexExtractionConfig(boxed_match_priority=0),)

logging.getLogger('math_verify').setLevel(logging.ERROR)


def equal(gold: str, answer: str) -> bool:
  """Return whether math-verify says yes and no pair of values says no."""
  golds, answers = _parse(gold), _parse(answer)
  if not golds or not answers:
    return False
  if not math_verify.verify(
      list(golds), list(answers), float_rounding=DIGITS, timeout_seconds=None):
    return False
  return bool(_close(golds[0], answers[0]))


@functools.lru_cache(maxsize=4096)
def _parse(text: str) -> tuple:
  return tuple(math_verify.parse(
    f'\\boxed{{{text}}}', extraction_config=_CONFIG, parsing_timeout=None))


def _close(gold, answer) -> bool:
  """Return False where both are values, or tuples of them, that differ in size."""
  if isinstance(gold, sympy.Tuple) and isinstance(answer, sympy.Tuple):
    return len(gold) == len(answer) and all(map(_close, gold, answer))
  values = [_value(side) for side in (gold, answer)]
  if None in values:
    return True
  difference, size = abs(values[0] - values[1]), max(map(abs, values))
  if difference <= size * sympy.Float(10) ** -50:
    return True
  rounded = any(side.has(sympy.Float) for side in (gold, answer))
  percent = any(side.has(sympy.UnevaluatedExpr) for side in (gold, answer))
  return percent or (rounded and difference <= size * 10.0 ** -DIGITS)


def _value(side):
  if not isinstance(side, sympy.Expr) or side.free_symbols:
    return None
  value = side.doit().evalf(_PRECISION)
  return value if value.is_number and value.is_finite else None
