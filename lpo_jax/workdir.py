"""The files of a run that are not numbers over time: whose it is, groups, summary.

DIR/config.json names the owner; DIR/rollouts/ holds looks inside groups;
DIR/skipped/ the evidence of gradients that were not finite; DIR/summary.json the end.
Each is written whole or not at all.
"""

import json
import os
from collections.abc import Sequence

import jax
import numpy as np

from lpo_jax import manifest
from lpo_jax import metrics as metrics_lib
from lpo_jax.types import Groups, Problem

CONFIG, SUMMARY = 'config.json', 'summary.json'


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


def write_config(workdir: str, config: dict) -> None:
  """Write DIR/config.json."""
  metrics_lib.write_json(os.path.join(workdir, CONFIG), config)


def write_summary(workdir: str, summary: dict) -> None:
  """Write DIR/summary.json."""
  metrics_lib.write_json(os.path.join(workdir, SUMMARY), summary)


def write_groups(workdir: str, step: int, problems: Sequence[Problem],
                 texts: Sequence[Sequence[str]], rewards: np.ndarray,
                 simplexes: Sequence[np.ndarray]) -> None:
  """Write DIR/rollouts/step_<step>.jsonl, one group a line.

  Args:
    workdir: the run's folder.
    step: finished iterations.
    problems: the groups to write.
    texts: their K responses each.
    rewards: f32[B, K].
    simplexes: w*, P before and P after the update, each f32[B, K].
  """
  target, before, after = simplexes
  metrics_lib.write_rollouts(
    os.path.join(workdir, 'rollouts', f'step_{step:06d}.jsonl'),
    [{'step': step, 'id': problem.id, 'prompt': problem.prompt, 'responses': texts[i],
      'rewards': rewards[i], 'target': target[i], 'policy_before': before[i],
      'policy_after': after[i]} for i, problem in enumerate(problems)])


def keep_evidence(workdir: str, step: int, groups: Groups) -> str:
  """Write the groups behind a gradient that was not finite; return the path."""
  path = os.path.join(workdir, 'skipped', f'step_{step:06d}.npz')
  os.makedirs(os.path.dirname(path), exist_ok=True)
  np.savez_compressed(path, **jax.device_get(manifest.flatten(groups)))
  return path


def total_tokens(workdir: str) -> int:
  """Return the response tokens sampled up to the last line of metrics.jsonl."""
  rows = metrics_lib.read(workdir)
  return int(rows[-1].get('perf/total_tokens', 0)) if rows else 0


def _flat(tree, prefix: str = '') -> dict:
  if not isinstance(tree, dict):
    return {prefix: tree}
  return {name: value for key, child in tree.items()
          for name, value in _flat(child, f'{prefix}.{key}' if prefix else key).items()}
