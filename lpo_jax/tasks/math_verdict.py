r"""The math verdict: the last \boxed{} of a response against the gold answer.

Cheap and exact first: equal text, exact rationals, lists of them. Only what is left,
and small and tame enough, goes to math-verify, in a process that is killed at its
deadline (`math_worker`). A number beyond the bounds of `math_numbers` equals nothing
but its own text; a sum, integral, product or limit counts only if the gold is one,
since it may merely restate the question. Total over all strings.
"""

import logging
import re
from fractions import Fraction

from lpo_jax.tasks import math_guard, math_numbers, math_worker

MAX_ANSWER = 2000  # characters of a box that is looked at
MAX_BOX = 20_000  # characters within which a box must close
MAX_BOXES = 20  # from the end, that are looked at for one that is closed

_BOX = re.compile(r'\\(?:boxed|fbox)(?![a-zA-Z])')
_SPACES = re.compile(
  r'(?<!\\)\\[,;: ]|\\(?:quad|qquad|displaystyle|textstyle|limits)(?![a-zA-Z])|~')
_DELIMITERS = re.compile(r'\\(?:left|right|[bB]ig{1,2}[lrm]?)(?![a-zA-Z])\.?')
_FRACTION = re.compile(r'\\[dtc]frac(?![a-zA-Z])')
_DEGREE = re.compile(r'\^\s*(?:\\circ|\{\s*\\circ\s*\})|\\degree(?![a-zA-Z])|°')
_WORDS = re.compile(r'\\(?:text|mbox|textbf|textit|textrm|mathrm|mathbf|mathit|'
                    r'operatorname|hbox)\s*\{([^{}]*)\}')
_GSM8K = re.compile(r'\S\s*\n#### ?(-?[0-9][0-9,]*(?:\.[0-9]+)?)\s*')
_THOUSANDS = re.compile(r'(?<=[0-9])(?:\{,\}|,\s*\\!\s*|\\,)(?=[0-9]{3}(?![0-9]))')
_UNIT = re.compile(r'(?:\s*\\(?:text|mbox|textrm|mathrm|hbox)\s*\{([^{}]*)\}'
                   r'|(?<=[0-9}.)]) ([A-Za-z]+(?: [A-Za-z]+){0,3}))'
                   r'(?:\s*\^\s*\{?\s*[23]\s*\}?)?$')
_PERCENT = re.compile(r'\\?%|\b(?:percent|percentage|pct)\b')
_ASSIGNED = re.compile(r'\s*\\?[a-zA-Z]+(?:_(?:\{\w+\}|\w))?(?:\([a-z]\))?\s*=(?!=)\s*')
_CHOICE = re.compile(r'\(?([A-Za-z])[).]?')
_SIGNS = str.maketrans({'−': '-', '–': '-', '×': '\\times ', '·': '\\cdot ', '⋅':
                        '\\cdot ', '÷': '\\div ', 'π': '\\pi ', '∞': '\\infty ',
                        '√': '\\sqrt', '≤': '\\le ', '≥': '\\ge ', '∪': '\\cup ',
                        '\u00a0': ' ', '\u202f': ' ', '，': ','})
_SCALES = {'dozen': 12, 'hundred': 100, 'thousand': 10**3, 'million': 10**6,
           'billion': 10**9, 'trillion': 10**12}
_NO_UNITS = {'half', 'and', 'or', 'squared', 'cubed', 'sqrt', 'log', 'sin', 'cos',
             'tan', 'mod', 'pi'}
_UNIT_NAMES = {name: names[0] for names in (line.split() for line in (
  'mm millimeter millimetre', 'cm centimeter centimetre', 'm meter metre',
  'km kilometer kilometre', 'in inch inche', 'ft feet foot', 'yd yard', 'mile mi',
  's second sec', 'min minute', 'h hour hr', 'day', 'week', 'month', 'year',
  'dollar usd', 'cent', 'degree deg', 'radian rad', 'g gram', 'kg kilogram', 'lb pound',
)) for name in names}

_comparer = math_worker.Comparer()


def verify(gold, response: str) -> float:
  r"""Return 1.0 if the last closed \boxed{} of `response` equals `gold`, else 0.0.

  Args:
    gold: the reference answer, LaTeX or plain; an int or float is read as its text.
    response: any text.

  Raises:
    ImportError: math-verify is needed and not installed.
  """
  return judge(gold, response)[0]


def judge(gold, response: str) -> tuple[float, str]:
  """Return the verdict and '', `math_worker.TIMEOUT` or `math_worker.ERROR`."""
  found = boxed(response)
  return (0.0, '') if found is None else _judge(str(gold), found)


def key(response: str) -> str | None:
  """Return the key under which equal answers vote together; None without an answer.

  Numbers go by their exact value, units aside; anything else by its text without
  decoration, so that answers whose equality math-verify alone can tell vote apart.
  """
  found = boxed(response)
  answer = '' if found is None else _tidy(found[:MAX_ANSWER])
  if not answer:
    return None
  value, percent, _ = _number(answer)
  if isinstance(value, Fraction):
    return f'{value.numerator:x}/{value.denominator:x}{"%" * percent}'
  return _text(answer)


def boxed(response: str) -> str | None:
  r"""Return the content of the last \boxed{...} that is closed; None without one.

  '\boxed 5' is read as TeX does, as one character. GSM8K's own solutions have no box
  and end on a line '#### 18': there, and only without any box, that line counts.
  """
  starts = [match.end() for match in _BOX.finditer(response)]
  if not starts:
    tail = response[-200:]
    match = _GSM8K.fullmatch(tail, max(tail.rfind('\n####') - 1, 0))
    return match and match[1]
  for start in starts[:-MAX_BOXES - 1:-1]:
    while response[start:start + 1].isspace():
      start += 1
    if response[start:start + 1] == '{':
      end = math_guard.closing(response, start, start + MAX_BOX)
      if end is not None:
        return response[start + 1:end]
    elif response[start:start + 1] not in ('', '}', '$', '\\'):
      return response[start]
  return None


def _judge(gold: str, answer: str) -> tuple[float, str]:
  if len(answer) > MAX_ANSWER:
    return 0.0, ''
  gold, answer = _tidy(gold), _tidy(answer)
  if not answer or not gold:
    return 0.0, ''
  if _text(gold) == _text(answer):
    return 1.0, ''
  gold, answer = _unassigned(gold, answer)
  verdict = _by_number(gold, answer)
  if verdict is None:
    verdict = _by_list(gold, answer)
  if verdict is None:
    verdict = _by_words(gold, answer)
  if verdict is not None:
    return float(verdict), ''
  if not math_guard.is_tame(answer, gold):
    return 0.0, ''
  equal, note = _comparer.equal(gold, answer)
  if note:
    logging.getLogger(__name__).warning(
      'math verdict 0 by %s: gold %.80r, answer %.80r', note, gold, answer)
  return float(equal), note


def _tidy(text: str) -> str:
  """Return the text without decoration that carries no meaning."""
  text = text.translate(_SIGNS).strip()
  for opening, closing in (('$$', '$$'), ('$', '$'), ('\\(', '\\)'), ('\\[', '\\]')):
    if text.startswith(opening) and text.endswith(closing) and len(text) > 3:
      text = text[len(opening):-len(closing)]
  text = text.replace('\\$', '').replace('$', '').replace('**', '^')
  text = _SPACES.sub(' ', _THOUSANDS.sub(',', text).replace('\\!', ''))
  text = _FRACTION.sub(r'\\frac', _DELIMITERS.sub('', text))
  return re.sub(r'\s+', ' ', text).strip().rstrip('.,;:').strip()


def _text(text: str) -> str:
  """Return a key: equal keys are equal answers."""
  text = _DEGREE.sub('', _WORDS.sub(r'\1', text))
  text = re.sub(r'(?<![0-9])\s+|\s+(?![0-9])', '', text)
  text = re.sub(r'(\\frac|\\sqrt|[\^_])\{(\w)\}', r'\1\2', text)
  if match := _CHOICE.fullmatch(text):
    return match[1]
  return text.casefold() if len(text) > 1 and _is_word(text) else text


def _is_word(text: str) -> bool:
  return text.isalpha() and (len(text) > 3 or not text.isupper())


def _unassigned(gold: str, answer: str) -> tuple[str, str]:
  """Drop 'x =' where only one side has it, or both name the same."""
  names = [_ASSIGNED.match(side) for side in (gold, answer)]
  texts = [match and match[0].replace(' ', '') for match in names]
  if any(side.count('=') > 1 for side in (gold, answer)):
    return gold, answer
  if texts[0] != texts[1] and '=' in gold and '=' in answer:
    return gold, answer
  return tuple(side[match.end():] if match else side for side, match in
               zip((gold, answer), names, strict=True))


def _number(text: str) -> tuple[Fraction | str | None, bool, str]:
  """Return the value as `math_numbers.read` gives it, whether percent, and the unit."""
  text = _DEGREE.sub('', text)
  bare = _PERCENT.sub('', text)
  percent, unit, scale = bare != text, '', 1
  if match := _UNIT.search(bare):
    words = (match[1] or match[2] or '').strip().lower().rstrip('.').split()
    if words and words[0] in _SCALES:
      scale = _SCALES[words.pop(0)]
    elif match[2] and len(words[0]) < 4 and words[0] not in _UNIT_NAMES:
      return None, percent, unit
    if _NO_UNITS.intersection(words):
      return None, percent, unit
    unit, bare = ' '.join(words), bare[:match.start()]
  value = math_numbers.read(bare)
  return value * scale if isinstance(value, Fraction) else value, percent, unit


def _by_number(gold: str, answer: str) -> bool | None:
  """Compare exactly where both are numbers; None where one is not."""
  (value, percent, unit), (other, other_percent, other_unit) = map(
    _number, (gold, answer))
  if value is None or other is None:
    return None
  if math_numbers.TOO_LARGE in (value, other):
    return False
  names = [_UNIT_NAMES.get(name) or _UNIT_NAMES.get(name.removesuffix('s'))
           for name in (unit, other_unit)]
  if None not in names and names[0] != names[1]:
    return False
  if percent == other_percent or value == other:
    return value == other
  return value / 100 == other if percent else value == other / 100


def _by_list(gold: str, answer: str) -> bool | None:
  """Compare lists of numbers; order counts only within ( or [.

  None where an element is no number, or the brackets differ.
  """
  if ',' not in gold and ',' not in answer:
    return None
  brackets, values = [], []
  for text in (gold, answer):
    text = text.replace('\\{', '{').replace('\\}', '}')
    bracket = ''
    if text[0] in '([{' and text[-1] in ')]}':
      bracket, text = text[0] + text[-1], text[1:-1]
    parts = [math_numbers.read(_DEGREE.sub('', part)) for part in text.split(', ' if
             ', ' in text else ',')]
    if None in parts or math_numbers.TOO_LARGE in parts:
      return None
    brackets.append(bracket)
    values.append(parts if bracket and bracket != '{}' else sorted(parts))
  if len(values[0]) != len(values[1]):
    return False
  return values[0] == values[1] if brackets[0] == brackets[1] else None


def _by_words(gold: str, answer: str) -> bool | None:
  """Compare words with words; equal ones were found before."""
  if not _WORDS.search(gold):
    return None
  return False if all(re.fullmatch(r'[A-Za-z() ]+', _WORDS.sub(r'\1', side))
                      for side in (gold, answer)) else None
