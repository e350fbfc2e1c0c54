"""A CPU's cores as devices of their own, over which sampling splits its rows.

XLA runs the small batched products of decoding on one core each, and splits the larger
ones over all, which wait for each other. Given a device a core, every core decodes rows
of its own and seldom waits. An update gains less, and only if asked: `mesh.shape=C,1,1`
also splits it over C devices. XLA splits the large products of each over all cores all
the same; only a process that is kept on one core multiplies alone.
"""

import os

import jax

LEAST_ROWS = 32  # of a core: fewer rows hardly repay that each reads all the weights
_FLAG = 'xla_force_host_platform_device_count'


def count() -> int:
  """Return the cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def offer() -> None:
  """Make JAX show a CPU as one device a core; before any other use of JAX.

  Does nothing where XLA_FLAGS or JAX_NUM_CPU_DEVICES say how many there are.
  """
  if jax.config.jax_num_cpu_devices < 0 and _FLAG not in os.environ.get('XLA_FLAGS',
                                                                        ''):
    jax.config.update('jax_num_cpu_devices', count())


def are_devices(devices: int) -> bool:
  """Return whether so many devices of a CPU are one for each of several cores."""
  return 1 < devices >= count()


def split(prompts: int, samples: int) -> int:
  """Return over how many of this machine's CPU devices to split what is sampled.

  Args:
    prompts: of which equal parts are made.
    samples: K.
  """
  most = min(count(), len(jax.local_devices()), prompts * samples // LEAST_ROWS)
  return max((parts for parts in range(1, most + 1) if prompts % parts == 0), default=1)
