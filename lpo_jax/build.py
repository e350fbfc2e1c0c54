"""From a configuration to the parts of a run, every value checked before any compile.

The only reader of the ConfigDict beside `train` and `main`: everything below takes
plain arguments or the frozen records made here.
"""

import dataclasses
from typing import Any

import jax

from configs import base, models
from lpo_jax import (
  microbatch,
  objective,
  optimizer,
  policy,
  rollout,
  sharding,
  tasks,
  warmstart,
)
from lpo_jax import tokenizer as tokenizers

CHECKED = 1024  # training prompts held against the buckets before anything is compiled


@dataclasses.dataclass(frozen=True)
class Parts:
  """Everything a run is made of, ready to be compiled."""

  policy_config: policy.PolicyConfig
  task: Any
  tokenizer: Any
  train_problems: Any
  eval_problems: Any
  sampling: rollout.SamplingConfig
  eval_sampling: rollout.SamplingConfig
  objective: objective.ObjectiveConfig
  optimizer: optimizer.OptimizerConfig
  warmstart: optimizer.OptimizerConfig | None
  update: microbatch.UpdateConfig
  mesh: jax.sharding.Mesh


def build(config) -> Parts:
  """Return the parts `config` asks for.

  Raises:
    ValueError: names the first value that cannot be, and the remedy.
  """
  check(config)
  mesh = sharding.make_mesh(tuple(config.mesh.shape), tuple(config.mesh.axes))
  updating = update_config(config)
  updating.check(config.prompts_per_step, config.samples_per_prompt,
                 sharding.batch_shards(mesh))
  objective_config = _objective(config)
  objective.build(objective_config, config.samples_per_prompt)
  policy_config = _policy(config)
  sharding.check_divisible(mesh, {
    'batch': config.prompts_per_step, 'heads': policy_config.heads,
    'kv_heads': policy_config.kv_heads, 'mlp': policy_config.mlp_width,
    'embed': policy_config.width, 'vocab': policy_config.vocab_size})
  tokenizer = tokenizers.get(config.policy.tokenizer)
  if tokenizer.vocab_size > policy_config.vocab_size:
    raise ValueError(f'policy.tokenizer={config.policy.tokenizer!r} has '
                     f'{tokenizer.vocab_size} tokens, but policy.name='
                     f'{config.policy.name!r} only vocab_size='
                     f'{policy_config.vocab_size}')
  task = tasks.get(config.task.name, **config.task.options)
  sampling = _sampling(config, config.sampling.temperature)
  train_problems, eval_problems = task.problems('train'), task.problems('test')
  eval_problems = eval_problems[:config.eval.problems]
  for problems in (eval_problems, train_problems[:CHECKED]):  # or raise, now
    rollout.encode(problems, tokenizer, sampling.prompt_buckets)
  return Parts(
    policy_config=policy_config, task=task, tokenizer=tokenizer,
    train_problems=train_problems, eval_problems=eval_problems, sampling=sampling,
    eval_sampling=_sampling(config, config.eval.temperature),
    objective=objective_config, optimizer=_optimizer(config),
    warmstart=_warmstart(config), update=updating, mesh=mesh)


def check(config) -> None:
  """Raise a ValueError for values that no part below would refuse."""
  for field, value in _fields(config):
    if value is None and field not in base.OPTIONAL:
      raise ValueError(f'{field}=None: give it a value; only '
                       f'{", ".join(base.OPTIONAL)} may be None')
  for name, least in (('num_steps', 0), ('prompts_per_step', 1),
                      ('samples_per_prompt', 1), ('seed', 0), ('micro_prompts', 0)):
    if config[name] < least:
      raise ValueError(f'{name}={config[name]}: must be at least {least}')
  for section, name in (('eval', 'every'), ('eval', 'samples'), ('eval', 'problems'),
                        ('eval', 'final_samples'), ('checkpoint', 'every'),
                        ('checkpoint', 'keep'), ('log', 'groups_every'),
                        ('sampling', 'max_new_tokens')):
    if config[section][name] < 1:
      raise ValueError(f'{section}.{name}={config[section][name]}: must be at least 1')
  top_k, top_p = config.sampling.top_k, config.sampling.top_p
  if (top_k > 0 or top_p < 1) and not config.sampling.allow_truncated:
    raise ValueError(
      f'sampling.top_k={top_k}, sampling.top_p={top_p}: '
      'a truncated pi_b is not the policy that learns; set top_k=0 and top_p=1, or '
      'sampling.allow_truncated=True')
  if config.samples_per_prompt == 1 and config.objective.skip_flat_groups:
    raise ValueError('samples_per_prompt=1 with objective.skip_flat_groups=True would '
                     'skip every group; set objective.skip_flat_groups=False')
  if config.sampling.temperature <= 0:
    raise ValueError(f'sampling.temperature={config.sampling.temperature}: must be > 0 '
                     'to train; only eval.temperature may be 0')


def _fields(config, prefix: str = ''):
  """Yield every field's dotted name and value; a task's options are its own."""
  for name, value in config.items():
    if hasattr(value, 'items'):
      if name != 'options':
        yield from _fields(value, f'{prefix}{name}.')
    else:
      yield prefix + name, value


def update_config(config) -> microbatch.UpdateConfig:
  """Return how a batch is cut up for the update."""
  minibatch = config.prompts_per_step // max(config.updates_per_step, 1)
  return microbatch.UpdateConfig(
    updates_per_step=config.updates_per_step, epochs=config.epochs,
    micro_prompts=config.micro_prompts or minibatch,
    micro_responses=config.micro_responses, temperature=config.sampling.temperature,
    logprob_chunk=config.objective.logprob_chunk, behavior=config.objective.behavior,
    skip_flat_groups=config.objective.skip_flat_groups)


def _objective(config) -> objective.ObjectiveConfig:
  temperature = config.objective.temperature
  return objective.ObjectiveConfig(
    name=config.objective.name, score=config.objective.score,
    token_clip=config.objective.token_clip,
    temperature_rule=temperature.rule, temperature_value=temperature.value,
    alpha=config.objective.alpha, clip_low=config.objective.clip_low,
    clip_high=config.objective.clip_high, aggregation=config.objective.aggregation)


def _policy(config) -> policy.PolicyConfig:
  name = config.policy.name
  if name not in models.POLICIES:
    raise ValueError(
      f'policy.name={name!r}: choose one of {", ".join(models.POLICIES)}')
  return dataclasses.replace(
    models.POLICIES[name], dtype=config.policy.dtype,
    param_dtype=config.policy.param_dtype, remat=config.policy.remat)


def _sampling(config, temperature: float) -> rollout.SamplingConfig:
  return rollout.SamplingConfig(
    samples_per_prompt=config.samples_per_prompt, temperature=temperature,
    max_new_tokens=config.sampling.max_new_tokens, top_k=config.sampling.top_k,
    top_p=config.sampling.top_p, chunk=config.sampling.chunk,
    prompt_buckets=tuple(config.sampling.prompt_buckets),
    unroll=config.sampling.unroll)


def _optimizer(config) -> optimizer.OptimizerConfig:
  return optimizer.OptimizerConfig(
    learning_rate=config.optimizer.learning_rate,
    warmup_steps=config.optimizer.warmup_steps, schedule=config.optimizer.schedule,
    decay_steps=config.optimizer.decay_steps,
    final_fraction=config.optimizer.final_fraction, b1=config.optimizer.b1,
    b2=config.optimizer.b2, eps=config.optimizer.eps,
    weight_decay=config.optimizer.weight_decay, clip_norm=config.optimizer.clip_norm)


def _warmstart(config) -> optimizer.OptimizerConfig | None:
  if not config.warmstart.steps:
    return None
  if config.init_from:
    raise ValueError(f'init_from={config.init_from!r} and warmstart.steps='
                     f'{config.warmstart.steps}: a run starts from one or the other; '
                     'set warmstart.steps=0')
  return optimizer.OptimizerConfig(
    learning_rate=config.warmstart.learning_rate,
    warmup_steps=config.warmstart.warmup_steps, schedule='cosine',
    decay_steps=config.warmstart.steps, b2=config.warmstart.b2,
    weight_decay=config.warmstart.weight_decay, clip_norm=config.warmstart.clip_norm)


def warmstart_batch(config, parts: Parts, step: int):
  """Return the demonstrations of one warm-start step, from a stream of their own."""
  stream = int(jax.random.bits(jax.random.fold_in(jax.random.key(config.seed), 1)))
  indices = tasks.base.problem_indices(len(parts.train_problems), stream, step,
                                       config.warmstart.batch)
  return warmstart.demonstrations(
    [parts.train_problems[int(i)] for i in indices], parts.task, parts.tokenizer,
    parts.sampling.prompt_buckets, parts.sampling.max_new_tokens)
