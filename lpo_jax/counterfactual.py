"""What each objective would have done with the very groups of one step.

python -m lpo_jax.counterfactual DIR [--step=N] [--objectives=lpo_fwd,grpo] [--groups=2]
    [--out=FILE]

Step N's groups are sampled again, which is exact: they depend on (seed, N) and the
policy before the step, so that policy's checkpoint must still be there. At that policy
each objective's gradient over the whole batch is taken: its norm, the cosines between
them, and the coefficients that each gives to the responses of a few groups. One
gradient an objective is held at a time in memory: name few for a large policy.
"""

import argparse
import dataclasses
import itertools
import json
import pathlib
import sys

import jax
import numpy as np
from ml_collections import ConfigDict

from lpo_jax import (
  batches,
  build,
  methods,
  metrics,
  microbatch,
  objective,
  origin,
  phases,
  programs,
  rollout,
  train,
  update,
)
from lpo_jax import workdir as workdirs
from lpo_jax.types import Groups


@dataclasses.dataclass(frozen=True)
class Batch:
  """One step's groups and the policy that sampled them."""

  parts: build.Parts
  params: object  # the policy, pi_b
  groups: Groups
  graded: rollout.Graded
  step: int


def read_config(folder: pathlib.Path) -> ConfigDict:
  """Return the configuration of a run as its config.json says it.

  Raises:
    ValueError: there is none, or it is no JSON.
  """
  path = folder / workdirs.CONFIG
  try:
    return ConfigDict(_tuples(json.loads(path.read_text())))
  except (OSError, ValueError) as error:
    raise ValueError(f'{path} cannot be read ({error}): give a run folder') from error


def _tuples(value):
  if isinstance(value, dict):
    return {name: _tuples(child) for name, child in value.items()}
  return tuple(map(_tuples, value)) if isinstance(value, list) else value


def sample_again(folder: pathlib.Path, step: int) -> Batch:
  """Return the groups of a step, sampled as the run sampled them.

  Args:
    folder: of the run.
    step: N, from 1; 0 for the one after the newest checkpoint.

  Raises:
    ValueError: the policy before that step is not kept; says which steps can be had.
  """
  config = read_config(folder)
  if config.async_rollouts or config.replay.fraction:
    raise ValueError(f'{folder} has async_rollouts={config.async_rollouts} and '
                     f'replay.fraction={config.replay.fraction}: what it learned from '
                     'cannot be sampled again from one policy')
  kept = sorted(int(path.name) for path in (folder / 'checkpoints').glob('*')
                if path.name.isdigit())
  if not kept:
    raise ValueError(f'{folder} holds no checkpoint')
  step = step or kept[-1] + 1
  if step - 1 not in kept:
    raise ValueError(f'--step={step} needs the policy after step {step - 1}, which is '
                     f'not kept: choose one of {[found + 1 for found in kept]}')
  config.init_from = str(folder / 'checkpoints' / str(step - 1))
  config.warmstart.steps = 0
  parts = build.build(config)
  if parts.lists is not None:
    raise ValueError(f'{folder} learned from fixed lists: nothing was sampled')
  key = jax.random.fold_in(jax.random.key(config.seed), train.SAMPLE)
  try:
    with jax.set_mesh(parts.mesh):
      params = origin.first(config, parts, programs.Programs(parts), None, train.say)
      found = batches.collect(config, parts, params, step,
                              jax.random.fold_in(key, step),
                              phases.Phases(config.log.watchdog_s))
  finally:
    parts.task.stop()
  return Batch(parts, params, found.groups, found.graded, step)


def compare(batch: Batch, names: list[str]) -> dict[str, tuple[np.ndarray, dict]]:
  """Return objective -> (coefficients f32[B, K] summed over tokens, its gradient).

  The gradient is that of the mean over all groups that count, at pi_b.
  """
  config = dataclasses.replace(batch.parts.update, updates_per_step=1, epochs=1)
  samples = batch.parts.sampling.samples_per_prompt
  found = {}
  for name in names:
    choices = dataclasses.replace(
      batch.parts.objective, name=name, clip_low=None, clip_high=None, aggregation=None,
      **({} if name == objective.MIX else {'mix_end': None}),
      **({'entropy_bonus': 0.0} if name in methods.METHODS else {}))
    function = objective.build(choices, samples)

    @jax.jit
    def measure(params, groups, step, function=function):
      groups = update.kept(groups, config)
      statistics = (*update.batch_statistics(groups), step)
      gradient, _, coefficients = microbatch.gradient(
        function, params, groups, None, statistics, True, config)
      return coefficients, gradient

    with jax.set_mesh(batch.parts.mesh):
      coefficients, gradient = measure(batch.params, batch.groups,
                                       np.int32(batch.step - 1))
    found[name] = np.asarray(coefficients), gradient
  return found


@jax.jit
def _inner(one, two):
  return sum(jax.tree.leaves(jax.tree.map(lambda a, b: (a * b).sum(), one, two)))


def cosines(gradients: dict) -> tuple[dict[str, float], np.ndarray]:
  """Return the norm of each gradient, and their cosines; NaN where one is zero.

  Args:
    gradients: name -> tree.

  Returns:
    name -> norm, and f64[n, n] in the order of the names.
  """
  names = list(gradients)
  products = np.zeros((len(names), len(names)))
  for i, j in itertools.combinations_with_replacement(range(len(names)), 2):
    products[i, j] = products[j, i] = _inner(gradients[names[i]], gradients[names[j]])
  norms = np.sqrt(np.diag(products))
  with np.errstate(divide='ignore', invalid='ignore'):
    return (dict(zip(names, norms.tolist(), strict=True)),
            products / norms[:, None] / norms[None, :])


def markdown(batch: Batch, found: dict, shown: int) -> str:
  """Return the norms and cosines, and the coefficients of the first informative groups.
  """
  names = list(found)
  norms, between = cosines({name: gradient for name, (_, gradient) in found.items()})
  lines = [f'Step {batch.step}: {len(batch.graded.rewards)} groups, mean reward '
           f'{batch.graded.rewards.mean():.3f}', '',
           '| objective | norm | ' + ' | '.join(names) + ' |',
           '|---|---:|' + '---:|' * len(names)]
  for name, row in zip(names, between, strict=True):
    cells = ' | '.join('' if np.isnan(value) else f'{value:.3f}' for value in row)
    lines.append(f'| {name} | {norms[name]:.3g} | {cells} |')
  rewards = batch.graded.rewards
  informative = np.flatnonzero(rewards.max(axis=1) > rewards.min(axis=1))
  for row in informative[:shown]:
    lines += ['', f'Group {row}, coefficients (negative: made likelier)', '',
              '| reward | ' + ' | '.join(names) + ' |', '|---:|' + '---:|' * len(names)]
    lines += ['| ' + ' | '.join([f'{reward:.2f}', *(
      f'{found[name][0][row, k]:+.4f}' for name in names)]) + ' |'
      for k, reward in enumerate(rewards[row])]
  return '\n'.join(lines)


def main(argv: list[str] | None = None) -> int:
  """Print the comparison that the command line asks for; return the exit status."""
  parser = argparse.ArgumentParser(
    prog='lpo_jax.counterfactual', description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('run', metavar='DIR', type=pathlib.Path)
  parser.add_argument('--step', type=int, default=0, help='N, from 1; 0: the one after '
                      'the newest checkpoint')
  parser.add_argument('--objectives', default='lpo_fwd,lpo_rev,grpo,dr_grpo,maxrl',
                      help='comma-separated, or all')
  parser.add_argument('--groups', type=int, default=2, help='to show the '
                      'coefficients of')
  parser.add_argument('--out', help='JSON file for all of it')
  options = parser.parse_args(argv)
  names = (list(objective.NAMES) if options.objectives == 'all'
           else options.objectives.split(','))
  try:
    batch = sample_again(options.run.absolute(), options.step)
    found = compare(batch, names)
  except (ValueError, FileNotFoundError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  print(markdown(batch, found, options.groups))
  if options.out:
    norms, between = cosines({name: gradient for name, (_, gradient) in found.items()})
    metrics.write_json(options.out, {
      'step': batch.step, 'rewards': batch.graded.rewards.tolist(), 'norms': norms,
      'cosines': between.tolist(),
      'coefficients': {name: rows.tolist() for name, (rows, _) in found.items()}})
  return 0


if __name__ == '__main__':
  sys.exit(main())
