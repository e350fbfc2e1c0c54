"""A study as one command: runs that share start, problems and keys, then the report.

python -m lpo_jax.study --study=experiments/studies/NAME.py[:VARIANT][,...] --out=DIR
    [--seeds=0,1,2] [--processes=N] [--dry_run]

A study file has `get_study(variant) -> Study`: a base experiment, and runs by the
config fields in which they differ from it. Runs of a seed share a warm start and, since
step i's problems and keys depend on (seed, i) alone, problems and first samples. What
is done is skipped and what was killed goes on. `--dry_run` prints commands for a shell.
Of several studies each has DIR/NAME, and what two would run alike runs once.
"""

import argparse
import dataclasses
import importlib
import importlib.util
import itertools
import json
import os
import pathlib
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence

from lpo_jax import jobs, report, workdir

START = ('policy', 'task', 'warmstart', 'init_from')  # fields that make another start


@dataclasses.dataclass(frozen=True)
class Study:
  """Runs that differ only where the question is."""

  base: str  # experiment, FILE.py or FILE.py:VARIANT
  runs: Mapping[str, Mapping]  # name -> config field -> value
  fixed: Mapping = dataclasses.field(default_factory=dict)  # fields of every run
  seeds: tuple[int, ...] = (0, 1, 2)
  pairs: tuple[tuple[str, str], ...] = ()  # runs compared seed by seed: first - second


def cross(*axes: Mapping[str, Mapping]) -> dict[str, dict]:
  """Return every combination of the axes' labels, joined by '-', with their fields.

  Example: cross({'lpo': {'objective.name': 'lpo_fwd'}}, {'k4': {...}}) has 'lpo-k4'.
  """
  found = {}
  for labels in itertools.product(*axes):
    fields = [axis[label] for axis, label in zip(axes, labels, strict=True)]
    found['-'.join(labels)] = {k: v for part in fields for k, v in part.items()}
  return found


def load(path: str) -> Study:
  """Return the study of FILE.py or FILE.py:VARIANT.

  Raises:
    ValueError: there is no such file, or it has no study of that name.
  """
  found = _call(path, 'get_study')
  if not isinstance(found, Study):
    raise ValueError(f'{path}: get_study returned {type(found).__name__}, not a Study')
  for pair in found.pairs:
    if unknown := sorted(set(pair) - set(found.runs)):
      raise ValueError(f'{path}: pair {pair} names no run {unknown[0]!r}')
  return found


def _call(path: str, function: str):
  file, _, variant = path.partition(':')
  if not os.path.isfile(file):
    raise ValueError(f'{file} is no file')
  spec = importlib.util.spec_from_file_location(pathlib.Path(file).stem, file)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if not hasattr(module, function):
    raise ValueError(f'{file} has no {function}()')
  return getattr(module, function)(*filter(None, [variant]))


def plan(study: Study, out: str, seeds: Sequence[int] = (), within: str = '',
         known: dict[str, jobs.Job] | None = None) -> dict[str, jobs.Job]:
  """Return every process of a study by its name, starts before those that need them.

  Args:
    study: what to run.
    out: folder of the whole.
    seeds: instead of the study's.
    within: the study's folder in `out`, where there are several.
    known: jobs of the studies planned before, by configuration: one of those stands
      for whatever would be configured alike. This study's are added.

  Raises:
    ValueError: a field that no config has, a value of another type, or a folder that
      belongs to another configuration.
  """
  known = {} if known is None else known
  starts, runs = {}, {}
  for seed, (name, fields) in itertools.product(seeds or study.seeds,
                                                study.runs.items()):
    fields, start = {**study.fixed, **fields, 'seed': seed}, None
    if _config(study.base, fields).warmstart.steps:
      own = {key: value for key, value in fields.items()
             if key in ('seed', *study.fixed) or key.split('.')[0] in START}
      own['num_steps'] = 0
      others = sum(other.endswith(f'/seed_{seed}') for other in starts)
      start = _job(study.base, own, out, within, f'start_{others}/seed_{seed}', known)
      if start not in starts.values():
        starts[f'start_{others}/seed_{seed}'] = start
      fields |= {'warmstart.steps': 0, 'init_from': str(start.folder)}
    runs[f'runs/{name}/seed_{seed}'] = _job(
      study.base, fields, out, within, f'runs/{name}/seed_{seed}', known,
      start.name if start else '')
  return starts | runs


def _config(base: str, fields: Mapping):
  config = _call(base, 'get_config')
  try:
    config.lock()
    config.update_from_flattened_dict(dict(fields))
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise ValueError(f'{base} does not take {dict(fields)}: {error}') from error
  return config


def _job(base: str, fields: Mapping, out: str, within: str, name: str,
         known: dict[str, jobs.Job], after: str = '') -> jobs.Job:
  """Return the job of these fields, `name`'s own unless one of `known` is the same."""
  config = _config(base, fields)
  content = json.loads(config.to_json())
  key = json.dumps(content, sort_keys=True)
  if key not in known:
    folder = pathlib.Path(out, within, name)
    workdir.check_owner(str(folder), content, override=False)
    flags = [f'--config.{field}={value}' for field, value in fields.items()]
    known[key] = jobs.Job(os.path.join(within, name), folder, config, [
      sys.executable, '-m', 'lpo_jax.main', f'--config={base}', f'--workdir={folder}',
      *flags], after)
  return known[key]


def plan_all(studies: Sequence[Study], names: Sequence[str], out: str,
             seeds: Sequence[int] = ()) -> list[dict[str, jobs.Job]]:
  """Return the plan of each study, in folders of their own where there are several.

  Raises:
    ValueError: two studies of one name, or as `plan`.
  """
  if len(set(names)) < len(names):
    raise ValueError(f'two studies of one name, so one folder, in {", ".join(names)}')
  known = {}
  return [plan(study, out, seeds, name if len(names) > 1 else '', known)
          for study, name in zip(studies, names, strict=True)]


def commands(planned: Iterable[jobs.Job]) -> str:
  """Return the jobs as lines for a shell."""
  return '\n'.join(shlex.join(['python', *job.command[1:]]) for job in planned)


def main(argv: list[str] | None = None) -> int:
  """Run the study that the command line asks for; return the exit status."""
  parser = argparse.ArgumentParser(
    prog='lpo_jax.study', description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--study', required=True, help='FILE.py or FILE.py:VARIANT, or '
                      'several, comma-separated')
  parser.add_argument('--out', required=True, help='folder of runs, logs and report')
  parser.add_argument('--seeds', default='', help='comma-separated, instead of its own')
  parser.add_argument('--processes', type=int, default=0, help='at once; 0: one a core '
                      'on CPU, one on accelerators')
  parser.add_argument('--dry_run', action='store_true', help='print the commands only')
  options = parser.parse_args(argv)
  paths = options.study.split(',')
  names = [pathlib.Path(path.partition(':')[0]).stem for path in paths]
  try:
    studies = [load(path) for path in paths]
    seeds = tuple(int(seed) for seed in options.seeds.split(',') if seed)
    plans = plan_all(studies, names, options.out, seeds)
  except ValueError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  if options.dry_run:
    every = {job.name: job for planned in plans for job in planned.values()}
    jobs.say(commands(every.values()))
    return 0
  status = 0
  for study, name, planned in zip(studies, names, plans, strict=True):
    runner = jobs.Runner(planned.values(), pathlib.Path(options.out, 'logs'),
                         options.processes)
    try:
      runner.run()
    except KeyboardInterrupt:
      jobs.say('stopped: the same command goes on')
      return 130
    if runner.failed:
      jobs.say(f'{len(runner.failed)} of {len(planned)} runs failed: '
               f'{", ".join(runner.failed)}')
      status = 1
    else:
      _report(study, planned, pathlib.Path(options.out, name if names[1:] else ''))
  return status


def _report(study: Study, planned: Mapping[str, jobs.Job], out: pathlib.Path) -> None:
  """Write the report of a study whose runs have all ended well into its folder."""
  folders = {name: [job.folder for key, job in planned.items()
                    if key.startswith(f'runs/{name}/')] for name in study.runs}
  jobs.say(report.write_study(folders, study.pairs, str(out / 'report')))
  jobs.say(f'report.html, report.md, report.csv and figures are in {out / "report"}')


if __name__ == '__main__':
  # Study files import this module by its name; there must be one Study.
  sys.exit(importlib.import_module('lpo_jax.study').main())
