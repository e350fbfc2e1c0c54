"""The same path in a minute, offline: a policy of bytes on the committed samples.

For the variants `tiny` of the experiments, whose tests train and evaluate them.
"""

SAMPLES = 'experiments/samples'


def setting(config, task: str, new_tokens: int, buckets: tuple[int, ...]):
  """Set a run from scratch on the sample of `task`, 'math' or 'code'; return it."""
  config.task.name = task
  config.task.options.update(train=f'{SAMPLES}/{task}_train.jsonl',
                             evals=(f'{task}_sample={SAMPLES}/{task}_test.jsonl',))
  config.policy.name = 'bytes_tiny'
  config.policy.tokenizer = f'{SAMPLES}/bytes'
  config.warmstart.update(steps=80, batch=16, warmup_steps=10, learning_rate=4e-3)
  config.num_steps = 4
  config.prompts_per_step = 8
  config.samples_per_prompt = 4
  config.updates_per_step = 2
  config.micro_prompts = 4
  config.sampling.max_new_tokens = new_tokens
  config.sampling.prompt_buckets = buckets
  config.sampling.prompts_at_once = 4  # the first half is graded while the next decodes
  config.sampling.chunk = new_tokens
  config.objective.behavior = 'sampler'
  config.optimizer.learning_rate = 3e-4
  config.eval.update(every=2, problems=8, samples=4, final_samples=4, temperature=0.6)
  config.checkpoint.every = 2
  config.log.update(groups_every=2, groups=2)
  return config
