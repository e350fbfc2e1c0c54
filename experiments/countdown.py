"""LPO, forward KL at GRPO's temperature, Countdown, a small policy from scratch.

python -m lpo_jax.main --config=experiments/countdown.py --workdir=/tmp/countdown
2 CPU cores, 4.5 min: held-out mean@16 .26 -> .51, pass@16 .88 -> .78, seeds 0-2.

Variants, as experiments/countdown.py:NAME
  small   3 numbers in 1..20, targets 1..50; 250 warm-start steps, 120 iterations
  long    the same for 1000 iterations, where LPO should be judged: held-out mean@16
          .26 -> .60, pass@16 .88 -> .77 (GRPO .61 and .65), seeds 0-2, 15 min a core
  n34     3 to 4 numbers
  narrow  small with a policy of 0.16 M parameters; 500 warm-start steps
  tiny    seconds long, for tests: the same path, nothing learned
  qwen3_4b  llama3_8b  mistral_7b  deepseek_1p5b
          the paper's setting (arXiv:2605.06139, D.1 to D.3) on its backbones, 8 GPUs;
          weights by --config.policy.path (default: the hub), problems in the hub's
          schema by --config.task.options.path (default: drawn alike)
"""

from ml_collections import config_dict

from configs import base, paper

BACKBONES = {  # variant -> preset of configs/models.py
  'qwen3_4b': 'qwen3_4b', 'llama3_8b': 'llama3.1_8b', 'mistral_7b': 'mistral_7b_v0.1',
  'deepseek_1p5b': 'deepseek_r1_qwen_1.5b',
}
VARIANTS = ('small', 'long', 'n34', 'narrow', 'tiny', *BACKBONES)


def get_config(variant: str = 'small'):
  """Return the configuration of one variant."""
  if variant not in VARIANTS:
    raise ValueError(f'unknown variant {variant!r}: choose one of {VARIANTS}')
  config = base.get_config()
  if variant in BACKBONES:
    return setting(config, BACKBONES[variant])
  config.task.options.update(
    min_numbers=3, max_numbers=3, max_number=20, max_target=50, max_intermediate=99,
    format='compact', format_reward=0.0, test_size=256)
  config.policy.name = 'countdown_small'
  config.warmstart.steps = 250
  config.num_steps = 120
  config.prompts_per_step = 64
  config.updates_per_step = 2
  config.micro_prompts = 4
  config.sampling.max_new_tokens = 20
  config.sampling.prompt_buckets = (8,)
  config.objective.skip_flat_groups = True
  config.objective.behavior = 'sampler'  # float32 throughout: mismatch/* stays at 1e-7
  config.optimizer.learning_rate = 7.5e-5  # at 1.5e-4 every method peaks early
  config.optimizer.warmup_steps = 8
  config.optimizer.b2 = 0.95
  config.optimizer.weight_decay = 0.0
  config.eval.every = 20
  config.checkpoint.every = 20
  config.checkpoint.best_metric = 'val/countdown/mean@16'
  if variant == 'long':
    config.num_steps = 1000
    config.eval.every = 100
    config.checkpoint.every = 100
    config.log.groups_every = 50
  if variant == 'n34':
    config.task.options.max_numbers = 4
    config.sampling.max_new_tokens = 32
  if variant == 'narrow':
    config.policy.name = 'countdown_narrow'
    config.warmstart.steps = 500
  if variant == 'tiny':
    tiny(config)
  return config


def setting(config, backbone: str):
  """Set the paper's Countdown setting, on one of its backbones; return it."""
  paper.setting(config, backbone)
  # Like Jiayi-Pan/Countdown-Tasks-3to4 and Countdown-Tasks-4, in TinyZero's prompt
  config.task.options.update(
    path=config_dict.placeholder(str), min_numbers=3, max_numbers=4, max_number=99,
    max_target=100, max_intermediate=10_000, format='tinyzero', format_reward=0.1,
    train_size=2000, test_size=512, sets={'cd34': (3, 4), 'cd4': (4, 4)})
  config.prompts_per_step = 128  # in minibatches of 64
  config.sampling.max_new_tokens = 1024
  config.sampling.prompt_buckets = (256,)
  config.eval.update(every=50, problems=512, samples=64, final_samples=64)
  config.checkpoint.best_metric = 'val/average/mean@64'
  return config


def tiny(config):
  """Shrink a configuration until it runs in seconds."""
  config.policy.name = 'countdown_tiny'
  config.warmstart.steps = 4
  config.warmstart.batch = 16
  config.warmstart.warmup_steps = 2
  config.num_steps = 4
  config.prompts_per_step = 8
  config.samples_per_prompt = 4
  config.micro_prompts = 4
  config.eval.update(every=2, problems=8, samples=4, final_samples=4)
  config.checkpoint.every = 2
  config.checkpoint.best_metric = 'val/countdown/mean@4'
  config.log.update(groups_every=2, groups=2)
