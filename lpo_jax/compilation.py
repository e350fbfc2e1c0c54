"""Compiled programs are kept beside the runs, so that the next one starts sooner.

JAX's persistent cache, in WORKDIR/../.compiled/, for the runs of a study in
DIR/.compiled/, unless `JAX_COMPILATION_CACHE_DIR` or the program says otherwise. What
XLA makes for a CPU holds its instructions, and folders of runs are shared between
machines: each kind of processor has a folder of its own.
"""

import functools
import hashlib
import os
import pathlib
import platform

import jax

FOLDER = '.compiled'
LEAST_S = 0.5  # programs that compile faster are not kept
_WITHOUT_YNNPACK = {'xla_cpu_experimental_ynn_fusion_type': ''}


def keep(workdir: str) -> str:
  """Keep compiled programs beside `workdir`; return the folder.

  Does nothing where a cache is set already, and returns that.
  """
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


def of_an_update(platform: str) -> dict[str, str]:
  """Return `compiler_options` of `jax.jit` for an update on `platform`.

  On a CPU, XLA multiplies with YNNPACK where it is not told otherwise, which is the
  faster for the few rows of decoding; an update's thousand rows take Eigen 4 to 7 %
  less time. An XLA that does not know the option is left as it is.
  """
  return _WITHOUT_YNNPACK if platform == 'cpu' and _has_ynnpack() else {}


@functools.cache
def _has_ynnpack() -> bool:
  identity = jax.jit(lambda x: x, compiler_options=_WITHOUT_YNNPACK)
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
