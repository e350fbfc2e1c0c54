"""What every test runs under: eight CPU devices, and rank promotion as an error.

Programs of tests run once or twice, so they are compiled quickly, not well, and kept
for the other files, workers and processes of this run: many need the same ones.

The environment is set before anything imports jax. GPU and TPU tests are run by
setting JAX_PLATFORMS; XLA_FLAGS given from outside are kept.
"""

import gc
import os
import shutil
import tempfile

from tests import compiler

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
_OWN_CACHE = None  # of the process that made it; workers inherit the variable
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  _OWN_CACHE = tempfile.mkdtemp(prefix='lpo_jax_programs_')
  os.environ['JAX_COMPILATION_CACHE_DIR'] = _OWN_CACHE
  os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.1'
_FLAGS = os.environ.get('XLA_FLAGS', '')
if 'xla_force_host_platform_device_count' not in _FLAGS:
  os.environ['XLA_FLAGS'] = f'{_FLAGS} {compiler.devices(8)}'.strip()

import jax  # noqa: E402
import pytest  # noqa: E402

from lpo_jax import curves  # noqa: E402

jax.config.update('jax_numpy_rank_promotion', 'raise')
gc.set_threshold(50_000, 20, 20)  # tracing allocates much that lives: a tenth faster


@pytest.fixture(autouse=True, scope='module')
def fresh_programs():
  """Drop compiled programs after each file.

  Each holds some 30 memory mappings, of which Linux grants a process 65530: a worker
  that keeps the programs of thousands of tests dies.
  """
  yield
  jax.clear_caches()


@pytest.fixture(autouse=True)
def runs_are_not_drawn(monkeypatch):
  """Spare runs inside a test their picture, an eighth of their time.

  Runs of their own process draw it, and `resume_test` looks for it.
  """
  monkeypatch.setattr(curves, 'of_run', lambda workdir: True)


def pytest_unconfigure():
  """Remove the programs that this run kept."""
  if _OWN_CACHE:
    shutil.rmtree(_OWN_CACHE, ignore_errors=True)
