"""One test's process: gives up what it may not have, then runs the program.

Part of `sandbox_driver`, in whose fork it runs, with the standard library alone. Reads
nothing but its own test. Standard output is the answer of a test on standard input;
a called function's answer is written as JSON to descriptor 3, and what it prints is
dropped. A program can write anything to either: it still has to be the right answer.
"""

import atexit
import builtins
import ctypes
import io
import json
import math
import os
import resource
import struct
import sys
import threading
import types
import typing

_PR_SET_DUMPABLE, _PR_SET_SECCOMP = 4, 22
MACHINES = {  # machine -> audit architecture, clone, clone3, what is refused
  'x86_64': (0xC000003E, 56, 435, (
    29, 68, 64, 101, 155, 161, 165, 166, 169, 175, 176, 246, 248, 249, 250, 272, 298,
    308, 310, 311, 313, 319, 320, 321, 323, 425, 426, 427, 428, 429, 430, 442)),
  'aarch64': (0xC00000B7, 220, 435, (
    194, 186, 190, 117, 41, 51, 40, 39, 142, 105, 106, 104, 217, 218, 219, 97, 241,
    268, 270, 271, 273, 279, 294, 280, 282, 425, 426, 427, 428, 429, 430, 442)),
}

_libc = ctypes.CDLL(None, use_errno=True)


def run(setup: dict, job: dict, source: int, writes: int) -> None:
  """Give up everything, then run the program; never returns."""
  call = 'stdin' not in job
  os.dup2(source, 0)
  if call:  # what it prints is not its answer
    os.dup2(writes, 3)
  else:
    os.dup2(writes, 1)
  os.closerange(4 if call else 3, 256)
  os.setsid()
  _limit(setup)
  sys.stdin, sys.stdout, sys.stderr = (
    io.TextIOWrapper(open(number, mode, closefd=False), 'utf-8', errors, newline)
    for number, mode, errors, newline in (
      (0, 'rb', 'surrogateescape', None), (1, 'wb', 'surrogateescape', '\n'),
      (2, 'wb', 'replace', '\n')))
  sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
  module = types.ModuleType('solution' if call else '__main__')
  sys.modules[module.__name__] = module
  sys.argv, sys.path[:] = ['solution.py'], [p for p in sys.path if p]
  builtins.exit = builtins.quit = sys.exit  # what `site` would have added
  code = 0
  try:
    if call:
      vars(module).update({name: getattr(typing, name) for name in typing.__all__})
    exec(compile(setup['program'], 'solution.py', 'exec'), vars(module))
    if call:
      answer = json.dumps(_plain(_answer(module, job), 0)).encode()
      while answer:
        answer = answer[os.write(3, answer):]
  except SystemExit as request:
    code = int(call or request.code not in (None, 0, False))
  except BaseException:
    code = 1
  try:
    threading._shutdown()
    atexit._run_exitfuncs()
    if not sys.stdout.closed:
      sys.stdout.flush()
  except BaseException:
    code = 1
  os._exit(code)


def _answer(module: types.ModuleType, job: dict):
  """Return what the function, or the method of `Solution`, or the expression gives."""
  if 'expression' in job:
    exec(job.get('setup', ''), vars(module))
    return eval(job['expression'], vars(module))
  name = job['name']
  function = vars(module).get(name)
  if not callable(function) and 'Solution' in vars(module):
    function = getattr(module.Solution(), name)
  return function(*job['arguments'])


def _plain(value, depth: int):
  """Return the value as JSON has it: tuples as lists, sets sorted, keys as text."""
  if depth > 100:
    raise ValueError('nested too deeply')
  if isinstance(value, dict):
    return {key if isinstance(key, str) else repr(key): _plain(item, depth + 1)
            for key, item in value.items()}
  if isinstance(value, set | frozenset):
    items = [_plain(item, depth + 1) for item in value]
    return sorted(items, key=lambda item: (str(type(item)), item))
  if isinstance(value, list | tuple) or type(value).__name__ in ('deque', 'range'):
    return [_plain(item, depth + 1) for item in value]
  return value


def _limit(setup: dict) -> None:
  """Take limits, drop every capability, filter system calls."""
  memory, processes = setup['memory_bytes'], setup['processes']
  seconds = math.ceil(setup['test_s']) + 1
  if not setup['isolated']:
    processes += _tasks_of_user()
  for limit, value in (
      (resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, seconds),
      (resource.RLIMIT_FSIZE, setup['file_bytes']), (resource.RLIMIT_CORE, 0),
      (resource.RLIMIT_NOFILE, 64), (resource.RLIMIT_NPROC, processes),
      (resource.RLIMIT_MSGQUEUE, 0), (resource.RLIMIT_MEMLOCK, 0)):
    hard = resource.getrlimit(limit)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(limit, (value, value))
  nothing = (ctypes.c_uint32 * 6)()
  header = (ctypes.c_uint32 * 2)(0x20080522, 0)
  check(_libc.capset(header, nothing), 'capset')
  check(_libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0), 'prctl')
  _filter_calls()


def _tasks_of_user() -> int:
  """Return how many tasks the user runs already; the limit counts them all."""
  total, user = 0, os.getuid()
  for name in os.listdir('/proc'):
    try:
      if name.isdigit() and os.stat(f'/proc/{name}').st_uid == user:
        total += len(os.listdir(f'/proc/{name}/task'))
    except OSError:
      pass
  return total


def _filter_calls() -> None:
  """Refuse namespaces, mounts, tracing, and memory that no limit counts."""
  machine = os.uname().machine
  if machine not in MACHINES:
    raise OSError(f'no system call filter for {machine}')
  architecture, clone, clone3, refused = MACHINES[machine]
  refuse, permit, missing = 0x00050001, 0x7FFF0000, 0x00050026  # EPERM, allow, ENOSYS
  load, equal, test, back = 0x20, 0x15, 0x45, 0x06
  program = [(load, 0, 0, 4), (equal, 1, 0, architecture), (back, 0, 0, 0x80000000),
             (load, 0, 0, 0), (0x35, 0, 1, 0x40000000), (back, 0, 0, refuse)]
  program += [(equal, 0, 1, clone3), (back, 0, 0, missing)]
  for number in refused:
    program += [(equal, 0, 1, number), (back, 0, 0, refuse)]
  program += [(equal, 0, 3, clone), (load, 0, 0, 16), (test, 0, 1, 0x7E020000),
              (back, 0, 0, refuse), (back, 0, 0, permit)]
  data = b''.join(struct.pack('<HBBI', *line) for line in program)
  buffer = ctypes.create_string_buffer(data)
  header = struct.pack('<HxxxxxxQ', len(program), ctypes.addressof(buffer))
  check(_libc.prctl(_PR_SET_SECCOMP, 2, ctypes.c_char_p(header), 0, 0), 'seccomp')


def check(result: int, what: str) -> None:
  """Raise OSError where a C call failed."""
  if result < 0:
    raise OSError(ctypes.get_errno(), what)
