"""Flags only: read a configuration, hand it to a run.

python -m lpo_jax.main --config=experiments/countdown.py --workdir=DIR
    [--config.FIELD=VALUE ...] [--mode=train|eval] [--override_workdir]
"""

import sys

from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'Experiment file, FILE.py or FILE.py:VARIANT.', lock_config=True)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder that the run leaves behind.')
_MODE = flags.DEFINE_enum('mode', 'train', ['train', 'eval'],
                          'train (resumes), or evaluate the newest policy.')
_OVERRIDE = flags.DEFINE_bool('override_workdir', False,
                              'Go on in a workdir that has another configuration.')


def main(argv) -> int:
  """Run; return the exit status."""
  if len(argv) > 1:
    return _refuse(f'unexpected argument {argv[1]!r}: options start with --')
  logging.set_verbosity(logging.WARNING)  # Orbax narrates every save at INFO
  from lpo_jax import train  # after the flags, so that --help is quick

  try:
    run = train.Run(_CONFIG.value, _WORKDIR.value, _OVERRIDE.value)
  except ValueError as error:
    return _refuse(error)
  if _MODE.value == 'eval':
    run.evaluate_only()
  else:
    run.train()
  return 0


def parse_flags(argv: list[str]) -> list[str]:
  """Parse absl flags; `--config.FIELD=None` empties an optional field.

  A field that does not exist ends the program with the nearest name.
  """
  emptied = [arg for arg in argv if arg.startswith('--config.') and
             arg.endswith('=None')]
  try:
    rest = app.parse_flags_with_usage([arg for arg in argv if arg not in emptied])
    for arg in emptied:
      _empty(_CONFIG.value, arg[len('--config.'):-len('=None')])
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    sys.exit(_refuse(f'configuration: {" ".join(str(error).split())}'))
  flags.mark_flags_as_required(['config', 'workdir'])
  return rest


def _empty(config, field: str) -> None:
  *path, name = field.split('.')
  for part in path:
    config = getattr(config, part)
  getattr(config, name)  # or an error that names the nearest field
  setattr(config, name, None)


def _refuse(error) -> int:
  print(f'error: {error}', file=sys.stderr)
  return 2


if __name__ == '__main__':
  app.run(main, flags_parser=parse_flags)
