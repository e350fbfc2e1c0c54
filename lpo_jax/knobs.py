"""Which settings would save memory, and what they cost, where a step does not fit.

Every alternative is one flag; its effect is the difference of two estimates of
`roofline`: bytes on a device in the fullest phase, and predicted seconds of a step.
"""

import dataclasses

from lpo_jax import footprint, roofline
from lpo_jax.policy import Lora


def best(setting: roofline.Setting, chip, count: int = 3) -> list[dict]:
  """Return the settings that would save most memory, by the estimate.

  Each has `set` (the flag), `saves` (bytes on a device) and `slower`, the predicted
  seconds of a step with it over those without (None without a chip).
  """
  now = max(sizes['total'] for sizes in footprint.memory(setting).values())
  before = roofline.step(setting, chip)['step']['total'] if chip else None
  found = []
  for flags, changed in _alternatives(setting):
    size = max(sizes['total'] for sizes in footprint.memory(changed).values())
    after = roofline.step(changed, chip)['step']['total'] if chip else None
    found.append({'set': flags, 'saves': now - size,
                  'slower': after / before if chip else None})
  return sorted(found, key=lambda knob: -knob['saves'])[:count]


def _alternatives(s: roofline.Setting):
  """Yield flags and the setting they would make."""
  def changed(**fields):
    return dataclasses.replace(s, **fields)

  def policy(**fields):
    return changed(policy=dataclasses.replace(s.policy, **fields))

  if s.micro_prompts > s.shards:
    yield f'--config.micro_prompts={s.shards}', changed(micro_prompts=s.shards)
  if s.responses > 1:
    yield '--config.micro_responses=1', changed(micro_responses=1)
  if s.policy.remat != 'full':
    yield '--config.policy.remat=full', policy(remat='full')
  if not 0 < s.logprob_chunk <= 128:
    yield '--config.objective.logprob_chunk=128', changed(logprob_chunk=128)
  if s.policy.param_dtype == 'float32':
    yield '--config.policy.param_dtype=bfloat16', policy(param_dtype='bfloat16')
  if s.policy.lora is None:
    yield '--config.policy.lora.rank=16', policy(lora=Lora(rank=16))
  if s.moment_dtype == 'float32':
    yield '--config.optimizer.moment_dtype=bfloat16', changed(moment_dtype='bfloat16')
  if s.data > 1:
    fsdp = s.data * s.fsdp
    yield (f'--config.mesh.shape=1,{fsdp},{s.tensor}', changed(data=1, fsdp=fsdp))
  if s.tensor > 1 and not s.policy.sequence_sharding:
    yield '--config.mesh.sequence_sharding=True', policy(sequence_sharding=True)
  if roofline.copy_bytes(s):
    yield '--config.sampling.copy_weights=False', changed(copy_weights=False)
  if s.parked and s.at_once < s.prompts:
    yield '--config.sampling.parked=0', changed(parked=0.0)
  if s.at_once % (2 * s.shards) == 0:
    half = s.at_once // 2
    yield f'--config.sampling.prompts_at_once={half}', changed(prompts_at_once=half)
  if s.prompts % (2 * s.minibatches * s.shards) == 0:
    half, micro = s.prompts // 2, s.prompts // 2 // s.minibatches
    yield (f'--config.prompts_per_step={half}',
           changed(prompts=half, prompts_at_once=min(half, s.at_once),
                   micro_prompts=min(micro, s.micro_prompts)))
  if s.new_tokens > 1:
    yield (f'--config.sampling.max_new_tokens={s.new_tokens // 2}',
           changed(new_tokens=s.new_tokens // 2))
