"""LPO on fixed lists of responses and rewards: no sampling but to evaluate.

python -m lpo_jax.main --config=experiments/offline_lists.py --workdir=/tmp/offline
    [--config.offline.path=FILE.jsonl --config.samples_per_prompt=K]

Variants, as experiments/offline_lists.py:NAME
  small   the policy and problems of experiments/countdown.py, on 64 lists of K = 8
  pairs   the same, two responses of each list: K = 2, soft DPO
  tiny    seconds long, for tests: the same path, nothing learned

Scores are sums over tokens, so that the target softmax(R / tau) is within reach. The
64 lists that come with it show the path; they are too few to learn from: held-out
mean@16 .24 -> .23 in 120 iterations, where 2048 lists give .24 -> .31 (seed 0). They
were written by

  python -m lpo_jax.main --config=experiments/countdown.py --workdir=/tmp/start
    --config.num_steps=0
  python -m lpo_jax.lists /tmp/start --out=FILE.jsonl --lists=64 --mixed --no_logprobs
"""

from experiments import countdown

VARIANTS = ('small', 'pairs', 'tiny')
LISTS = 'experiments/samples/countdown_lists.jsonl'
PAIRS = 'experiments/samples/countdown_pairs.jsonl'


def get_config(variant: str = 'small'):
  """Return the configuration of one variant."""
  if variant not in VARIANTS:
    raise ValueError(f'unknown variant {variant!r}: choose one of {VARIANTS}')
  config = countdown.get_config('tiny' if variant == 'tiny' else 'small')
  config.offline.path = PAIRS if variant == 'pairs' else LISTS
  config.samples_per_prompt = 2 if variant == 'pairs' else 8
  config.objective.score = 'sum'
  config.objective.token_clip = None
  return config
