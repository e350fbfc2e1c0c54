"""LPO on the programs of Eurus-2-RL (PRIME), as in the paper: Qwen3-1.7B-Base.

python -m lpo_jax.main --config=experiments/prime_code.py:tiny --workdir=/tmp/code
python -m lpo_jax.main --config=experiments/prime_code.py:qwen3_1p7b --workdir=DIR

Variants, NAME or NAME.BASELINE.PROJECTION (configs/objectives.py)
  qwen3_1p7b  the paper's setting (arXiv:2605.06139, D.1 to D.3), 8 GPUs: the code split
              of PRIME-RL/Eurus-2-RL-Data under its own system prompt, 256 prompts a
              step in two minibatches, responses of 4096 tokens, reward the share of
              tests passed; evaluated on its validation problems, 8 samples at
              temperature 0.6
  tiny        a minute on two CPU cores, offline; see experiments/math.py
Programs run inside bubblewrap; without it the run refuses to start.
--config.task.sandbox=rlimits is the weaker choice, without walls.
"""

from configs import base, objectives, paper, tiny

NAMES = {'qwen3_1p7b': 'qwen3_1.7b', 'tiny': 'bytes_tiny'}
VARIANTS = objectives.variants(NAMES)


def get_config(variant: str = 'qwen3_1p7b'):
  """Return the configuration of one variant."""
  config = base.get_config()
  name = objectives.choose(config, variant, NAMES)
  if name == 'tiny':
    return tiny.setting(config, 'code', new_tokens=64, buckets=(256,))
  paper.reasoning(config, NAMES[name])
  config.task.name = 'code'
  config.task.options.update(train='eurus_code', evals=('eurus_code_validation',))
  config.checkpoint.best_metric = 'val/eurus_code_validation/mean@8'
  return config
