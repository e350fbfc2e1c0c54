"""Which policy fits which machine, and how long a step takes at least: docs/scale.md.

python -m benchmarks.scale [--compile=POLICY/MACHINE/TASK,...] [--folder=docs]

Every backbone of configs/models.py x machine of configs/meshes.py, at the paper's batch
and lengths. Rows are estimated (`lpo_jax.roofline`) unless they have been compiled:
`--compile=qwen3_14b/v5p_64/math` compiles them (minutes each; needs libtpu) and keeps
each in FOLDER/scale.json as it is done, so that a run which is stopped goes on.
"""

import argparse
import json
import os
import pathlib

import jax

from configs import base, meshes, models
from lpo_jax import build, footprint, hardware, roofline
from lpo_jax.hardware import GIB

# Policies that no machine minds.
SCRATCH = ('countdown_small', 'countdown_narrow', 'countdown_tiny', 'bytes_tiny',
           'figures_small', 'bench')
POLICIES = tuple(name for name in models.POLICIES if name not in SCRATCH)
MACHINES = tuple(name for name, machine in meshes.MESHES.items()
                 if machine.device != 'any')
TASKS = {  # the paper's: prompts a step, prompt width, response width
  'countdown': (128, 256, 1024),
  'math': (256, 1024, 4096),  # and Polaris
  'geometry3k': (128, 1024, 1024),
}
PATCHES = {'geometry3k': 2048}  # of a prompt's images: 512 of its tokens
# Of what the estimate leaves free, for what it does not count.
MARGIN = 0.9
RANK = 32  # of the adapters of a row that fits with nothing but adapters trained


def config_of(policy: str, machine: str, task: str, at_once: int = 0, rank: int = 0,
              copy: bool = True):
  """Return the configuration of a row.

  Args:
    policy: of POLICIES.
    machine: of MACHINES; one device stores weights and moments in bfloat16.
    task: of TASKS.
    at_once: prompts decoded at once; 0 for all.
    rank: of LoRA adapters on every matrix, in float32; 0 trains everything.
    copy: whether sampling reads a copy of the weights, where that differs.
  """
  config, (shape, device, _) = base.get_config(), meshes.MESHES[machine]
  batch, width, tokens = TASKS[task]
  config.prompts_per_step = batch
  config.sampling.prompts_at_once, config.sampling.parked = at_once, 0.0
  config.micro_prompts = shape[0] * shape[1]
  config.policy.update(name=policy, dtype='bfloat16', remat='full',
                       attention='pallas' if device.startswith('TPU') else 'cudnn')
  config.sampling.update(max_new_tokens=tokens, prompt_buckets=(width,), unroll=False)
  config.sampling.copy_weights = copy
  config.sampling.patch_buckets = (PATCHES.get(task, 4),)
  config.objective.logprob_chunk = 128
  config.mesh.shape = shape
  if rank:
    config.policy.lora.rank = rank
    config.policy.param_dtype = 'bfloat16'
  if config.micro_prompts * shape[2] == 1:
    config.policy.param_dtype = config.optimizer.moment_dtype = 'bfloat16'
    config.micro_responses = 2
  return config


def setting_of(config) -> roofline.Setting:
  """Return the plain numbers of a row; needs no devices."""
  mesh = jax.sharding.AbstractMesh(tuple(config.mesh.shape), tuple(config.mesh.axes))
  return build.setting(build.plan(config, mesh), config.prompts_per_step)


def estimate(policy: str, machine: str, task: str) -> dict:
  """Return a row by estimate: everything trained if that fits, else adapters.

  Sampling reads a copy of the weights unless a step is clearly faster without: the
  estimate lets every gather hide behind memory, which machines do not.
  """
  def rank_of(row):
    return not row['fits'], row['seconds']['step'] * (1.0 if row['copied'] else 1.01)

  rows = [min((_estimate(policy, machine, task, rank, copy) for copy in (True, False)),
              key=rank_of) for rank in (0, RANK)]
  return rows[0] if rows[0]['fits'] or not rows[1]['fits'] else rows[1]


def _estimate(policy: str, machine: str, task: str, rank: int, copy: bool) -> dict:
  """Return a row with as many prompts decoded at once as fit."""
  chip = hardware.chip(meshes.MESHES[machine].device)
  config = config_of(policy, machine, task)
  at_once, found = config.prompts_per_step, []
  while at_once >= config.micro_prompts:  # one prompt a shard of the batch
    setting = setting_of(config_of(policy, machine, task, at_once, rank, copy))
    phases = footprint.memory(setting)
    largest = max(phases, key=lambda name: phases[name]['total'])
    found.append({
      'how': 'estimated', 'rank': rank, 'at_once': at_once, 'phase': largest,
      'copied': roofline.copy_bytes(setting) > 0, 'limit': chip.memory,
      'total': phases[largest]['total'], 'seconds': {
        name: spent['total'] for name, spent in roofline.step(setting, chip).items()},
      'fits': phases[largest]['total'] <= MARGIN * chip.memory})
    if found[-1]['fits']:
      return found[-1]
    at_once //= 2
  return found[-1]


def compiled(policy: str, machine: str, task: str, at_once: int, rank: int,
             copy: bool) -> dict:
  """Return a row by compiling for the machine's topology."""
  from lpo_jax import ahead

  topology = meshes.MESHES[machine].topology
  if not topology:
    raise SystemExit(f'{machine} has no topology in configs/meshes.py: its rows can '
                     'only be estimated')
  found = ahead.examine(config_of(policy, machine, task, at_once, rank, copy),
                        ahead.described(topology))
  phases = found['phases']
  largest = max(phases, key=lambda name: phases[name]['total'])
  return {
    'how': 'compiled', 'rank': rank, 'at_once': at_once, 'copied': copy,
    'phase': largest,
    'limit': found['limit'],
    'total': phases[largest]['total'], 'fits': found['fits'],
    'seconds': {name: spent['total'] for name, spent in found['predicted_s'].items()},
    'kinds': phases, 'knobs': found['knobs'],
    'compile_s': {name: program['seconds']
                  for name, program in found['programs'].items()}}


def rows(cache: dict) -> dict:
  """Return every row by POLICY/MACHINE/TASK: compiled where the cache has it."""
  return {f'{policy}/{machine}/{task}':
          cache.get(f'{policy}/{machine}/{task}') or estimate(policy, machine, task)
          for task in TASKS for machine in MACHINES for policy in policies(task)}


def policies(task: str) -> list[str]:
  """Return the policies of a task: those that read images, or text only."""
  return [name for name in POLICIES
          if task not in TASKS or (models.POLICIES[name].vision is not None) == (
            task in PATCHES)]


def document(found: dict) -> str:
  """Return docs/scale.md."""
  lines = [_HEAD]
  for task, (batch, width, tokens) in TASKS.items():
    images = f' with images of {PATCHES[task]} patches' if task in PATCHES else ''
    lines += [f'## {task.capitalize()}: {batch} prompts x 8 responses, prompts of '
              f'{width}{images}, responses of {tokens} tokens', '']
    for machine in MACHINES:
      shape, device, _ = meshes.MESHES[machine]
      limit = hardware.chip(device).memory / GIB
      lines += [
        f'### {machine}: {device}, mesh {" x ".join(map(str, shape))}, '
        f'{limit:.1f} GiB a device', '',
        '| policy | fits | trained | at once | copied | GiB a device | fullest | '
        'sample, s | update, s | step, s | how |',
        '|---|---|---|---:|---|---:|---|---:|---:|---:|---|']
      lines += [_line(policy, found[f'{policy}/{machine}/{task}'])
                for policy in policies(task)]
      lines.append('')
  return '\n'.join(lines)


def _line(policy: str, row: dict) -> str:
  """Return a row of a table."""
  fits = 'yes' if row['fits'] else 'no'
  spent = row['seconds']
  sample = spent['step'] - spent['update']
  trained = f'LoRA {row["rank"]}' if row['rank'] else 'all'
  copied = 'yes' if row['copied'] else 'no'
  return (f'| {policy} | {fits} | {trained} | {row["at_once"]} | {copied} | '
          f'{row["total"] / GIB:.1f} | {row["phase"]} | {sample:.1f} | '
          f'{spent["update"]:.1f} | {spent["step"]:.1f} | {row["how"]} |')


_HEAD = f'''# What fits where

Made by `python -m benchmarks.scale`. `python -m lpo_jax.main --mode=compile` says the
same of any configuration.

- **fits**: the paper's batch, with **at once** prompts decoded at once
  (`sampling.prompts_at_once`): all of them where their keys and values fit, else the
  largest halving that does, down to one a batch shard, and no row waiting for others
  (`sampling.parked=0`).
- **copied**: sampling reads a copy of the weights, cast and gathered once a batch
  (`sampling.copy_weights`); `no` where none is needed, or where its memory costs more
  than it saves.
- **GiB a device**: in the fullest phase, the optimiser's state included. `compiled`
  rows are the TPU compiler's numbers; `estimated` ones are sums over shapes, which must
  stay below {MARGIN:.0%} of the device to count as fitting.
- **seconds** are the least a step can take: the largest of operations / peak, bytes /
  memory bandwidth and bytes / links, for prompts and responses of full length. Real
  steps are slower; responses that end early make them faster.
- **trained**: all weights where that fits; else adapters of that rank on every matrix
  (`policy.lora.rank`, `policy.param_dtype=bfloat16`) where those do.
- Setting: bfloat16 activations, float32 weights and moments, `policy.remat=full`, the
  attention kernel of the machine (`policy.attention`),
  `objective.logprob_chunk=128`, one prompt a batch shard in a microbatch,
  `sampling.unroll=False`. On one device: weights and moments in bfloat16 (rounded
  stochastically) and `micro_responses=2`.
'''


def main() -> None:
  """Compile what is asked for, then write the document."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--compile', default='', help='POLICY/MACHINE/TASK, comma-'
                      'separated; those in scale.json are not compiled again')
  parser.add_argument('--at_once', type=int, default=0, help='prompts decoded at once; '
                      '0 for as many as are estimated to fit')
  parser.add_argument('--folder', default='docs', help='of scale.md and scale.json')
  args = parser.parse_args()
  path = pathlib.Path(args.folder, 'scale.json')
  cache = json.loads(path.read_text()) if path.exists() else {}
  for name in filter(None, args.compile.split(',')):
    if name in cache:
      continue
    parts = name.split('/')
    known = (policies(parts[-1]), MACHINES, tuple(TASKS))
    if len(parts) != 3 or any(p not in k for p, k in zip(parts, known, strict=True)):
      raise SystemExit(f'--compile={name}: write POLICY/MACHINE/TASK, of '
                       f'{"; ".join(", ".join(k) for k in known)}')
    row = estimate(*parts)
    cache[name] = compiled(*parts, args.at_once or row['at_once'], row['rank'],
                           row['copied'])
    os.makedirs(args.folder, exist_ok=True)
    path.write_text(json.dumps(cache, indent=1) + '\n')
  pathlib.Path(args.folder, 'scale.md').write_text(document(rows(cache)))


if __name__ == '__main__':
  main()
