"""Tokens per second of one update, beside a plain torch update of the same policy.

python -m benchmarks.update [--shape=W1,W2] [--devices=1] [--teams=1] [--json=FILE]

Both take one AdamW step, behind a clip of the gradient's norm, on B prompts x K
responses of N tokens, accumulating the gradient over microbatches, in float32: we with
LPO (forward KL, token clip 0.2), torch with GRPO's clipped loss. The peer needs
`pip install torch`; without it only our rows are printed. B K (P + N) tokens count on
both sides, although we compute each prompt once for its K responses. With --teams=2
both sides also run as two processes, each on a core, that add up their gradients.
"""

import dataclasses

from benchmarks import processes, shapes, timing

LEARNING_RATE = 1e-4
TOKEN_CLIP = 0.2
CLIP_NORM = 1.0
LARGE_VOCABULARY, LOGPROB_CHUNK = 4096, 128  # from here on, so many logits at once


def main() -> None:
  """Time what the command line asks for."""
  args = timing.parser(__doc__, {
    'micro_prompts': ('1,2', 'groups to a microbatch of ours'),
    'devices': ('1', 'devices that share each of our microbatches; a CPU shows one '
                'a core'),
    'teams': ('1', 'processes of ours, and of torch, that share an update, each on '
              'a core'),
    'torch_micro': ('4,8,16', 'sequences to a microbatch of torch')}).parse_args()
  teams = [team for team in _numbers(args.teams) if team > 1]
  if max(teams, default=0) > len(processes.cores()):
    raise SystemExit(f'--teams={args.teams}: processes can be kept on '
                     f'{len(processes.cores())} cores here; ask for no more')

  def contest(name: str):
    shape, policy = shapes.SHAPES[name], shapes.policy_config(name)
    fields = dataclasses.asdict(policy)
    batch, samples, width, new = shape
    rows = batch * samples
    shared = (shapes.forward_flops(policy, batch, 0, width, 0)
              + shapes.forward_flops(policy, rows, width, new, new))
    whole = shapes.forward_flops(policy, rows, 0, width + new, new + 1)
    ways = [(devices, 1) for devices in _numbers(args.devices)]  # devices, processes
    ways += [(team, team) for team in teams]
    entries = [
      _entry(processes.OURS, f'micro_prompts={micro}' + over(devices // team), ours,
             (shape, fields, micro, devices), 3 * shared, team)
      for micro in divisors(args.micro_prompts, batch)
      for devices, team in ways if micro % devices == 0]
    if not entries:
      raise SystemExit(f'none of --micro_prompts={args.micro_prompts} splits over '
                       f'--devices={args.devices} or --teams={args.teams}')
    entries += [
      _entry('torch', f'{micro} sequences', theirs, (shape, fields, micro), 3 * whole,
             team) for team in [1, *teams]
      for micro in divisors(args.torch_micro, rows // team)]
    return rows * (width + new), entries

  timing.run('update', args, contest)


def _entry(side: str, setting: str, build, args: tuple, flops: float,
           team: int) -> processes.Entry:
  """Return an entry; a team's is a side of its own."""
  side += f', {team} processes' if team > 1 else ''
  return processes.Entry(side, setting, build, args, flops, processes=team)


def over(devices: int) -> str:
  """Return what a setting says of its devices."""
  return f', {devices} devices' if devices > 1 else ''


def _numbers(values: str) -> list[int]:
  return [int(value) for value in values.split(',')]


def divisors(values: str, whole: int) -> list[int]:
  """Return the values that divide `whole`, at least 1 of them."""
  found = [value for value in _numbers(values) if whole % value == 0]
  if not found:
    raise SystemExit(f'none of {values} divides {whole}')
  return found


def program(shape: shapes.Shape, fields: dict, micro_prompts: int, pack: int = 1,
            devices: int = 1):
  """Return our update, as `train` compiles it, and a fresh TrainState.

  Args:
    shape: of the batch.
    fields: of the PolicyConfig.
    micro_prompts: groups to a microbatch.
    pack: see `microbatch.UpdateConfig`.
    devices: of the mesh on which it is called.
  """
  import jax
  import jax.numpy as jnp

  from lpo_jax import (
    compilation,
    cores,
    microbatch,
    objective,
    optimizer,
    types,
    update,
  )
  from lpo_jax import policy as policies

  config = shapes.our_config(fields, shape.new_tokens)
  chunk = LOGPROB_CHUNK if config.vocab_size > LARGE_VOCABULARY else 0
  settings = optimizer.OptimizerConfig(learning_rate=LEARNING_RATE, clip_norm=CLIP_NORM)
  transform = optimizer.build(settings)
  step = jax.jit(update.make_update(
    objective.build(objective.ObjectiveConfig('lpo_fwd', token_clip=TOKEN_CLIP),
                    shape.samples),
    transform, optimizer.schedule(settings),
    microbatch.UpdateConfig(micro_prompts=micro_prompts, pack=pack,
                            logprob_chunk=chunk)),
    donate_argnums=0, compiler_options=compilation.of_an_update(
      jax.default_backend(), cores.are_devices(devices)))
  params = jax.jit(lambda key: policies.Policy(config, key))(jax.random.key(0))
  return step, types.TrainState(jnp.int32(0), params, transform.init(params),
                                jnp.int32(0))


def groups(shape: shapes.Shape, vocab_size: int, lengths=None):
  """Return random verified rollouts on the device, of all N tokens or of `lengths`."""
  import jax
  import numpy as np

  from lpo_jax import types

  prompt, response = shapes.batch(shape, vocab_size)
  rewards = np.random.default_rng(2).integers(0, 2, response.shape[:2])
  lengths = np.full(rewards.shape, shape.new_tokens) if lengths is None else lengths
  return jax.device_put(types.Groups(
    types.Rollouts(prompt, np.ones(prompt.shape, bool), response,
                   np.arange(shape.new_tokens) < lengths[..., None],
                   np.zeros(response.shape, np.float32)),
    rewards.astype(np.float32), np.zeros(rewards.shape, np.float32),
    np.ones(len(prompt), bool)))


def repeated(step, state, batch):
  """Return what takes one more step from where the last one ended, for its metrics."""
  import jax

  def once():
    nonlocal state
    state, metrics, _ = jax.block_until_ready(step(state, batch))
    return metrics

  return once


def check_taken(metrics) -> None:
  """Assert that an update's step was taken."""
  assert float(metrics['actor/useful_frac']) == 1, 'the update was skipped'


def ours(shape: shapes.Shape, fields: dict, micro_prompts: int, devices: int = 1,
         member: processes.Member | None = None):
  """Build our update; each side is imported in its own process only."""
  import jax

  from lpo_jax import hosts, sharding

  if member:
    hosts.join(member.address, member.count, member.index)
  mesh = sharding.make_mesh((devices, 1, 1))
  hosts.check_mesh(mesh)
  step, state = program(shape, fields, micro_prompts, devices=devices)
  taken = repeated(step, jax.device_put(state, sharding.replicated(mesh)),
                   hosts.place(groups(shape, fields['vocab_size']), mesh))

  def once():
    with jax.set_mesh(mesh):
      return taken()

  def check(metrics):
    check_taken(metrics)
    assert float(metrics['response_length/mean']) == shape.new_tokens

  return once, check


def theirs(shape: shapes.Shape, fields: dict, micro: int,
           member: processes.Member | None = None):
  """Build the torch update: fused AdamW, fused attention, only the needed logits."""
  import torch

  batch, samples, width, new = shape
  rows = batch * samples
  policy = shapes.torch_policy(fields, longest=width + new).train()
  optimizer = torch.optim.AdamW(policy.parameters(), lr=LEARNING_RATE, fused=True)
  prompt, response = map(torch.from_numpy, shapes.batch(shape, fields['vocab_size']))
  sequences = torch.cat([prompt.repeat_interleave(samples, 0),
                         response.reshape(rows, new)], 1).long().to(policy.device)
  advantages = torch.randn(rows, 1, generator=torch.Generator().manual_seed(2))
  advantages = advantages.to(policy.device)
  if member:
    torch.distributed.init_process_group('gloo', f'tcp://{member.address}',
                                         rank=member.index, world_size=member.count)
    sequences, advantages = (x[member.index::member.count]
                             for x in (sequences, advantages))

  def once():
    optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for part, advantage in zip(sequences.split(micro), advantages.split(micro),
                               strict=True):
      logits = policy(input_ids=part, logits_to_keep=new + 1, use_cache=False).logits
      logprobs = torch.log_softmax(logits[:, :-1], -1).gather(
        2, part[:, width:, None])[..., 0]
      ratio = torch.exp(logprobs - logprobs.detach())
      clipped = ratio.clamp(1 - TOKEN_CLIP, 1 + TOKEN_CLIP)
      loss = -torch.minimum(ratio * advantage, clipped * advantage).mean()
      (loss * (micro / rows)).backward()
      total = total + loss.detach()
    if member:
      _add_up([parameter.grad for parameter in policy.parameters()])
    torch.nn.utils.clip_grad_norm_(policy.parameters(), CLIP_NORM)
    optimizer.step()
    if policy.device.type == 'cuda':
      torch.cuda.synchronize()
    return logprobs, total

  def check(result):
    logprobs, total = result
    assert logprobs.shape == (micro, new) and torch.isfinite(total)

  return once, check


def _add_up(grads: list) -> None:
  """Add up a torch team's gradients, as one message."""
  import torch

  whole = torch.cat([grad.view(-1) for grad in grads])
  torch.distributed.all_reduce(whole)
  sizes = [grad.numel() for grad in grads]
  for grad, total in zip(grads, whole.split(sizes), strict=True):
    grad.copy_(total.view_as(grad))


if __name__ == '__main__':
  main()
