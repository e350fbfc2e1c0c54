"""Freed memory stays with the process once it is told so, and only then."""

import subprocess
import sys

import pytest

_CHILD = """
import ctypes, resource, sys
from lpo_jax import allocator
if sys.argv[1] == 'keep':
  assert allocator.keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
  block = libc.malloc(ctypes.c_size_t(2**26))
  ctypes.memset(block, 1, 2**26)
  libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='glibc only')
def test_blocks_are_touched_anew_only_without_it():
  faults = [int(subprocess.run([sys.executable, '-c', _CHILD, mode], check=True,
                               capture_output=True, text=True).stdout)
            for mode in ('keep', 'leave')]
  assert 5 * faults[0] < faults[1]
