"""Which attention of whole responses a run uses: chosen once, at build time.

  xla      `blockwise`: every device and every shape
  cudnn    `flash_gpu`: NVIDIA GPUs
  pallas   `flash_tpu`: TPUs
All give the same result. A kernel is opaque to the partitioner of XLA, so on a mesh
each device runs it on its own prompts and heads.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lpo_jax import sharding
from lpo_jax.policy import blockwise, flash_gpu
from lpo_jax.policy.config import PolicyConfig
from lpo_jax.types import Array

PLATFORMS = {'cudnn': 'nvidia', 'pallas': 'tpu'}  # kernel -> where it runs
_DTYPES = {'cudnn': ('bfloat16', 'float16'), 'pallas': ('bfloat16',)}
_SHORTEST = 128  # new tokens from which a kernel is taken unasked


def platform_of(mesh) -> str | None:
  """Return what a mesh is of, `nvidia` or as JAX names it; None if it is abstract."""
  if isinstance(mesh, jax.sharding.AbstractMesh):
    return None
  device = mesh.devices.flat[0]
  return 'nvidia' if device.device_kind.startswith('NVIDIA') else device.platform


def choose_attention(wanted: str, config: PolicyConfig, new_tokens: int,
           platform: str | None) -> tuple[str, str]:
  """Return the implementation for a run, and a sentence that says why.

  Args:
    wanted: `auto`, `xla`, `cudnn` or `pallas`.
    config: of the policy.
    new_tokens: N, of the longest response.
    platform: of the devices, see `platform_of`; None if they are not known.

  Raises:
    ValueError: if what is wanted cannot run there.
  """
  if wanted not in ('auto', 'xla', *PLATFORMS):
    raise ValueError(f'policy.attention={wanted!r}: choose one of auto, xla, '
                     f'{", ".join(PLATFORMS)}')
  if wanted == 'xla':
    return 'xla', 'attention: xla, as policy.attention says'
  if wanted != 'auto':
    if platform not in (PLATFORMS[wanted], None):
      raise ValueError(
        f'policy.attention={wanted!r} runs on {PLATFORMS[wanted]}, but these devices '
        f'are {platform}: set policy.attention=auto')
    reason = _refusal(wanted, config)
    if reason:
      raise ValueError(
        f'policy.attention={wanted!r} {reason}, or set policy.attention=auto')
    return wanted, f'attention: {wanted}, as policy.attention says'
  for kernel, home in PLATFORMS.items():
    if platform == home:
      reason = _refusal(kernel, config)
      if new_tokens < _SHORTEST:
        reason = reason or (f'pays from sampling.max_new_tokens={_SHORTEST} on, not '
                            f'{new_tokens}')
      if reason:
        return 'xla', f'attention: xla, because {kernel} {reason}'
      return kernel, f'attention: {kernel}, the kernel of {platform}'
  return 'xla', f'attention: xla, since {platform or "an unknown device"} has no kernel'


def _refusal(kernel: str, config: PolicyConfig) -> str:
  """Return what of a policy a kernel does not take; '' if it takes it."""
  dtypes, head = _DTYPES[kernel], config.head_dim
  if config.dtype not in dtypes:
    return f'takes policy.dtype={" or ".join(dtypes)}, not {config.dtype}'
  if kernel == 'cudnn' and (head % 8 or head > 128):
    return f'takes a head_dim of 8, 16, ... 128, not {head}'
  if kernel == 'pallas' and head % 64:
    return f'takes a head_dim of 64, 128, ..., not {head}'
  return ''


def attend(name: str, queries: Array, own: blockwise.Keys,
           prompt: blockwise.Keys | None, *, window: int | None = None) -> Array:
  """Attend by the implementation `name`; see `blockwise.attend`."""
  return ATTEND[name](queries, own, prompt, window=window)


def on_mesh(function, queries: Array, own: blockwise.Keys,
            prompt: blockwise.Keys | None, *, window: int | None = None) -> Array:
  """Call an `attend` on every device with its prompts and its heads.

  Key/value heads fewer than the mesh's tensor axis are copied, as everywhere.

  Args:
    function: see `blockwise.attend`.
    queries, own, prompt, window: its arguments, of all devices.
  """
  mesh = sharding.around()
  if not set(sharding.AXES) <= set(mesh.axis_names) or mesh.size == 1:
    return function(queries, own, prompt, window=window)
  shape, heads = queries.shape, queries.shape[3]
  copies = max(1, mesh.shape[sharding.RULES['kv_heads']] // heads)
  if copies > 1:
    queries = queries.reshape(*shape[:3], heads * copies, -1, shape[-1])
    own, prompt = (
      keys and keys._replace(keys=jnp.repeat(keys.keys, copies, -3),
                             values=jnp.repeat(keys.values, copies, -3))
      for keys in (own, prompt))

  def spec(x, *axes) -> PartitionSpec:
    return sharding.placement(x.shape, axes, mesh).spec

  def specs(keys):
    lead = ('batch',) + (None,) * (keys.keys.ndim - 4)
    place = spec(keys.keys, *lead, 'kv_heads', None, None)
    return blockwise.Keys(place, place, spec(keys.mask, 'batch',
                                             *[None] * (keys.mask.ndim - 1)))

  rows = spec(queries, 'batch', None, None, 'kv_heads', None, None)
  out = jax.shard_map(
    lambda *parts: function(*parts, window=window), check_vma=False, out_specs=rows,
    in_specs=(rows, specs(own), prompt and specs(prompt)))(queries, own, prompt)
  return out.reshape(shape)


def _cudnn(*args, **options) -> Array:
  return on_mesh(flash_gpu.attend, *args, **options)


def _pallas(*args, **options) -> Array:
  from lpo_jax.policy import flash_tpu  # a second of imports, for TPUs alone
  return on_mesh(flash_tpu.attend, *args, **options)


ATTEND = {'xla': blockwise.attend, 'cudnn': _cudnn, 'pallas': _pallas}
