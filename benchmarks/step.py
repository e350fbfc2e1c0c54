"""Seconds of one whole step, rollout, verdicts and update, beside TRL's and tunix's.

python -m benchmarks.step [--shape=W1] [--trl_python=PYTHON] [--tunix_python=PYTHON]

A step samples B prompts x K responses of exactly N tokens at temperature 1, decodes
them to text, judges the text, and takes one AdamW step behind a clip of the gradient's
norm: we with LPO (forward KL, token clip 0.2), the peers with GRPO's clipped loss and
no reference policy. Each peer runs in the interpreter that has it (`pip install trl`;
`pip install google-tunix`); one that is not named is said to be absent. B K N sampled
tokens count.
"""

import dataclasses
import sys

from benchmarks import peers, processes, shapes, timing, update


def main() -> None:
  """Time what the command line asks for."""
  parser = timing.parser(__doc__, {
    'micro_prompts': ('1,2', 'groups to a microbatch of ours'),
    'devices': ('1', 'devices that share our batch and each microbatch'),
    'chunk': ('32,128', 'tokens between two growths of our cache'),
    'trl_micro': ('8,16', 'sequences to a microbatch of TRL'),
    'tunix_micro': ('1,16', 'groups to a microbatch of tunix')}, shape='W1')
  for peer in peers.PEERS:
    parser.add_argument(f'--{peer}_python', default='',
                        help=f'interpreter that has {peer}')
  args = parser.parse_args()
  pythons = {peer: getattr(args, f'{peer}_python') for peer in peers.PEERS}
  for peer, python in pythons.items():
    if not python:
      print(f'{peer} is absent: name its interpreter with --{peer}_python',
            file=sys.stderr)

  def contest(name: str):
    shape, policy = shapes.SHAPES[name], shapes.policy_config(name)
    fields = dataclasses.asdict(policy)
    work = flops(policy, shape)
    entries = [
      processes.Entry(
        processes.OURS, f'micro_prompts={micro}, chunk={chunk}' + update.over(devices),
        ours, (shape, fields, micro, chunk, devices), work)
      for micro in update.divisors(args.micro_prompts, shape.prompts)
      for chunk in sorted({min(int(c), shape.new_tokens)
                           for c in args.chunk.split(',')})
      for devices in map(int, args.devices.split(',')) if micro % devices == 0]
    wholes = {'trl': shape.prompts * shape.samples, 'tunix': shape.prompts}
    for peer, (label, build) in peers.PEERS.items():
      if pythons[peer]:
        entries += [
          processes.Entry(label, f'microbatch={micro}', build, (shape, fields, micro),
                          flops(policy, shape, shared=False), pythons[peer])
          for micro in update.divisors(getattr(args, f'{peer}_micro'), wholes[peer])]
    return shape.prompts * shape.samples * shape.new_tokens, entries

  timing.run('step', args, contest, absent=[p for p in pythons if not pythons[p]])


def flops(policy, shape: shapes.Shape, shared: bool = True) -> float:
  """Return the operations of a step; `shared`: the prompt once for K responses."""
  batch, samples, width, new = shape
  rows, prompts = batch * samples, batch if shared else batch * samples
  prompt = shapes.forward_flops(policy, prompts, 0, width, 1)
  decode = shapes.forward_flops(policy, rows, width, new - 1, new - 1)
  learn = (shapes.forward_flops(policy, prompts, 0, width, 0)
           + shapes.forward_flops(policy, rows, width, new, new))
  return prompt + decode + 3 * learn


def ours(shape: shapes.Shape, fields: dict, micro_prompts: int, chunk: int,
         devices: int = 1):
  """Build our step: `rollout.collect` and the update, as `train` calls them.

  Several devices split the batch, and each has the whole policy.
  """
  import itertools

  import jax

  from lpo_jax import phases, policy, problem, resharding, rollout, sharding

  batch, samples, width, new = shape
  mesh = sharding.make_mesh((devices, 1, 1))
  texts = shapes.prompts(shape, fields['vocab_size'])
  problems = [problem.Problem(text, '', str(i)) for i, text in enumerate(texts)]
  sampling = rollout.SamplingConfig(
    samples_per_prompt=samples, max_new_tokens=new, chunk=chunk,
    prompt_buckets=(width,), unroll=fields['unroll'], mesh_shape=resharding.layout(
      (), mesh, batch, samples, shapes.our_config(fields, new),
      policy.platform_of(mesh)))
  step, state = update.program(shape, fields, micro_prompts, devices=devices)
  state = jax.device_put(state, sharding.replicated(mesh))
  task, tokenizer = _task(), shapes.Words(fields['vocab_size'])
  clock, seeds = phases.Phases(None), itertools.count()

  def once():
    nonlocal state
    with jax.set_mesh(mesh):
      groups, graded = rollout.collect(
        state.params, problems, jax.random.key(next(seeds)), task, tokenizer, sampling,
        mesh, clock)
      state, metrics, _ = jax.block_until_ready(step(state, groups))
    return graded, metrics

  def check(result):
    graded, metrics = result
    assert graded.rewards.shape == (batch, samples)
    assert {len(text.split()) for row in graded.texts for text in row} == {new}
    update.check_taken(metrics)

  return once, check


def _task():
  """Return the task whose verdict all sides share."""
  from lpo_jax.tasks import base

  class Coin(base.Task):
    name = 'coin'

    def verify(self, problem, response_text):
      return shapes.verdict(response_text)

    def answer(self, problem, response_text):
      return response_text

  return Coin()


if __name__ == '__main__':
  main()
