"""LPO on Polaris-53K, as in the paper: Qwen3-14B-Base.

python -m lpo_jax.main --config=experiments/polaris.py:tiny --workdir=/tmp/polaris
python -m lpo_jax.main --config=experiments/polaris.py:qwen3_14b --workdir=DIR

Variants, NAME or NAME.BASELINE.PROJECTION (configs/objectives.py)
  qwen3_14b   the paper's setting (arXiv:2605.06139, D.1 to D.3), 8 GPUs: like
              experiments/math.py, with POLARIS-Project/Polaris-Dataset-53K; its curves
              reach 200 iterations
  tiny        a minute on two CPU cores, offline; see experiments/math.py
"""

from configs import base, objectives, paper, tiny
from experiments import math

NAMES = {'qwen3_14b': 'qwen3_14b', 'tiny': 'bytes_tiny'}
VARIANTS = objectives.variants(NAMES)


def get_config(variant: str = 'qwen3_14b'):
  """Return the configuration of one variant."""
  config = base.get_config()
  name = objectives.choose(config, variant, NAMES)
  if name == 'tiny':
    return tiny.setting(config, 'math', new_tokens=16, buckets=(192,))
  paper.reasoning(config, NAMES[name])
  config.sampling.prompts_at_once = 16  # more do not fit beside the sampler's weights
  config.task.name = 'math'
  config.task.options.update(train='polaris', evals=math.SUITES)
  config.checkpoint.best_metric = 'val/average/mean@n'
  return config
