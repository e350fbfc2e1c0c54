"""The whole step, compiled for devices that need not be here: `--mode=compile`.

Sampler prefill, decode in the longest cache, and the update are lowered and compiled
from shapes alone; no array of the run is allocated. A TPU slice is described by
`jax.experimental.topologies` (libtpu, of the `tpu` extra). The compiler says what each
program holds on a device; `roofline` says how long it takes at least, and which
settings would save most where it does not fit.
"""

import functools
import json
import math
import os
import re
import sys
import time

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from configs import models
from lpo_jax import (
  briefing,
  build,
  checks,
  footprint,
  hardware,
  knobs,
  programs,
  resharding,
  roofline,
  sampler,
  sampler_programs,
  sharding,
)
from lpo_jax.hardware import GIB
from lpo_jax.types import Groups, Images, Rollouts

_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


def run(config, topology: str, folder: str, memory_gib: float = 0.0) -> int:
  """Compile, print what was found, write compile.json; return the exit status.

  Args:
    config: of the run; its task and tokenizer are not touched.
    topology: name of a TPU slice, `v5p:2x2x4`; '' for the devices that are here.
    folder: where compile.json goes.
    memory_gib: of a device, to hold the programs against; 0 for the chip's own.

  Raises:
    ValueError: names the value that cannot be, and the remedy.
  """
  devices = described(topology) if topology else jax.devices()
  config, said = _without_weights(config)
  config, chosen = _with_mesh(config, devices) if topology else (config, [])
  for line in (said := said + chosen):
    print(line, file=sys.stderr)
  found = examine(config, devices, memory_gib * GIB)
  found = {'topology': topology, **found}
  found['notices'] = said + found['notices']
  print(briefing.compiled(found))
  os.makedirs(folder, exist_ok=True)
  path = os.path.join(folder, 'compile.json')
  with open(path, 'w') as file:
    json.dump(found, file, indent=2)
  print(f'written: {path}')
  return 0 if found['fits'] is not False else 1


def described(topology: str) -> list:
  """Return the devices of a TPU slice that need not be here.

  Raises:
    ValueError: no such slice, or no libtpu.
  """
  # libtpu looks for the slice it is on; these answer it where there is none, and let
  # several processes compile at once.
  for name, value in (('TPU_SKIP_MDS_QUERY', '1'), ('TPU_ACCELERATOR_TYPE', 'v5p-8'),
                      ('TPU_WORKER_HOSTNAMES', 'localhost'),
                      ('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')):
    os.environ.setdefault(name, value)
  jax.config.update('jax_platforms', 'cpu')  # the devices that are here stay untouched
  match = re.fullmatch(r'(\w+):(\d+(?:x\d+)*)', topology)
  if not match:
    raise ValueError(f'topology={topology!r}: write KIND:SIZES, as v5e:4x4, v5p:2x2x4 '
                     'or v6e:8x8')
  sizes = [int(size) for size in match[2].split('x')]
  options = {}
  if math.prod(sizes) < 4:  # fewer chips than a host has
    options['chips_per_host_bounds'] = [*sizes, 1, 1][:3]
  if match[1] == 'v4':
    options['chip_config_name'] = 'megacore'  # a device is a chip, not half of one
  try:
    return list(topologies.get_topology_desc(
      platform='tpu', topology_name=topology, **options).devices)
  except Exception as error:
    if 'not installed' in str(error):
      raise ValueError(
        f'topology={topology!r} needs libtpu, which compiles for TPUs without having '
        "one: pip install 'lpo_jax[tpu]'; or leave --topology out to compile for the "
        'devices that are here') from error
    reason = ' '.join(str(error).split())
    raise ValueError(f'topology={topology!r}: {reason}') from error


def examine(config, devices, limit: float = 0.0) -> dict:
  """Compile a step for `devices`; return what compile.json holds.

  Args:
    config: of the run.
    devices: local or described.
    limit: bytes a program may use; 0 for the chip's.
  """
  mesh = sharding.make_mesh(tuple(config.mesh.shape), tuple(config.mesh.axes), devices)
  checks.check_one_mesh(config)
  parts = build.plan(config, mesh)
  setting = build.setting(parts, config.prompts_per_step)
  chip = hardware.chip(devices[0].device_kind)
  limit = limit or _limit(devices[0], chip)
  compiled, held = _compile_all(parts, setting)
  kinds = _by_kind(compiled, held)
  largest = max(kinds.values(), key=lambda sizes: sizes['total'])
  work = {name: phase(setting) for name, phase in
          roofline.phases(parts.policy_config).items()}
  fits = None if not limit else largest['total'] <= limit
  return {
    'policy': config.policy.name, 'device': devices[0].device_kind,
    'chip': chip and chip.name, 'devices': parts.mesh.size,
    'mesh': dict(parts.mesh.shape), 'limit': limit, 'fits': fits,
    'bytes_per_device': {kind: largest[kind] for kind in footprint.KINDS},
    'phases': kinds, 'programs': compiled,
    'estimate': footprint.memory(setting),
    'work_per_device': {name: part._asdict() for name, part in work.items()},
    'predicted_s': chip and roofline.step(setting, chip),
    'knobs': [] if fits is not False else knobs.best(setting, chip),
    'notices': sharding.notices(parts.mesh, parts.policy_config.kv_heads),
  }


def _limit(device, chip) -> float:
  """Return the bytes a program may use: what the device says, or the table; or 0."""
  stats = None
  if device.client is not None and device in jax.local_devices():
    stats = device.memory_stats()
  if stats and 'bytes_limit' in stats:
    return float(stats['bytes_limit'])
  return chip.memory if chip else 0.0


def _compile_all(parts: build.Parts, setting: roofline.Setting):
  """Compile every program; return their numbers, and bytes of what lives throughout."""
  made = programs.Programs(parts)
  prompts, samples = setting.prompts, setting.samples
  width, new = setting.prompt_width, setting.new_tokens

  onto = parts.sampling.where(parts.mesh)

  def batch(shape, dtype=jnp.int32, mesh=parts.mesh):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=resharding.place(shape, mesh))

  responses = (prompts, samples, new)
  prompt, mask = batch((prompts, width)), batch((prompts, width), bool)
  groups = Groups(
    Rollouts(prompt, mask, batch(responses), batch(responses, bool),
             batch(responses, jnp.float32),
             _images(setting, prompts, batch, setting.policy.vision_is_frozen)),
    batch((prompts, samples), jnp.float32), batch((prompts, samples), jnp.float32),
    batch((prompts,), bool), batch((prompts,)) if parts.staleness.off_policy else None)
  state, found = made.abstract, {}
  reads = state.params
  if setting.copy_weights:
    reads = resharding.described(reads, parts.mesh, onto)
  there, at_once = functools.partial(batch, mesh=onto), (setting.at_once,)
  with jax.set_mesh(onto):
    lowered, (prompt_kv, cache) = sampler_programs.largest(
      reads, there((*at_once, width)), there((*at_once, width), bool),
      there(at_once), onto,
      samples_per_prompt=samples, max_new_tokens=new, chunk=setting.chunk,
      unroll=parts.sampling.unroll, prompts=prompts,
      apart=setting.parked > 0,
      images=_images(setting, *at_once, there, True))
  if setting.patches:
    lowered['encode'] = lambda: sampler.encode.lower(
      reads, _images(setting, prompts, there, False))
  lowered['update'] = lambda: made.update.lower(state, groups)
  for name, lower in lowered.items():
    print(f'compiling {name} ...', file=sys.stderr, flush=True)
    with jax.set_mesh(parts.mesh if name == 'update' else onto):
      found[name] = _compile(lower)
  tower = state.params.vision if setting.patches else ()
  copies = [x for x, y in zip(*map(jax.tree.leaves, (reads, state.params)), strict=True)
            if x is not y]
  held = {'params': _bytes(state.params), 'copy': _bytes(copies),
          'reads': _bytes(reads), 'optimizer': _bytes(state.opt_state),
          'tower': _bytes(tower),
          'prompt_kv': _bytes(prompt_kv), 'cache': _bytes(cache)}
  waiting = setting.parked * (setting.at_once < prompts)
  held['parked'] = waiting * (held['prompt_kv'] + held['cache'])
  rooms = sorted({room for _, room in sampler.capacities(new, setting.chunk)})[-2:]
  held['before_growing'] = held['cache'] * rooms[0] / new if len(rooms) > 1 else 0.0
  return found, held


def _images(setting: roofline.Setting, prompts: int, batch, encoded: bool):
  """Return the images of some prompts, one each, as shapes; None for text only."""
  policy, patches = setting.policy, setting.patches
  if not patches:
    return None
  grid = batch((prompts, 1, 3))
  if encoded:
    vectors = (prompts, patches // policy.vision.unit, policy.width)
    return Images(grid, None, batch(vectors, jnp.dtype(policy.dtype)))
  return Images(grid, batch((prompts, patches, policy.vision.patch_dim), jnp.float32))


def _bytes(tree) -> int:
  """Return the bytes of abstract arrays on one device."""
  return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
             for x in jax.tree.leaves(tree))


def _compile(lower) -> dict:
  """Return what a program holds on one device, and what XLA counts of it.

  A program that its compiler refuses for memory has `refused` and what it says it
  would need.
  """
  began = time.monotonic()
  try:
    compiled = lower().compile()
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    text = ' '.join(str(error).split())
    size = re.search(r'(?:\(|Used |allocat\w* )([\d.]+)([KMGT]?)', text)
    need = float(size[1]) * _UNITS[size[2]] if size else math.inf
    return {'refused': text, 'temporaries': need, 'arguments': 0, 'outputs': 0,
            'aliased': 0, 'seconds': time.monotonic() - began}
  memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
  return {
    'arguments': memory.argument_size_in_bytes, 'outputs': memory.output_size_in_bytes,
    'aliased': memory.alias_size_in_bytes, 'temporaries': memory.temp_size_in_bytes,
    'flops_once': cost.get('flops'), 'bytes_once': cost.get('bytes accessed'),
    'seconds': time.monotonic() - began}


def _by_kind(compiled: dict, held: dict) -> dict[str, dict[str, float]]:
  """Return {program: {kind: bytes on one device}}, with what lives meanwhile.

  Growing the cache is no arithmetic worth compiling, but holds the old and the new.
  """
  found = {}
  parked = held['parked']  # rows that wait for others
  full = held['prompt_kv'] + held['cache'] + parked
  caches = {'prefill': parked, 'decode': full, 'grow': full + held['before_growing'],
            'update': 0.0} | ({'encode': 0.0} if 'encode' in compiled else {})
  for name, cache in caches.items():
    program = compiled.get(name)
    samples = name not in ('update', 'encode')
    kinds = {'params': held['params'] + samples * held['copy'],
             'optimizer': held['optimizer'], 'kv_cache': cache, 'activations': 0.0}
    if program:
      own = held['reads'] + cache
      if name == 'update':
        own = held['params'] + held['optimizer']
      if name == 'encode':  # which takes no more than the tower
        own = held['tower']
      whole = sum(program[part] for part in ('arguments', 'outputs', 'temporaries'))
      refused = 'refused' in program
      kinds['activations'] = (program['temporaries'] if refused
                              else whole - program['aliased'] - own)
    found[name] = kinds | {'total': sum(kinds.values())}
  return found


def _without_weights(config):
  """Return a configuration of the preset's sizes, if the weights are not here."""
  path, name = config.policy.path, config.policy.name
  if not path or os.path.exists(path) or name not in models.POLICIES:
    return config, []
  config = config.copy_and_resolve_references()
  config.policy.path = ''
  return config, [f'policy.path={path!r} is not a folder and is not fetched: the sizes '
                  f'are those of policy.name={name!r}']


def _with_mesh(config, devices):
  """Return a configuration that uses all described devices, and what to say of it.

  Where mesh.shape is not for as many devices as the slice has, take the layout of
  least predicted time among those estimated to fit, or else of least memory.
  """
  if math.prod(config.mesh.shape) == len(devices):
    return config, []
  chip, best = hardware.chip(devices[0].device_kind), None
  for tensor in (2**i for i in range(len(devices).bit_length())):
    if len(devices) % tensor:
      continue
    tried = config.copy_and_resolve_references()
    shape = (1, len(devices) // tensor, tensor)
    tried.mesh.axes, tried.mesh.shape = sharding.AXES, shape
    try:
      parts = build.plan(tried, jax.sharding.AbstractMesh(shape, sharding.AXES))
      setting = build.setting(parts, tried.prompts_per_step)
    except ValueError as error:
      refused = error
      continue
    size = max(sizes['total'] for sizes in footprint.memory(setting).values())
    spent = roofline.step(setting, chip)['step']['total'] if chip else size
    rank = (0, spent) if chip and size <= chip.memory else (1, size)
    if best is None or rank < best[0]:
      best = rank, tried
  if best is None:
    raise refused
  shape = best[1].mesh.shape
  return best[1], [f'mesh.shape={tuple(config.mesh.shape)} is not for the '
                   f'{len(devices)} devices of the slice: taken {tuple(shape)}; '
                   f'--config.mesh.shape={",".join(map(str, shape))} says the same']
