"""Values of a configuration that no part of a run would refuse by itself.

Each is named with its remedy, before anything is built. What a part does check, its own
record does: weights of rewards, sizes of a policy, divisions of a batch.
"""

from configs import base


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
  if config.task.workers < 0 or not config.task.deadline_s > 0:
    raise ValueError(f'task.workers={config.task.workers}, task.deadline_s='
                     f'{config.task.deadline_s}: need workers >= 0 and deadline_s > 0')
  _check_where(config)
  top_k, top_p = config.sampling.top_k, config.sampling.top_p
  if (top_k > 0 or top_p < 1) and not config.sampling.allow_truncated:
    raise ValueError(
      f'sampling.top_k={top_k}, sampling.top_p={top_p}: '
      'a truncated pi_b is not the policy that learns; set top_k=0 and top_p=1, or '
      'sampling.allow_truncated=True')
  if config.samples_per_prompt == 1 and config.objective.skip_flat_groups:
    raise ValueError('samples_per_prompt=1 with objective.skip_flat_groups=True would '
                     'skip every group; set objective.skip_flat_groups=False')
  if (config.async_rollouts or config.replay.fraction) and (
      config.step_level.fraction or config.offline.path):
    raise ValueError(
      f'async_rollouts={config.async_rollouts}, replay.fraction='
      f'{config.replay.fraction}: set both to 0 with step_level.fraction > 0 or '
      'offline.path, whose groups are made anew or given')
  if config.sampling.temperature <= 0:
    raise ValueError(f'sampling.temperature={config.sampling.temperature}: must be > 0 '
                     'to train; only eval.temperature may be 0')


def _check_where(config) -> None:
  """Raise a ValueError unless sampling can be where it is asked to be."""
  shape, devices = config.mesh.sampling_shape, config.mesh.sampling_devices
  if devices not in ('same', 'others'):
    raise ValueError(f'mesh.sampling_devices={devices!r}: choose same or others')
  if (shape or devices == 'others') and not config.sampling.copy_weights:
    raise ValueError(
      f'mesh.sampling_shape={tuple(shape)}, mesh.sampling_devices={devices!r}: samples '
      'come from a copy of the weights; set sampling.copy_weights=True')
  if devices == 'others' and not config.async_rollouts:
    raise ValueError("mesh.sampling_devices='others' with async_rollouts=0: devices "
                     'would wait for each other; set async_rollouts=1, or same')


def check_one_mesh(config) -> None:
  """Raise a ValueError where the devices that sample are not those that train."""
  if config.mesh.sampling_devices != 'same':
    raise ValueError('--mode=compile looks at the devices of one mesh: set '
                     'mesh.sampling_devices=same, and mesh.shape to either of them')


def _fields(config, prefix: str = ''):
  """Yield every field's dotted name and value; a task's options are its own."""
  for name, value in config.items():
    if hasattr(value, 'items'):
      if name != 'options':
        yield from _fields(value, f'{prefix}{name}.')
    else:
      yield prefix + name, value
