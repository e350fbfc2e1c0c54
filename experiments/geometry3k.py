"""LPO for policies that read images: Geometry3k with Qwen2.5-VL, and drawn figures.

python -m lpo_jax.main --config=experiments/geometry3k.py:tiny --workdir=/tmp/figures
python -m lpo_jax.main --config=experiments/geometry3k.py:qwen2p5_vl_3b.grpo.lpo_fwd \\
  --workdir=DIR

Variants, NAME or NAME.BASELINE.PROJECTION (configs/objectives.py)
  qwen2p5_vl_3b  the paper's setting (arXiv:2605.06139, D.1 to D.3), 8 GPUs: 128 prompts
                 a step in two minibatches, responses of 1024 tokens, reward 1 right,
                 0.1 well-formed, 0; evaluated on the 601 test problems, 16 samples, at
                 temperature 0.6. The tower is frozen; iterations and image size are
                 ours. Weights by --config.policy.path, problems from the hub or by
                 --config.task.options.train=PLACE and .evals=NAME=PLACE,...
  tiny           drawn angles and lengths (tasks/figures.py), a policy of 0.3 M
                 parameters from scratch, tower and all: 300 warm-start steps, 400
                 iterations; 2 to 3 min on 2 CPU cores. Held-out mean@8 .42 -> .65,
                 .02 with the figures shuffled (eval.shuffle_images), seeds 0-2
"""

from configs import base, objectives, paper

NAMES = {'qwen2p5_vl_3b': 'qwen2.5_vl_3b', 'tiny': 'figures_small'}
VARIANTS = objectives.variants(NAMES)


def get_config(variant: str = 'qwen2p5_vl_3b'):
  """Return the configuration of one variant."""
  config = base.get_config()
  name = objectives.choose(config, variant, NAMES)
  if name == 'tiny':
    return tiny(config)
  paper.setting(config, NAMES[name])
  config.task.name = 'geometry3k'
  config.task.reward.update(correct=0.9, format=0.1)  # 1 right, 0.1 well-formed, 0
  config.prompts_per_step = 128  # in minibatches of 64
  config.sampling.max_new_tokens = 1024
  config.sampling.prompt_buckets = (512, 1024, 2048)
  config.sampling.patch_buckets = (1024, 2048, 4096)
  config.policy.vision.max_pixels = 802816  # 1024 tokens, 4096 patches
  config.num_steps = 100
  config.eval.update(every=10, problems=601, samples=16, final_samples=16)
  config.checkpoint.every = 10
  config.checkpoint.best_metric = 'val/geometry3k_test/mean@16'
  return config


def tiny(config):
  """Set a small policy from scratch on drawn figures; return the configuration."""
  config.task.name = 'figures'
  config.task.reward.update(correct=0.9, format=0.1)
  config.policy.name = 'figures_small'
  config.policy.tokenizer = 'experiments/samples/figures'
  config.policy.vision.update(frozen=False, min_pixels=576, max_pixels=100_000)
  config.task.options.update(train_size=4096, test_size=256)
  config.warmstart.update(steps=300, batch=64, learning_rate=3e-3, warmup_steps=40)
  config.num_steps = 400
  config.prompts_per_step = 64
  config.samples_per_prompt = 8
  config.updates_per_step = 2
  config.micro_prompts = 32
  config.sampling.max_new_tokens = 12
  config.sampling.prompt_buckets = (16,)
  config.sampling.patch_buckets = (12,)
  config.objective.skip_flat_groups = True
  config.objective.behavior = 'sampler'
  config.optimizer.update(learning_rate=2e-4, warmup_steps=8, b2=0.95,
                          weight_decay=0.0)
  config.eval.update(every=50, problems=256, samples=8, final_samples=8,
                     pass_at=(1, 8))
  config.checkpoint.every = 50
  config.checkpoint.best_metric = 'val/figures/mean@8'
  config.log.update(groups_every=50, groups=8)
  return config
