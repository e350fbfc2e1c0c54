"""Compiled programs are kept beside the runs, so that the next one starts sooner.

JAX's persistent cache, in WORKDIR/../.compiled/, for the runs of a study in
DIR/.compiled/, unless `JAX_COMPILATION_CACHE_DIR` or the program says otherwise. What
XLA makes for a CPU holds its instructions, and folders of runs are shared between
machines: each kind of processor has a folder of its own.

And what XLA is told when it compiles an update for a CPU, see `of_an_update`.
"""

import functools
import hashlib
import os
import pathlib
import platform
import warnings

import jax

FOLDER = '.compiled'
LEAST_S = 0.5  # programs that compile faster are not kept
_UPDATE_ON_A_CPU = {
  'xla_cpu_experimental_ynn_fusion_type': '',  # products by Eigen, not by YNNPACK
}
_ON_A_CORE = {  # besides, where each core is a device
  'xla_multiheap_size_constraint_per_heap': str(3 * 2**24),  # bytes of temporaries
}
_NOT_KEPT = 'Error writing persistent compilation cache .*Multiple temp buffer'


def keep(workdir: str) -> str:
  """Keep compiled programs beside `workdir`; return the folder.

  A cache that is set already stays, and is returned. Either way JAX no longer warns of
  programs for a core, which cannot be kept, see `of_an_update`.
  """
  warnings.filterwarnings('ignore', _NOT_KEPT, UserWarning)
  if jax.config.jax_compilation_cache_dir:
    return jax.config.jax_compilation_cache_dir
  options = _options(os.path.dirname(os.path.abspath(workdir)))
  for name, value in options.items():
    jax.config.update(name, value)
  return options['jax_compilation_cache_dir']


def shared(folder: str) -> dict[str, str]:
  """Return the environment in which processes share what they compile, in `folder`.

  A cache that this process's environment sets already stays the children's, too.
  """
  if os.environ.get('JAX_COMPILATION_CACHE_DIR'):
    return {}
  return {name.upper(): str(value)
          for name, value in _options(os.path.abspath(folder)).items()}


def of_an_update(platform: str, on_cores: bool = False) -> dict[str, str | bool]:
  """Return `compiler_options` of `jax.jit` for an update.

  On a CPU: YNNPACK, which XLA takes where it is not told otherwise, is the faster for
  the few rows of decoding, Eigen for an update's thousand. Options that this XLA does
  not know are left out.

  Args:
    platform: of the devices.
    on_cores: it is shared by a device for each core, see `cores.are_devices`. Its
      temporaries then lie in several blocks: glibc maps one of more than 64 MiB anew at
      every call, whatever `allocator` says. XLA cannot store such a program, so each
      start compiles it again.
  """
  if platform != 'cpu':
    return {}
  options = _UPDATE_ON_A_CPU | (_ON_A_CORE if on_cores else {})
  return {name: value for name, value in options.items() if _is_known(name, value)}


@functools.cache
def _is_known(name: str, value: str | bool) -> bool:
  identity = jax.jit(lambda x: x, compiler_options={name: value})
  try:
    identity.lower(jax.ShapeDtypeStruct((), 'float32')).compile()
  except jax.errors.JaxRuntimeError:
    return False
  return True


def _options(folder: str) -> dict[str, str | float]:
  return {'jax_compilation_cache_dir': os.path.join(folder, FOLDER, _processor()),
          'jax_persistent_cache_min_compile_time_secs': LEAST_S}


def _processor() -> str:
  """Return a name for this kind of processor: its architecture and instructions."""
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
    text = '\n'.join(sorted({line for line in lines if line.lower().startswith(
      ('model name', 'flags', 'features', 'cpu part'))}))
  except OSError:
    text = platform.processor()
  return f'{platform.machine()}-{hashlib.sha256(text.encode()).hexdigest()[:12]}'
