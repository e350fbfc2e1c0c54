"""Compiled programs are found by the next process, and nobody's own cache is moved."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import serialize_executable

from lpo_jax import compilation

ROOT = pathlib.Path(__file__).parents[1]
SCRIPT = '''
import sys
import jax, jax.numpy as jnp
from lpo_jax import compilation
hits = []
jax.monitoring.register_event_listener(
  lambda name, **_: hits.append(name) if name.endswith('/cache_hits') else None)
print(compilation.keep(sys.argv[1]))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
jax.jit(lambda x: jnp.sin(x) @ x.T)(jnp.ones((3, 5)))
print(len(hits))
'''


def start(workdir, **environment):
  unset = {name: value for name, value in os.environ.items()
           if name != 'JAX_COMPILATION_CACHE_DIR'}
  found = subprocess.run(
    [sys.executable, '-c', SCRIPT, str(workdir)], cwd=ROOT, capture_output=True,
    text=True, check=True, env=unset | {'JAX_PLATFORMS': 'cpu'} | environment)
  folder, hits = found.stdout.split()
  return pathlib.Path(folder), int(hits)


def test_the_next_process_finds_what_was_compiled_for_this_processor(tmp_path):
  folder, hits = start(tmp_path / 'runs' / 'one')
  assert folder.parent == tmp_path / 'runs' / '.compiled' and hits == 0
  assert list(folder.iterdir())
  assert start(tmp_path / 'runs' / 'two') == (folder, hits_of(folder))


def hits_of(folder):
  return sum(path.name.startswith('jit_') and path.name.endswith('-cache')
             for path in folder.iterdir())


def test_processes_that_share_a_folder_find_each_others_programs(tmp_path, monkeypatch):
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR', raising=False)
  together = compilation.shared(str(tmp_path))
  folder, hits = start(tmp_path / 'a' / 'run', **together)
  assert folder.parent == tmp_path / '.compiled' and hits == 0
  assert start(tmp_path / 'b' / 'run', **together) == (folder, hits_of(folder))


def test_a_cache_that_is_set_stays(tmp_path):
  own = tmp_path / 'own'
  folder, _ = start(tmp_path / 'one', JAX_COMPILATION_CACHE_DIR=str(own))
  assert folder == own and not (tmp_path / '.compiled').exists()


def test_an_update_on_a_cpu_has_eigens_products(monkeypatch):
  options = compilation.of_an_update('cpu')
  assert len(options) == 1 and not compilation.of_an_update('tpu')
  x = jnp.asarray(np.random.default_rng(0).normal(size=(256, 256)), jnp.float32)

  def product(**more):
    compiled = jax.jit(jnp.matmul, compiler_options=more | {
      'xla_backend_optimization_level': 3}).lower(x, x).compile()
    np.testing.assert_allclose(compiled(x, x), np.float64(x) @ np.float64(x), atol=1e-3)
    return compiled.as_text()

  assert '__ynn' in product() and '__ynn' not in product(**options)
  alone = compilation.of_an_update('cpu', on_cores=True)
  assert len(alone) == 2 and alone.items() > options.items()
  assert alone['xla_multiheap_size_constraint_per_heap'] == '50331648'
  assert '__ynn' not in product(**alone)
  monkeypatch.setitem(compilation._UPDATE_ON_A_CPU, 'xla_no_such_option', '1')
  assert compilation.of_an_update('cpu') == options


def test_an_update_with_large_temporaries_can_be_kept():
  size = 4096  # 64 MiB, twice: more than XLA stores where they are to lie in blocks
  compiled = jax.jit(
    lambda x: jnp.sum((y := jnp.sin(x[:, None] + x[None])) @ jnp.cos(y @ y)),
    compiler_options=compilation.of_an_update('cpu')).lower(
      jax.ShapeDtypeStruct((size,), jnp.float32)).compile()
  assert compiled.memory_analysis().temp_size_in_bytes > 2 * 4 * size**2 - 1
  assert serialize_executable.serialize(compiled)[0]
