"""Tokens per second of the sampler, beside transformers' `generate` and tunix's.

python -m benchmarks.rollout [--shape=W1,W2] [--tunix_python=PYTHON] [--reps=5]
    [--json=FILE]

All sample B prompts x K responses of exactly N tokens at temperature 1, with no stop
token, from a random policy of one shape in float32; `lpo_jax` and tunix return every
token's log-probability too. transformers needs `pip install torch`, tunix an
interpreter that has it; what is absent is said. Sampled tokens count, prompts do not.
"""

import dataclasses
import itertools

from benchmarks import peers, processes, shapes, timing


def main() -> None:
  """Time what the command line asks for."""
  parser = timing.parser(__doc__, {
    'chunk': ('32,64,128', 'tokens between two growths of our cache'),
    'cache': ('dynamic,static', 'key-value cache of generate')})
  parser.add_argument('--tunix_python', default='', help='interpreter that has tunix')
  args = parser.parse_args()

  def contest(name: str):
    shape, policy = shapes.SHAPES[name], shapes.policy_config(name)
    fields = dataclasses.asdict(policy)
    batch, samples, width, new = shape
    rows = batch * samples
    decode = shapes.forward_flops(policy, rows, width, new - 1, new - 1)
    prefill = shapes.forward_flops(policy, 1, 0, width, 1)
    chunks = sorted({min(int(chunk), new) for chunk in args.chunk.split(',')})
    entries = [
      processes.Entry(processes.OURS, f'chunk={chunk}', ours, (shape, fields, chunk),
                      batch * prefill + decode) for chunk in chunks]
    entries += [
      processes.Entry('transformers generate', f'{cache} cache', theirs,
                      (shape, fields, cache), rows * prefill + decode)
      for cache in args.cache.split(',')]
    if args.tunix_python:
      entries.append(processes.Entry(
        'tunix Sampler', 'vanilla', peers.tunix_rollout, (shape, fields),
        rows * prefill + decode, args.tunix_python))
    return rows * new, entries

  timing.run('rollout', args, contest, absent=[] if args.tunix_python else ['tunix'])


def ours(shape: shapes.Shape, fields: dict, chunk: int):
  """Build our sampler; each side is imported in its own process only."""
  import jax
  import numpy as np

  from lpo_jax import sampler, sharding

  prompts, samples, _, new = shape
  policy, mesh = shapes.to_sample(fields, new, prompts, samples)
  prompt, _ = shapes.batch(shape, policy.config.vocab_size)
  prompt, mask = sharding.shard_batch((prompt, np.ones(prompt.shape, bool)), mesh)
  seeds = itertools.count()

  def once():
    with jax.set_mesh(mesh):
      return jax.block_until_ready(sampler.sample(
        policy, prompt, mask, jax.random.key(next(seeds)), samples_per_prompt=samples,
        max_new_tokens=new, chunk=chunk, unroll=policy.config.unroll))

  def check(rollouts):
    assert rollouts.response_mask.shape == (*shape[:2], new)
    assert rollouts.response_mask.all(), 'a response is shorter than asked for'
    assert (np.asarray(rollouts.logprobs) < 0).all()

  return once, check


def theirs(shape: shapes.Shape, fields: dict, cache: str):
  """Build transformers' generate, with the settings TRL's GRPOTrainer gives it."""
  import torch

  batch, samples, width, new = shape
  policy = shapes.torch_policy(fields, longest=width + new).eval()
  prompt = torch.from_numpy(shapes.batch(shape, fields['vocab_size'])[0]).long()
  prompt = prompt.to(policy.device)
  static = {'cache_implementation': 'static'} if cache == 'static' else {}

  def once():
    with torch.inference_mode():
      found = policy.generate(
        input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=True,
        temperature=1.0, top_p=1.0, top_k=0, repetition_penalty=1.0,
        num_return_sequences=samples, max_new_tokens=new, eos_token_id=None,
        pad_token_id=0, disable_compile=True, **static)
    if policy.device.type == 'cuda':
      torch.cuda.synchronize()
    return found

  def check(sequences):
    assert sequences.shape == (batch * samples, width + new), sequences.shape

  return once, check


if __name__ == '__main__':
  main()
