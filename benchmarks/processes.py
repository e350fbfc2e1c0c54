"""The processes in which a benchmark's sides live, and whether others disturb them.

An entry is loaded once, in a process of its own, so that its peak memory is its own and
nothing is shared but the device; or in a team of processes, one kept on each core, that
share the job. Each waits to be told to do it once.
"""

import dataclasses
import multiprocessing
import os
import pathlib
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import connection
from typing import NamedTuple

QUIET_CORES = 0.15  # busy cores below which the machine is quiet
OURS = 'lpo_jax'


class Member(NamedTuple):
  """One process of a team."""

  index: int
  count: int
  address: str  # HOST:PORT of the first, where all meet


@dataclasses.dataclass(frozen=True)
class Entry:
  """One way to do the job."""

  side: str  # a peer's name, or OURS, where more follows it another way of ours
  setting: str  # what distinguishes it from the side's other entries
  build: Callable  # a module's function: args -> (do it once, check what it returned)
  args: tuple
  flops: float  # of doing it once
  python: str = ''  # interpreter that has what a peer needs; '' for this one
  platform: str = 'cpu'  # of JAX: cpu, cuda, tpu
  processes: int = 1  # more: a team of so many, each on a core; `build` gets its
  member: Member | None = None

  @property
  def ours(self) -> bool:
    """Whether it is one of ours."""
    return self.side.startswith(OURS)


class Repetition(NamedTuple):
  """One timed repetition."""

  seconds: float
  others: float  # cores that other processes used meanwhile
  peak_mib: float  # largest resident size of the entry's process so far
  found: object = None  # by the entry's check


class Runner:
  """An entry in its process, waiting to be told to run."""

  def __init__(self, entry: Entry):
    """Start the process, load the entry and run it once, so that all is compiled."""
    self.entry, self.repetitions = entry, []
    self._pipes, self._waits = zip(*map(_spawn, _members(entry)), strict=True)
    self._run()

  def repeat(self, quiet_s: float) -> float:
    """Wait for a quiet machine, run once and keep the Repetition; return seconds."""
    wait_until_quiet(quiet_s)
    self.repetitions.append(self._run())
    return self.repetitions[-1].seconds

  def close(self) -> None:
    """End the process."""
    for pipe in self._pipes:
      pipe.close()
    for wait in self._waits:
      wait()

  def _run(self) -> Repetition:
    before = busy_seconds()
    try:
      for pipe in self._pipes:
        pipe.send('run')
      ends = [pipe.recv() for pipe in self._pipes]
    except (EOFError, OSError):
      side = f'{self.entry.side} ({self.entry.setting})'
      raise SystemExit(f'{side} failed: see above') from None
    seconds, own, busy, peaks, found = zip(*ends, strict=True)
    longest = max(seconds)
    return Repetition(longest, max(0.0, (max(busy) - before - sum(own)) / longest),
                      sum(peaks), found[0])


def _members(entry: Entry) -> list[Entry]:
  """Return what each of an entry's processes is to load."""
  if entry.processes == 1:
    return [entry]
  with socket.create_server(('127.0.0.1', 0)) as server:
    address = f'127.0.0.1:{server.getsockname()[1]}'
  return [dataclasses.replace(entry, member=Member(index, entry.processes, address))
          for index in range(entry.processes)]


def _spawn(entry: Entry):
  """Start an entry's process; return our end of its pipe and what waits for its end."""
  if not entry.python:
    context = multiprocessing.get_context('spawn')
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, entry), daemon=True)
    process.start()
    theirs.close()
    return ours, process.join
  ours, theirs = socket.socketpair()
  root = str(pathlib.Path(__file__).parents[1])
  process = subprocess.Popen(
    [entry.python, '-c',
     f'from benchmarks import processes; processes.serve({theirs.fileno()})'],
    pass_fds=[theirs.fileno()], env=os.environ | {'PYTHONPATH': root},
    stdout=sys.stderr)
  theirs.close()
  pipe = connection.Connection(ours.detach())
  try:
    pipe.send(entry)
  except OSError:
    raise SystemExit(f'{entry.side}: {entry.python} did not start: see above') from None
  return pipe, process.wait


def serve(file: int) -> None:
  """Serve the entry that comes first through a socket: a peer's own interpreter."""
  pipe = connection.Connection(file)
  _serve(pipe, pipe.recv())
  os._exit(0)  # a peer's loop may wait in a thread for a step that will not come


def _serve(pipe, entry: Entry) -> None:
  """Do the job once for every message, until the pipe closes."""
  os.environ['JAX_PLATFORMS'] = entry.platform  # all sides on the same device
  os.environ['XLA_PYTHON_CLIENT_PREALLOCATE'] = 'false'  # which they share
  if entry.member:
    here = cores()
    os.sched_setaffinity(0, {here[entry.member.index % len(here)]})
  if entry.ours:
    from lpo_jax import allocator
    from lpo_jax import cores as devices

    allocator.keep_freed_memory()  # as `lpo_jax.main` does, and
    devices.offer()
  team = {'member': entry.member} if entry.member else {}
  once, check = entry.build(*entry.args, **team)
  while True:
    try:
      pipe.recv()
    except EOFError:
      return
    own, start = time.process_time(), time.perf_counter()
    result = once()
    seconds, own = time.perf_counter() - start, time.process_time() - own
    busy = busy_seconds()
    found = check(result)
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pipe.send((seconds, own, busy, kib / 1024, found))


def cores() -> list[int]:
  """Return the cores that a process can be kept on; none where it cannot."""
  return sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_setaffinity') else []


def busy_seconds() -> float:
  """Return the CPU seconds all processes have used; 0 where Linux does not say."""
  if not os.path.exists('/proc/stat'):
    return 0.0
  with open('/proc/stat') as file:
    user, nice, system, _, _, *interrupts = map(int, file.readline().split()[1:8])
  return (user + nice + system + sum(interrupts)) / os.sysconf('SC_CLK_TCK')


def wait_until_quiet(limit_s: float) -> None:
  """Return after 0.4 s in which hardly anything ran, or after `limit_s`."""
  deadline, calm = time.perf_counter() + limit_s, 0
  while calm < 2 and time.perf_counter() < deadline:
    busy, start = busy_seconds(), time.perf_counter()
    time.sleep(0.2)
    cores = (busy_seconds() - busy) / (time.perf_counter() - start)
    calm = calm + 1 if cores < QUIET_CORES else 0
