"""The files of a run that are not numbers over time: whose it is, groups, summary.

DIR/config.json names the owner; DIR/rollouts/ holds looks inside groups;
DIR/skipped/ the evidence of gradients that were not finite; DIR/summary.json the end;
DIR/eval.json what --mode=eval found.
Each is written whole or not at all. Of several processes only the first writes.
"""

import hashlib
import json
import os
import pathlib
import time
import zipfile
from collections.abc import Sequence

import numpy as np

from lpo_jax import hosts, manifest
from lpo_jax import metrics as metrics_lib
from lpo_jax.types import Groups, Problem

CONFIG, SUMMARY, EVAL = 'config.json', 'summary.json', 'eval.json'


def claim(workdir: str, config: dict, override: bool) -> None:
  """Make sure that this run may write `workdir` and that every process sees it.

  Raises:
    ValueError: it cannot be written, is another run's, or is not shared.
  """
  with hosts.agreeing():
    if hosts.first():
      metrics_lib.check_writable(workdir)
      check_owner(workdir, config, override)
  check_shared(workdir)


def check_owner(workdir: str, config: dict, override: bool) -> None:
  """Refuse a workdir whose config.json differs from `config`, unless overridden.

  Args:
    workdir: the run's folder; may be new.
    config: nested plain values.
    override: accept any owner.

  Raises:
    ValueError: names the differing fields, with both values.
  """
  path = os.path.join(workdir, CONFIG)
  if override or not os.path.exists(path):
    return
  try:
    with open(path, encoding='utf-8') as file:
      theirs = _flat(json.load(file))
  except ValueError as error:
    raise ValueError(f'{path} is not valid JSON ({error}); pass --override_workdir to '
                     'replace it, or choose another workdir') from error
  mine = _flat(config)
  differing = [f'{name}: there {theirs.get(name)!r}, here {mine.get(name)!r}'
               for name in sorted(theirs.keys() | mine.keys())
               if theirs.get(name) != mine.get(name)]
  if differing:
    raise ValueError(f'workdir={workdir} belongs to another configuration: '
                     f'{"; ".join(differing)}. Choose another workdir, or pass '
                     '--override_workdir to go on with this one')


def check_shared(workdir: str, wait_s: float = 10.0) -> None:
  """Refuse a workdir that is not one folder for every process.

  Args:
    workdir: the run's folder; exists on process 0.
    wait_s: how long a file of process 0 may take to appear on the others.

  Raises:
    ValueError: names the processes that do not see it.
  """
  if hosts.alone():
    return
  token = hosts.gather(str(time.time_ns()))[0]
  probe = pathlib.Path(workdir) / f'.shared_{token}'
  if hosts.first():
    probe.write_text(token)
  hosts.gather(None)  # it is written
  deadline = time.monotonic() + wait_s
  while not (seen := probe.exists()) and time.monotonic() < deadline:
    time.sleep(0.2)
  blind = [index for index, sees in enumerate(hosts.gather(seen)) if not sees]
  if hosts.first():
    probe.unlink()
  if blind:
    raise ValueError(f'workdir={workdir} of process 0 is not that of processes '
                     f'{blind}: give a folder that every host shares')


@hosts.by_first
def write_config(workdir: str, config: dict) -> None:
  """Write DIR/config.json."""
  metrics_lib.write_json(os.path.join(workdir, CONFIG), config)


@hosts.by_first
def write_summary(workdir: str, summary: dict) -> None:
  """Write DIR/summary.json."""
  metrics_lib.write_json(os.path.join(workdir, SUMMARY), summary)


@hosts.by_first
def write_report(workdir: str, report: dict) -> None:
  """Write DIR/eval.json."""
  metrics_lib.write_json(os.path.join(workdir, EVAL), report)


@hosts.by_first
def write_groups(workdir: str, step: int, problems: Sequence[Problem],
                 texts: Sequence[Sequence[str]], rewards: np.ndarray,
                 simplexes: Sequence[np.ndarray], coefficients: np.ndarray,
                 lengths: np.ndarray) -> None:
  """Write DIR/rollouts/step_<step>.jsonl, one group a line.

  Args:
    workdir: the run's folder.
    step: finished iterations.
    problems: the groups to write.
    texts: their K responses each.
    rewards: f32[B, K].
    simplexes: w*, P before and P after the update, each f32[B, K].
    coefficients: f32[B, K] that the update used, summed over tokens.
    lengths: i32[B, K] in tokens.
  """
  target, before, after = simplexes
  metrics_lib.write_rollouts(
    os.path.join(workdir, 'rollouts', f'step_{step:06d}.jsonl'),
    [{'step': step, 'id': problem.id, 'prompt': problem.prompt,
      'answer': problem.answer, 'responses': texts[i], 'rewards': rewards[i],
      'target': target[i], 'policy_before': before[i], 'policy_after': after[i],
      'coefficients': coefficients[i], 'lengths': lengths[i],
      **({'prefix': problem.prefix.text} if problem.prefix else {}),
      **_images(workdir, problem)} for i, problem in enumerate(problems)])


def _images(workdir: str, problem: Problem) -> dict:
  """Write a problem's images beside its group; return their names, if it has some."""
  names = []
  for image in problem.images or ():
    data = image if isinstance(image, bytes) else pathlib.Path(image).read_bytes()
    name = pathlib.Path('images', hashlib.sha256(data).hexdigest()[:16])
    path = pathlib.Path(workdir, 'rollouts', name)
    if not path.exists():
      path.parent.mkdir(parents=True, exist_ok=True)
      partial = path.with_name(f'.{path.name}.tmp')
      partial.write_bytes(data)
      os.replace(partial, path)
    names.append(str(name))
  return {'images': names} if names else {}


def write_array(path: str, array: np.ndarray) -> None:
  """Write one array, whole or not at all; it is on the disk when this returns."""
  if not hosts.first():
    return
  partial = f'{path}.tmp'
  with open(partial, 'wb') as file:
    np.savez_compressed(file, array=array)
    file.flush()
    os.fsync(file.fileno())
  os.replace(partial, path)


def read_array(path: str, shape: tuple[int, ...]) -> np.ndarray:
  """Return what `write_array` wrote.

  Raises:
    ValueError: it is not there, damaged, or of another shape.
  """
  try:
    with np.load(path) as file:
      found = file['array']
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
    raise ValueError(f'{path} cannot be read ({error}): put it back, or start in a new '
                     'workdir') from error
  if found.shape != shape:
    raise ValueError(f'{path} is of shape {found.shape}, not {shape}: start in a new '
                     'workdir')
  return found


def keep_evidence(workdir: str, step: int, groups: Groups) -> str:
  """Write the groups behind a gradient that was not finite; return the path."""
  path = os.path.join(workdir, 'skipped', f'step_{step:06d}.npz')
  arrays = hosts.fetch(manifest.flatten(groups))
  if hosts.first():
    os.makedirs(os.path.dirname(path), exist_ok=True)
    np.savez_compressed(path, **arrays)
  return path


def total_tokens(workdir: str) -> int:
  """Return the response tokens sampled up to the last line of metrics.jsonl.

  Where nothing is written, that is on all processes but the first, 0.
  """
  rows = metrics_lib.read(workdir) if hosts.first() else []
  return int(rows[-1].get('perf/total_tokens', 0)) if rows else 0


def _flat(tree, prefix: str = '') -> dict:
  if not isinstance(tree, dict):
    return {prefix: tree}
  return {name: value for key, child in tree.items()
          for name, value in _flat(child, f'{prefix}.{key}' if prefix else key).items()}
