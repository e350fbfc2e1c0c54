"""How this process keeps host memory: freed blocks stay with it.

XLA on CPU allocates a program's temporaries anew at every call. By default glibc gives
blocks of that size back to the system at once, and each call then pays for touching
fresh pages: a fifth of an update on two cores. Kept, they are reused; the process's
peak is the same, but it does not shrink in between. Of a thread other than the first,
only blocks below 64 MiB stay, see `compilation.of_an_update`.
"""

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # mallopt(3)
_LARGEST = 2**31 - 1  # bytes, of an int
_PAD = 2**26  # bytes by which the heap grows at least


def keep_freed_memory() -> bool:
  """Tell glibc to keep what is freed; return whether it does (False elsewhere).

  Call it before the first large allocation.
  """
  if not sys.platform.startswith('linux'):
    return False
  mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
  if mallopt is None:
    return False
  settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _LARGEST), (_TOP_PAD, _PAD))
  return all([mallopt(name, value) == 1 for name, value in settings])
