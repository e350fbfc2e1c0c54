"""Flags only: read a configuration, hand it to a run.

python -m lpo_jax.main --config=experiments/countdown.py --workdir=DIR
    [--config.FIELD=VALUE ...] [--override_workdir]
    [--mode=train|eval|export] [--export_dir=DIR]
python -m lpo_jax.main --config=FILE.py --mode=compile [--topology=v5p:2x2x4]
On many hosts, the same command on each, with --distributed where JAX finds the others
(TPU, Slurm, MPI), or --coordinator=HOST:PORT --num_processes=N --process_id=I.
"""

import sys

from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'Experiment file, FILE.py or FILE.py:VARIANT.', lock_config=True)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder that the run leaves behind.')
_MODE = flags.DEFINE_enum(
  'mode', 'train', ['train', 'eval', 'export', 'compile'],
  'train (resumes), evaluate the newest policy, export it to --export_dir, or compile '
  'ahead of time: memory and time of a step, nothing run.')
_EXPORT_DIR = flags.DEFINE_string('export_dir', None,
                                  'New folder, in Hugging Face form, of --mode=export.')
_TOPOLOGY = flags.DEFINE_string('topology', '', 'TPU slice to compile for, v5p:2x2x4; '
                                'without it, the devices that are here.')
_MEMORY = flags.DEFINE_float('memory_gib', 0.0, 'Of a device, to compile against; 0: '
                             "the chip's own.")
_OVERRIDE = flags.DEFINE_bool('override_workdir', False,
                              'Go on in a workdir that has another configuration.')

_DISTRIBUTED = flags.DEFINE_bool('distributed', False, 'One of many processes; JAX '
                                 'finds the others (TPU pods, Slurm, Open MPI).')
_COORDINATOR = flags.DEFINE_string('coordinator', None, 'HOST:PORT of process 0.')
_PROCESSES = flags.DEFINE_integer('num_processes', None, 'How many there are.')
_PROCESS = flags.DEFINE_integer('process_id', None, 'Which one this is, from 0.')
_HEARTBEAT = flags.DEFINE_integer('heartbeat_s', 100, 'Seconds after which a silent '
                                  'process counts as dead and all stop.')


def main(argv) -> int:
  """Run; return the exit status."""
  if len(argv) > 1:
    return _refuse(f'unexpected argument {argv[1]!r}: options start with --')
  logging.set_verbosity(logging.WARNING)  # Orbax narrates every save at INFO
  # Imported after the flags, so that --help is quick.
  if _MODE.value == 'compile':
    return _compile()
  from lpo_jax import allocator, cores, hosts

  allocator.keep_freed_memory()
  asked = (_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
  try:
    if _DISTRIBUTED.value or asked != (None, None, None):
      hosts.join(*asked, heartbeat_s=_HEARTBEAT.value)
    else:
      cores.offer()
  except ValueError as error:
    return _refuse(error)
  with hosts.all_or_none():
    return _run()


def _run() -> int:
  exporting = _MODE.value == 'export'
  if exporting != bool(_EXPORT_DIR.value):
    return _refuse(f'--mode={_MODE.value} with --export_dir={_EXPORT_DIR.value}: '
                   '--mode=export and --export_dir=DIR need each other')
  try:
    from lpo_jax import compilation, train

    compilation.keep(_WORKDIR.value)
    run = train.Run(_CONFIG.value, _WORKDIR.value, _OVERRIDE.value)
    if exporting:
      run.export(_EXPORT_DIR.value)
      return 0
  except (ValueError, FileNotFoundError) as error:
    return _refuse(error)
  if _MODE.value == 'train':
    run.train()
    return 0
  try:
    run.evaluate_only()
  except FileNotFoundError as error:
    return _refuse(error)
  return 0


def _compile() -> int:
  from lpo_jax import ahead

  try:
    return ahead.run(_CONFIG.value, _TOPOLOGY.value, _WORKDIR.value or '.',
                     _MEMORY.value)
  except (ValueError, FileNotFoundError) as error:
    return _refuse(error)


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
  flags.mark_flags_as_required(
    ['config'] if _MODE.value == 'compile' else ['config', 'workdir'])
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
