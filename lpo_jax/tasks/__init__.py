"""Tasks by name: problems to train on and the verifier that judges their answers.

`get('countdown', max_number=20)` builds one. Every module here is imported only when
it is asked for, so a run needs only its own task's libraries, and a grading process
starts without jax; `tasks.countdown` or `tasks.math` reaches the module itself.
"""

import difflib
import importlib
import inspect
import typing

if typing.TYPE_CHECKING:
  from lpo_jax.tasks import base

_TASKS = {  # name (also the module) -> class
  'code': 'Code',
  'countdown': 'Countdown',
  'math': 'Math',
}
_MODULES = (*_TASKS, 'base', 'grading', 'sandbox')


def __getattr__(name: str):
  """Import a module of this package on first use (PEP 562)."""
  if name in _MODULES:
    return importlib.import_module(f'lpo_jax.tasks.{name}')
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def get(name: str, **options) -> 'base.Task':
  """Build the task called `name`.

  Args:
    name: a key of the table above.
    **options: keyword arguments of the task's class.

  Raises:
    ValueError: unknown name or option; the message names the nearest one.
  """
  task_class = _class(name)
  known = inspect.signature(task_class).parameters
  for option in options:
    if option not in known:
      raise ValueError(
        f'task {name!r} has no option {option!r}: {_suggest(option, known)}')
  return task_class(**options)


def takes(name: str, option: str) -> bool:
  """Return whether the task called `name` has `option`; see `get` for errors."""
  return option in inspect.signature(_class(name)).parameters


def _class(name: str):
  if name not in _TASKS:
    raise ValueError(f'unknown task {name!r}: {_suggest(name, _TASKS)}')
  return getattr(importlib.import_module(f'lpo_jax.tasks.{name}'), _TASKS[name])


def _suggest(word: str, known) -> str:
  near = difflib.get_close_matches(word, known, n=1)
  hint = f'did you mean {near[0]!r}? ' if near else ''
  return f'{hint}known: {", ".join(sorted(known))}'
