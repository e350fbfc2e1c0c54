"""Write lists for `offline.path`: K scored responses of a run's policy to each prompt.

python -m lpo_jax.lists DIR --out=FILE [--lists=256] [--samples=K] [--mixed]
    [--no_logprobs]

The newest policy of the run in DIR is asked its training problems, at its sampling
settings. Responses, rewards and log-probabilities of each token are written, for a run
with the same tokenizer; --no_logprobs leaves the last out, for any. --mixed keeps lists
of unequal rewards alone. Lists of which a response, as text, would not become the same
tokens again are left out.
"""

import argparse
import pathlib
import sys
from collections.abc import Iterator

import jax

from lpo_jax import (
  batches,
  build,
  counterfactual,
  hosts,
  metrics,
  offline,
  origin,
  phases,
  programs,
  rollout,
  train,
)

_STREAM = 6  # beside those of `train`
_MOST = 64  # batches asked for each that is wanted, since lists may be left out


def sample(folder: pathlib.Path, count: int, samples: int = 0,
           mixed: bool = False) -> list[dict]:
  """Return lists as `offline` reads them.

  Args:
    folder: of the run.
    count: how many.
    samples: K; 0 for the run's.
    mixed: leave out those of equal rewards.

  Raises:
    ValueError: no such run, or too few lists could be kept.
  """
  if count < 1 or samples < 0:
    raise ValueError(f'--lists={count}, --samples={samples}: must be at least 1 and 0')
  config = counterfactual.read_config(folder)
  config.samples_per_prompt = samples or config.samples_per_prompt
  config.update(init_from=str(folder))
  config.warmstart.steps, config.micro_responses = 0, 0
  config.step_level.fraction, config.offline.path = 0.0, ''
  parts, found = build.build(config), []
  build.start_task(config, parts.task)
  try:
    with jax.set_mesh(parts.mesh):
      params = origin.first(config, parts, programs.Programs(parts), None, train.say)
      for step in range(1, _MOST * -(-count // config.prompts_per_step) + 1):
        found += (row for row in _batch(config, parts, params, step)
                  if not mixed or len(set(row['rewards'])) > 1)
        if len(found) >= count:
          return found[:count]
  finally:
    parts.task.stop()
  raise ValueError(f'--lists={count}: {folder} gave {len(found)} that can be kept, in '
                   f'{step} batches; ask for fewer, or for more --samples')


def _batch(config, parts, params, step: int) -> Iterator[dict]:
  """Yield the lists of one batch whose texts give their tokens back."""
  key = jax.random.fold_in(jax.random.key(config.seed), _STREAM)
  batch = batches.collect(config, parts, params, step, jax.random.fold_in(key, step),
                          phases.Phases(None))
  rollouts = jax.device_get(batch.groups.rollouts)
  ended = rollout.stopped(rollouts, parts.tokenizer.stop_tokens)
  for row, (problem, texts) in enumerate(zip(batch.problems, batch.graded.texts,
                                             strict=True)):
    real = rollouts.response_mask[row]
    tokens = [response[mask].tolist()
              for response, mask in zip(rollouts.response[row], real, strict=True)]
    logprobs = [[min(round(float(value), 6), 0.0) for value in values[mask]]
                for values, mask in zip(rollouts.logprobs[row], real, strict=True)]
    found = {'id': problem.id, 'prompt': problem.prompt, 'responses': texts,
             'rewards': batch.graded.rewards[row].tolist(),
             'truncated': (~ended[row]).tolist(), 'logprobs': logprobs}
    if _read_back(found, parts) == tokens:
      yield found


def _read_back(found: dict, parts) -> list[list[int]] | None:
  """Return the tokens of a list's responses as `offline` would; None if it cannot."""
  try:
    return [offline.tokens(text, cut, parts.tokenizer) for text, cut in
            zip(found['responses'], found['truncated'], strict=True)]
  except ValueError:  # a token that the vocabulary does not write
    return None


def main(argv: list[str] | None = None) -> int:
  """Write what the command line asks for; return the exit status."""
  parser = argparse.ArgumentParser(
    prog='lpo_jax.lists', description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('run', metavar='DIR', type=pathlib.Path)
  parser.add_argument('--out', required=True, metavar='FILE')
  parser.add_argument('--lists', type=int, default=256, help='how many')
  parser.add_argument('--samples', type=int, default=0, help="K; default: the run's")
  parser.add_argument('--mixed', action='store_true', help='only of unequal rewards')
  parser.add_argument('--no_logprobs', action='store_true', help='pi_b will be the '
                      'policy before the first step')
  options = parser.parse_args(argv)
  try:
    if not hosts.alone():
      raise ValueError('lists are written by one process')
    found = sample(options.run.absolute(), options.lists, options.samples,
                   options.mixed)
  except (ValueError, FileNotFoundError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  if options.no_logprobs:
    found = [{key: row[key] for key in row if key != 'logprobs'} for row in found]
  metrics.write_rollouts(options.out, found)
  rewards = [reward for row in found for reward in row['rewards']]
  print(f'written: {options.out}, {len(found)} lists, {len(rewards)} responses, mean '
        f'reward {sum(rewards) / len(rewards):.3f}')
  return 0


if __name__ == '__main__':
  sys.exit(main())
