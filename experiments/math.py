r"""LPO on MATH, as in the paper: Qwen3-1.7B-Base and 8B-Base; and on DeepScaleR.

python -m lpo_jax.main --config=experiments/math.py:tiny --workdir=/tmp/math
python -m lpo_jax.main --config=experiments/math.py:qwen3_8b.grpo.lpo_fwd --workdir=DIR

Variants, NAME or NAME.BASELINE.PROJECTION (configs/objectives.py)
  qwen3_1p7b  qwen3_8b   the paper's setting (arXiv:2605.06139, D.1 to D.3), 8 GPUs:
                         MATH's 7.5k training problems, 256 prompts a step in two
                         minibatches, responses of 4096 tokens, reward 0 or 1; evaluated
                         on AIME 24 and 25, AMC 23 (32 samples), Minerva (4), MATH-500
                         and OlympiadBench (1) at temperature 0.6
  deepscaler             the same with Qwen3-1.7B-Base on DeepScaleR's problems
  ood                    Qwen3-1.7B-Base evaluated on ARC-challenge, MMLU-Pro and
                         GPQA-diamond: with --mode=eval --config.init_from=RUN
  tiny                   a minute on two CPU cores, offline: a policy from scratch on
                         experiments/samples; the same path, little learned
The number of iterations is ours. Weights come by --config.policy.path, problems from
the hub or by --config.task.options.train=PLACE and .evals=NAME=PLACE,...
"""

from configs import base, objectives, paper, tiny

NAMES = {  # -> preset of configs/models.py
  'qwen3_1p7b': 'qwen3_1.7b', 'qwen3_8b': 'qwen3_8b', 'deepscaler': 'qwen3_1.7b',
  'ood': 'qwen3_1.7b', 'tiny': 'bytes_tiny',
}
VARIANTS = objectives.variants(NAMES)
SUITES = ('aime24', 'aime25', 'amc23', 'minerva', 'math500', 'olympiadbench')
OUT_OF_DISTRIBUTION = ('arc_c', 'mmlu_pro', 'gpqa_diamond')


def get_config(variant: str = 'qwen3_1p7b'):
  """Return the configuration of one variant."""
  config = base.get_config()
  name = objectives.choose(config, variant, NAMES)
  if name == 'tiny':
    return tiny.setting(config, 'math', new_tokens=16, buckets=(192,))
  paper.reasoning(config, NAMES[name])
  config.task.name = 'math'
  config.task.options.update(
    train='deepscaler' if name == 'deepscaler' else 'math',
    evals=OUT_OF_DISTRIBUTION if name == 'ood' else SUITES)
  config.checkpoint.best_metric = 'val/average/mean@n'
  return config
