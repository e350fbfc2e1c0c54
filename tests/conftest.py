"""What every test runs under: eight CPU devices, and rank promotion as an error.

Programs of tests run once or twice, so they are compiled quickly, not well.

The environment is set before anything imports jax. GPU and TPU tests are run by
setting JAX_PLATFORMS; XLA_FLAGS given from outside are kept.
"""

import os

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
_FLAGS = os.environ.get('XLA_FLAGS', '')
if 'xla_force_host_platform_device_count' not in _FLAGS:
  os.environ['XLA_FLAGS'] = (f'{_FLAGS} --xla_force_host_platform_device_count=8 '
                             '--xla_backend_optimization_level=0').strip()

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update('jax_numpy_rank_promotion', 'raise')


@pytest.fixture(autouse=True, scope='module')
def fresh_programs():
  """Drop compiled programs after each file.

  Each holds some 30 memory mappings, of which Linux grants a process 65530: a worker
  that keeps the programs of thousands of tests dies.
  """
  yield
  jax.clear_caches()
