"""What a run says about itself in words: before it starts, and after its first step.

The batch table derives every count from the batch words; the memory estimate adds up
what must live on one device; the first-step check reads the first metrics and names
the flag to change when something is off.
"""

import math
from collections.abc import Sequence

from lpo_jax import build, footprint, roofline, sharding
from lpo_jax.hardware import GIB


def opening(parts: build.Parts, prompts: int) -> str:
  """Return the batch table, the memory estimate and the notices of a run.

  Args:
    parts: of the run.
    prompts: B.
  """
  samples, cut = parts.sampling.samples_per_prompt, parts.update
  table = batch_table(prompts, samples, cut.updates_per_step, cut.epochs,
                      cut.micro_prompts, cut.micro_responses, parts.mesh.size)
  lines = [f'the batch\n{table}', *map(problem_set, parts.described.items())]
  for phase, kinds in footprint.memory(build.setting(parts, prompts)).items():
    sizes = ', '.join(f'{kind} {size / GIB:.3f}' for kind, size in kinds.items())
    lines.append(f'memory on one device to {phase}, estimated GiB: {sizes}')
  if parts.policy_config.lora is not None:
    lora, base = parts.policy_config.lora, sum(roofline.parameters(parts.policy_config))
    lines.append(f'trained: adapters of rank {lora.rank} on {", ".join(lora.targets)}, '
                 f'{parts.policy_config.adapter_params:,} parameters on {base:,}')
  if parts.sampling.mesh_shape:
    sizes = ' x '.join(map(str, parts.sampling.mesh_shape))
    lines.append(f'sampling splits over {sizes} devices ({", ".join(sharding.AXES)})'
                 + ' that do not train' * parts.sampling.apart)
  lines += [parts.attention, *parts.staleness.describe(prompts)]
  lines += sharding.notices(parts.mesh, parts.policy_config.kv_heads)
  return '\n'.join(lines)


def problem_set(item: tuple[str, dict]) -> str:
  """Return a line on a problem set that was read: its name and what is known of it."""
  name, found = item
  dropped = ', '.join(f'{count} {why}' for why, count in found['dropped'].items())
  return (f'{name}: {found["problems"]} problems of {found["rows"]} rows of '
          f'{found["place"]} ({found["split"]}), dropped: {dropped or "none"}; sha256 '
          f'{found["sha256"][:16]}')


def batch_table(prompts: int, samples: int, updates_per_step: int, epochs: int,
                micro_prompts: int, micro_responses: int, devices: int) -> str:
  """Return the derived counts of one iteration, one a line."""
  minibatch = prompts // updates_per_step
  responses = micro_responses or samples
  rows = (
    ('prompts per step (B)', prompts),
    ('samples per prompt (K)', samples),
    ('responses per step (B x K)', prompts * samples),
    ('optimiser updates per step (E x minibatches)', epochs * updates_per_step),
    ('groups per minibatch', minibatch),
    ('microbatches per minibatch', minibatch // micro_prompts * (samples // responses)),
    ('responses per microbatch', micro_prompts * responses),
    ('devices', devices),
  )
  return '\n'.join(f'  {name:<46}{value:>8}' for name, value in rows)


def first_step(metrics: dict[str, float], prompt: str,
               texts: Sequence[str]) -> list[str]:
  """Return what the first iteration shows, in plain words, with the flag to change.

  Args:
    metrics: the first iteration's.
    prompt: one rendered prompt.
    texts: its responses.
  """
  flat = metrics.get('group/flat_frac', 0.0)
  cut = metrics.get('response_length/clip_ratio', 0.0)
  gap = metrics.get('mismatch/logp_abs_mean', 0.0)
  seen = (f'reward {metrics.get("reward/mean", 0.0):.3f}; {flat:.0%} of groups are '
          f'flat; {cut:.0%} of responses are cut')
  if not math.isnan(gap):  # where no group counts the learner looks at none
    seen += f'; sampler and learner differ by {gap:.1e} nats a token'
  lines = [f'prompt: {prompt!r}', f'a response: {texts[0]!r}', seen]
  if flat == 1.0:
    lines.append('every group is flat, so nothing can be learned: make problems easier '
                 '(config.task.options), warm-start longer '
                 '(config.warmstart.steps), or raise config.samples_per_prompt')
  elif flat > 0.8:
    lines.append('few groups inform: raise config.samples_per_prompt or warm-start '
                 'longer (config.warmstart.steps)')
  if cut == 1.0:
    lines.append('no response met a stop token: check config.policy.tokenizer, or '
                 'raise config.sampling.max_new_tokens')
  elif cut > 0.1:
    lines.append('many responses are cut: raise config.sampling.max_new_tokens')
  if gap > 0.02:
    lines.append('the sampler is not the learner: set config.policy.dtype=float32 or '
                 'keep config.objective.behavior=learner')
  return lines


def compiled(found: dict) -> str:
  """Return what `--mode=compile` found, for a terminal."""
  mesh = ' x '.join(f'{name} {size}' for name, size in found['mesh'].items())
  device = found['chip'] or found['device']
  lines = [f'{found["policy"]} on {found["devices"]} x {device} ({mesh})',
           *found['notices'], '', 'GiB on one device',
           ''.join(f'{name:>13}' for name in ('', *footprint.KINDS))]
  for name, sizes in found['phases'].items():
    cells = ''.join(f'{sizes[kind] / GIB:13.3f}' for kind in footprint.KINDS)
    refused = 'refused' in found['programs'].get(name, {})
    lines.append(f'{name:>13}{cells}' + (' at least: refused' if refused else ''))
  limit = found['limit']
  lines.append(f'{"limit":>13}{limit / GIB:65.3f}' if limit else
               'this device states no limit: whether it fits is not judged')
  lines += ['', *_prediction(found['predicted_s'], found['device'])]
  if found['fits'] is False:
    lines += ['', 'DOES NOT FIT. What would help most, estimated:']
    for knob in found['knobs']:
      slower = '' if knob['slower'] is None else f', step x {knob["slower"]:.2f}'
      lines.append(f'  {knob["set"]:<48} -{knob["saves"] / GIB:.2f} GiB{slower}')
  elif found['fits']:
    lines.append('fits')
  return '\n'.join(lines)


def _prediction(predicted: dict | None, device: str) -> list[str]:
  """Return the predicted seconds, a line a phase."""
  if not predicted:
    return [f'no prediction of time: {device!r} is not in lpo_jax/hardware.py']
  columns = ('flops', 'memory', 'links', 'total')
  lines = ['seconds a step needs at least, by what bounds it',
           ''.join(f'{name:>13}' for name in ('', *columns))]
  for name, spent in predicted.items():
    lines.append(f'{name:>13}' + ''.join(f'{spent[key]:13.3f}' for key in columns))
  return lines
