"""What a run says about itself in words: before it starts, and after its first step.

The batch table derives every count from the batch words; the memory estimate adds up
what must live on one device; the first-step check reads the first metrics and names
the flag to change when something is off.
"""

import math
from collections.abc import Sequence

import jax

from lpo_jax import build, sharding
from lpo_jax.policy import PolicyConfig

_BYTES = {'float32': 4, 'bfloat16': 2, 'float16': 2}


def opening(parts: build.Parts, prompts: int, params) -> str:
  """Return the batch table and the memory estimate of a run with B = `prompts`.

  Args:
    parts: of the run.
    prompts: B.
    params: the policy, abstract or real.
  """
  samples, cut = parts.sampling.samples_per_prompt, parts.update
  table = batch_table(prompts, samples, cut.updates_per_step, cut.epochs,
                      cut.micro_prompts, cut.micro_responses, parts.mesh.size)
  memory = memory_estimate(
    params, parts.policy_config, parts.mesh, rows=prompts * samples,
    tokens=max(parts.sampling.prompt_buckets) + parts.sampling.max_new_tokens,
    micro_rows=cut.micro_prompts * (cut.micro_responses or samples))
  sizes = ', '.join(f'{name} {size:.3f}' for name, size in memory.items())
  return f'the batch\n{table}\nmemory on one device, estimated GiB: {sizes}'


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


def memory_estimate(params, config: PolicyConfig, mesh: jax.sharding.Mesh, *,
                    rows: int, tokens: int, micro_rows: int) -> dict[str, float]:
  """Return estimated GiB on one device, by kind.

  Args:
    params: the policy, abstract or real.
    config: its sizes.
    mesh: what it is split over.
    rows: responses decoded at once.
    tokens: prompt and response positions of one response.
    micro_rows: responses in a microbatch.

  Returns:
    `params`, `moments`, `gradients`, `kv_cache`, `activations`, `total`.
  """
  placed = jax.tree.leaves(jax.tree.map(
    lambda leaf, where: math.prod(where.shard_shape(leaf.shape)) * leaf.dtype.itemsize,
    params, sharding.state_shardings(params, mesh)))
  weights, shards = sum(placed), sharding.batch_shards(mesh)
  width = _BYTES[config.dtype]
  cache = 2 * config.layers * config.kv_heads * config.head_dim * tokens * rows * width
  # A block without remat keeps about 12 D + 4 F numbers a token, with it only D.
  kept = config.width if config.remat == 'full' else (
    12 * config.width + 4 * config.mlp_width)
  scores = 4 * config.heads * tokens * tokens * (
    config.layers if config.remat == 'none' else 1)
  activations = micro_rows * (config.layers * kept * tokens * width + scores
                              + 8 * config.vocab_size * tokens)
  sizes = {'params': weights, 'moments': 2 * weights, 'gradients': weights,
           'kv_cache': cache / shards, 'activations': activations / shards}
  sizes['total'] = sum(sizes.values())
  return {name: size / 2**30 for name, size in sizes.items()}


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
  lines = [f'prompt: {prompt!r}', f'a response: {texts[0]!r}',
           f'reward {metrics.get("reward/mean", 0.0):.3f}; {flat:.0%} of groups are '
           f'flat; {cut:.0%} of responses are cut; sampler and learner differ by '
           f'{gap:.1e} nats a token']
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
