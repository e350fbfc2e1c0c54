"""Compiled programs are kept beside the runs, so that the next one starts sooner.

JAX's persistent cache, in WORKDIR/../.compiled/ unless `JAX_COMPILATION_CACHE_DIR` or
the program says otherwise. What XLA makes for a CPU holds its instructions, and folders
of runs are shared between machines: each kind of processor has a folder of its own.
"""

import hashlib
import os
import pathlib
import platform

import jax

FOLDER = '.compiled'
LEAST_S = 0.5  # programs that compile faster are not kept


def keep(workdir: str) -> str:
  """Keep compiled programs beside `workdir`; return the folder.

  Does nothing where a cache is set already, and returns that.
  """
  if jax.config.jax_compilation_cache_dir:
    return jax.config.jax_compilation_cache_dir
  folder = os.path.join(os.path.dirname(os.path.abspath(workdir)), FOLDER, _processor())
  jax.config.update('jax_compilation_cache_dir', folder)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', LEAST_S)
  return folder


def _processor() -> str:
  """Return a name for this kind of processor: its architecture and instructions."""
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
    text = '\n'.join(sorted({line for line in lines if line.lower().startswith(
      ('model name', 'flags', 'features', 'cpu part'))}))
  except OSError:
    text = platform.processor()
  return f'{platform.machine()}-{hashlib.sha256(text.encode()).hexdigest()[:12]}'
