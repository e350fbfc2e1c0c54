"""From a configuration to the parts of a run, every value checked before any compile.

The only reader of the ConfigDict beside `train` and `main`: everything below takes
plain arguments or the frozen records made here.
"""

import dataclasses
import math
from typing import Any

import jax

from configs import models
from lpo_jax import (
  batches,
  checks,
  cores,
  evaluate,
  hosts,
  hub,
  images,
  microbatch,
  objective,
  offline,
  optimizer,
  policy,
  prompts,
  replay,
  resharding,
  rewards,
  rollout,
  roofline,
  sharding,
  step_level,
  tasks,
)
from lpo_jax import tokenizer as tokenizers

CHECKED = 1024  # training prompts held against the buckets before anything is compiled


@dataclasses.dataclass(frozen=True)
class Parts:
  """Everything a run is made of, ready to be compiled."""

  policy_config: policy.PolicyConfig
  weights: str  # local Hugging Face folder they come from; '' for none
  base_elsewhere: bool  # adapters on those weights: checkpoints need not hold them
  task: Any
  tokenizer: Any
  train_problems: Any
  described: dict[str, dict]  # the problem sets that were read: counts and hashes
  eval_sets: dict[str, Any]  # name -> tasks.base.EvalSet
  sampling: rollout.SamplingConfig
  eval_sampling: rollout.SamplingConfig
  reward: rewards.Weights
  evaluation: evaluate.EvalConfig  # as before the first step and after the last
  objective: objective.ObjectiveConfig
  optimizer: optimizer.OptimizerConfig
  warmstart: optimizer.OptimizerConfig | None
  update: microbatch.UpdateConfig
  staleness: replay.Staleness
  step_level: step_level.StepLevel | None
  lists: offline.Lists | None  # learned from instead of sampled groups
  mesh: jax.sharding.Mesh
  attention: str  # which implementation was chosen, and why: a sentence


def build(config) -> Parts:
  """Return the parts `config` asks for.

  Raises:
    ValueError: names the first value that cannot be, and the remedy.
  """
  parts = plan(config)
  tokenizer = _tokenizer(config, parts.weights, parts.policy_config.vocab_size)
  task, widest = _task(config), max(parts.sampling.prompt_buckets)
  processor = parts.sampling.processor
  task.restrict(
    lambda problem: len(prompts.tokens(problem, tokenizer, processor)) <= widest)
  train_problems = task.problems('train')
  eval_sets = evaluate.held_out(task, config.eval.problems, config.eval.shuffle_images)
  for problems in (*(held_out.problems for held_out in eval_sets.values()),
                   train_problems[:CHECKED]):  # or raise, now
    prompts.encode_text(problems, tokenizer, parts.sampling.prompt_buckets, processor)
  described = task.described()
  batches.check_task(parts, task, train_problems[0])
  if (lists := batches.lists(config, parts, tokenizer)) is not None:
    described = described | {'lists': lists.described}
  return dataclasses.replace(parts, task=task, tokenizer=tokenizer,
                             train_problems=train_problems, eval_sets=eval_sets,
                             described=described, lists=lists)


def plan(config, mesh=None) -> Parts:
  """Return the parts that programs are made of; task, tokenizer and problems are None.

  Args:
    config: of the run.
    mesh: concrete or abstract, of devices that need not be here; if None, the one that
      `config` asks for, of the local devices.

  Raises:
    ValueError: names the first value that cannot be, and the remedy.
  """
  checks.check(config)
  if mesh is None:
    mesh = sharding.make_mesh(tuple(config.mesh.shape), tuple(config.mesh.axes))
    hosts.check_mesh(mesh)
  updating, shards = update_config(config), sharding.batch_shards(mesh)
  size, samples = config.prompts_per_step, config.samples_per_prompt
  updating.check(size, samples, shards)
  at_once = config.sampling.prompts_at_once or size
  if size % at_once or at_once % shards:
    raise ValueError(f'sampling.prompts_at_once={at_once} must divide prompts_per_step='
                     f'{size} and split over the {shards} batch shards of the mesh')
  objective_config = _objective(config)
  objective.build(objective_config, samples)
  weights = hub.resolve(config.policy.path) if config.policy.path else ''
  platform = policy.platform_of(mesh)
  policy_config, attention = _policy(config, weights, platform)
  sharding.check_policy(mesh, size, policy_config)
  staleness = replay.Staleness(
    config.async_rollouts, config.replay.fraction, config.replay.capacity,
    config.replay.max_age, config.replay.min_ess)
  staleness.check(size, samples, updating.behavior, shards,
                  config.sampling.prompts_at_once, policy_config.vision is not None)
  level = step_level.plan(
    config.step_level.fraction, config.step_level.prefix, size,
    config.sampling.max_new_tokens, config.sampling.prompts_at_once, shards)
  least = math.gcd(at_once, level.local if level else staleness.past(size))
  sampling_shape = config.sampling.copy_weights and resharding.layout(
    tuple(config.mesh.sampling_shape), mesh, least, samples, policy_config, platform,
    apart=config.mesh.sampling_devices == 'others') or ()
  processor = _processor(config, policy_config, weights)
  elsewhere = policy_config.lora and weights and not (config.init_from
                                                      or config.warmstart.steps)
  return Parts(
    policy_config=policy_config, weights=weights, base_elsewhere=bool(elsewhere),
    task=None, tokenizer=None, train_problems=None, described={}, eval_sets=None,
    sampling=_sampling(config, config.sampling.temperature, processor, sampling_shape),
    eval_sampling=_sampling(config, config.eval.temperature, processor, sampling_shape),
    reward=_reward(config),
    evaluation=evaluate.EvalConfig(config.eval.samples, config.eval.final_samples,
                                   tuple(config.eval.pass_at), config.prompts_per_step),
    objective=objective_config, optimizer=_optimizer(config),
    warmstart=_warmstart(config), update=updating, staleness=staleness,
    step_level=level, lists=None, mesh=mesh, attention=attention)


def setting(parts: Parts, prompts: int) -> roofline.Setting:
  """Return the plain numbers that decide what a step costs.

  Args:
    parts: of the run; prompts are taken to be as wide as the widest bucket.
    prompts: B.
  """
  cut, sampling = parts.update, parts.sampling
  begun = parts.step_level.prefix if parts.step_level else 0
  return roofline.Setting(
    policy=parts.policy_config, prompts=prompts, samples=sampling.samples_per_prompt,
    prompts_at_once=sampling.prompts_at_once, parked=sampling.parked,
    prompt_width=max(sampling.prompt_buckets) + begun, chunk=sampling.chunk,
    new_tokens=sampling.max_new_tokens, copy_weights=sampling.copy_weights,
    micro_prompts=cut.micro_prompts, micro_responses=cut.micro_responses,
    pack=cut.pack, logprob_chunk=cut.logprob_chunk,
    minibatches=cut.updates_per_step, epochs=cut.epochs,
    behavior_pass=parts.staleness.off_policy or (
      cut.behavior == 'learner' and cut.updates > 1),
    moment_dtype=parts.optimizer.moment_dtype, **parts.mesh.shape,
    sampling_mesh=sampling.mesh_shape, apart=sampling.apart,
    patches=max(sampling.processor.buckets) if sampling.processor else 0)


def update_config(config) -> microbatch.UpdateConfig:
  """Return how a batch is cut up for the update."""
  minibatch = config.prompts_per_step // max(config.updates_per_step, 1)
  return microbatch.UpdateConfig(
    updates_per_step=config.updates_per_step, epochs=config.epochs, pack=config.pack,
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
    temperature_end=temperature.end, entropy_bonus=config.objective.entropy_bonus,
    entropy_of=config.objective.entropy_of, alpha=config.objective.alpha,
    mix=config.objective.mix, mix_end=config.objective.mix_end,
    schedule=config.objective.schedule,
    schedule_steps=config.objective.schedule_steps, clip_low=config.objective.clip_low,
    clip_high=config.objective.clip_high, aggregation=config.objective.aggregation)


def _policy(config, weights: str, platform: str | None):
  """Return the sizes that the weights' folder states, or the preset's, and switches.

  And a sentence on the attention that was chosen for the platform.
  """
  name = config.policy.name
  if weights:
    found = policy.read_config(weights)
    policy.check(weights, found)
  elif name not in models.POLICIES:
    raise ValueError(
      f'policy.name={name!r}: choose one of {", ".join(models.POLICIES)}')
  else:
    found = models.POLICIES[name]
  found = dataclasses.replace(
    found, dtype=config.policy.dtype, param_dtype=config.policy.param_dtype,
    cache_dtype=config.policy.cache_dtype, remat=config.policy.remat,
    unroll=found.layers <= config.policy.unroll_layers,
    sequence_sharding=config.mesh.sequence_sharding, lora=_lora(config),
    vision=found.vision and dataclasses.replace(found.vision,
                                                frozen=config.policy.vision.frozen))
  attention, why = policy.choose_attention(config.policy.attention, found,
                                 config.sampling.max_new_tokens, platform)
  return dataclasses.replace(found, attention=attention), why


def _lora(config) -> policy.Lora | None:
  if config.policy.lora.rank == 0:
    return None
  return policy.Lora(config.policy.lora.rank, config.policy.lora.alpha,
                     tuple(config.policy.lora.targets))


def _task(config):
  """Return the task, told of the sandbox if it runs programs."""
  name, options = config.task.name, dict(config.task.options)
  if tasks.takes(name, 'sandbox'):
    options['sandbox'] = config.task.sandbox
  return tasks.get(name, **options)


def start_task(config, task) -> None:
  """Start the processes that judge, if the task's verdicts are costly.

  Raises:
    ValueError: verdicts cannot be given on this machine; says the remedy.
  """
  task.start(config.task.workers or cores.count(), config.task.deadline_s)


def _reward(config) -> rewards.Weights:
  return rewards.Weights(
    correct=config.task.reward.correct, format=config.task.reward.format,
    length=config.task.reward.length, full_length=config.task.reward.full_length)


def _tokenizer(config, weights: str, vocab_size: int):
  """Return the tokenizer, whose every id the policy must know."""
  name = config.policy.tokenizer or weights or 'countdown'
  tokenizer = tokenizers.get(name, config.policy.prompt_style)
  if tokenizer.vocab_size > vocab_size:
    owner = (f'policy.path={config.policy.path!r}' if weights
             else f'policy.name={config.policy.name!r}')
    raise ValueError(f'the tokenizer {name!r} has {tokenizer.vocab_size} tokens, but '
                     f'{owner} only vocab_size={vocab_size}: set policy.tokenizer to '
                     "the policy's own")
  return tokenizer


def _processor(config, policy_config: policy.PolicyConfig,
               weights: str) -> images.Processor | None:
  """Return what makes patches of images; pixel bounds: ours, else the folder's."""
  tower = policy_config.vision
  if tower is None:
    return None
  stated = images.read_config(weights) if weights else {}
  ours = {'min_pixels': config.policy.vision.min_pixels,
          'max_pixels': config.policy.vision.max_pixels}
  stated |= {key: value for key, value in ours.items() if value}
  return images.Processor(
    image_token=tower.image_token, patch_size=tower.patch_size,
    temporal_patch_size=tower.temporal_patch_size, merge_size=tower.merge_size,
    buckets=tuple(config.sampling.patch_buckets), **stated)


def _sampling(config, temperature: float, processor: images.Processor | None,
              mesh_shape: tuple[int, ...]) -> rollout.SamplingConfig:
  return rollout.SamplingConfig(
    samples_per_prompt=config.samples_per_prompt, temperature=temperature,
    max_new_tokens=config.sampling.max_new_tokens, top_k=config.sampling.top_k,
    top_p=config.sampling.top_p, chunk=config.sampling.chunk, processor=processor,
    prompts_at_once=config.sampling.prompts_at_once, parked=config.sampling.parked,
    prompt_buckets=tuple(config.sampling.prompt_buckets),
    unroll=config.sampling.unroll, copy_weights=config.sampling.copy_weights,
    mesh_shape=mesh_shape, apart=config.mesh.sampling_devices == 'others')


def _optimizer(config) -> optimizer.OptimizerConfig:
  return optimizer.OptimizerConfig(
    learning_rate=config.optimizer.learning_rate,
    warmup_steps=config.optimizer.warmup_steps, schedule=config.optimizer.schedule,
    decay_steps=config.optimizer.decay_steps,
    final_fraction=config.optimizer.final_fraction, b1=config.optimizer.b1,
    b2=config.optimizer.b2, eps=config.optimizer.eps,
    moment_dtype=config.optimizer.moment_dtype,
    weight_decay=config.optimizer.weight_decay, clip_norm=config.optimizer.clip_norm,
    vision_multiplier=config.optimizer.vision_multiplier)


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
