"""Model-written programs, run where they can harm nothing.

`bubblewrap` gives each program its own network, processes, users, IPC, host name and
control groups, a read-only interpreter, an empty environment and a small memory file
system; `sandbox_driver` inside it gives each test its own process namespace, limits
and a system call filter. One program's tests share one start, unless a test leaves
files behind or breaks it. Whatever happens, a test ends by its deadline and nothing
of it is left. 'rlimits' is the weaker choice: limits and kills, but no walls.
"""

import dataclasses
import functools
import json
import logging
import os
import pathlib
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

KINDS = ('bubblewrap', 'rlimits')
INSTALL = ("sandbox='bubblewrap' needs bubblewrap, not usable here ({reason}): "
           'apt-get install bubblewrap, with user namespaces allowed (as root, or '
           'sysctl kernel.unprivileged_userns_clone=1 kernel.'
           "apparmor_restrict_unprivileged_userns=0). sandbox='rlimits' runs programs "
           'without isolation: they can then read, write and kill what this user can.')
_DRIVER = pathlib.Path(__file__).with_name('sandbox_driver.py')
_PROGRAM = _DRIVER.with_name('sandbox_program.py')
_INSIDE = '/sandbox'
_START_S = 20.0  # until the driver is ready
_SLACK_S = 2.0  # of the driver, beyond a test's own deadline
_ROOT_DIRECTORIES = ('/lib', '/lib32', '/lib64', '/libx32', '/bin')


@dataclasses.dataclass(frozen=True)
class Limits:
  """What one program may use."""

  test_s: float = 5.0  # wall clock of one test
  total_s: float = 20.0  # of all its tests
  memory_mib: int = 1024  # of all processes of a test
  processes: int = 48  # and threads
  file_mib: int = 16  # of one file
  room_mib: int = 32  # of /tmp, and of /dev/shm
  output_mib: int = 4  # printed or returned

  def __post_init__(self):
    """Refuse limits that are no limits."""
    for name, value in dataclasses.asdict(self).items():
      if not value > 0:
        raise ValueError(f'{name}={value} must be positive')


class Outcome(NamedTuple):
  """What one test did.

  status: 'ok' (ended by itself with code 0), 'error', 'timeout', 'memory', 'output'
    (too much of it) or 'lost' (it broke the sandbox).
  output: what it printed, or the JSON of what it returned.
  """

  status: str
  output: bytes


def run(program: str, jobs: Iterable[dict], limits: Limits, kind: str,
        stop_early: bool = False) -> Iterator[Outcome]:
  """Yield the outcome of each job, in order.

  Args:
    program: Python source.
    jobs: each either {'stdin': text}; {'name': function, 'arguments': list}; or
      {'expression': source, 'setup': source}. JSON types only.
    limits: of the program.
    kind: one of KINDS.
    stop_early: whether to stop after the first outcome that is not 'ok'.

  Raises:
    ValueError: unknown kind.
    RuntimeError: this kind does not work on this machine; says how to install it.
  """
  check(kind)
  deadline = time.monotonic() + limits.total_s
  inside = None
  try:
    for job in jobs:
      left = deadline - time.monotonic()
      if left <= 0:
        yield Outcome('timeout', b'')
        continue
      if inside is None:
        inside = _Inside(program, limits, kind)
      outcome, reusable = inside.run(job, min(left, limits.test_s))
      if not reusable:
        inside.close()
        inside = None
      yield outcome
      if stop_early and outcome.status != 'ok':
        return
  finally:
    if inside is not None:
      inside.close()


def check(kind: str) -> None:
  """Run a trivial program once per process; see `run` for what is raised."""
  if kind not in KINDS:
    raise ValueError(f'unknown sandbox {kind!r}: known: {", ".join(KINDS)}')
  if reason := _failure(kind):
    raise RuntimeError(INSTALL.format(reason=reason) if kind == 'bubblewrap' else
                       f"sandbox='rlimits' does not work here: {reason}")


@functools.cache
def _failure(kind: str) -> str:
  """Return why this kind does not work here; '' if it does."""
  if kind == 'bubblewrap' and shutil.which('bwrap') is None:
    return 'bwrap is not on the PATH'
  if kind == 'rlimits':
    logging.getLogger(__name__).warning(
      "sandbox='rlimits': model-written programs run WITHOUT isolation, as this user, "
      'with access to its files, processes and network. Only limits and kills apply; '
      'for root not even the limit on processes.')
  try:
    inside = _Inside('print(input())', Limits(), kind)
  except OSError as error:
    return str(error)
  try:
    outcome, _ = inside.run({'stdin': 'alive\n'}, _START_S)
    if outcome == Outcome('ok', b'alive\n'):
      return ''
    return inside.complaint() or f'a trivial program ended as {outcome}'
  finally:
    inside.close()


class _Inside:
  """A started sandbox with one program in it."""

  def __init__(self, program: str, limits: Limits, kind: str):
    self._limits = limits
    self._room = tempfile.mkdtemp(prefix='program-') if kind == 'rlimits' else None
    self._complaints = tempfile.TemporaryFile()
    python = os.path.realpath(sys.executable)
    command = [python, '-I', '-S', '-B', '-X', 'utf8']
    if kind == 'bubblewrap':
      command = [shutil.which('bwrap'), *_walls(limits), *command,
                 f'{_INSIDE}/{_DRIVER.name}']
    else:
      command += [str(_DRIVER)]
    self._process = subprocess.Popen(
      command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._complaints,
      start_new_session=True, cwd=self._room or '/',
      env={'PATH': '/usr/bin:/bin', 'LANG': 'C.UTF-8', 'HOME': '/tmp'})
    for pipe in (self._process.stdin, self._process.stdout):
      os.set_blocking(pipe.fileno(), False)
    self._setup = json.dumps({
      'program': program, 'isolated': kind == 'bubblewrap',
      'memory_bytes': limits.memory_mib << 20, 'processes': limits.processes,
      'file_bytes': limits.file_mib << 20, 'output_bytes': limits.output_mib << 20,
    })
    self._started = False

  def run(self, job: dict, seconds: float) -> tuple[Outcome, bool]:
    """Return the outcome, and whether the sandbox may be used again."""
    deadline = time.monotonic() + seconds + _SLACK_S
    try:
      if not self._started:
        self._exchange(self._setup, time.monotonic() + _START_S)
        deadline, self._started = time.monotonic() + seconds + _SLACK_S, True
      header, output = self._exchange(json.dumps(job | {'test_s': seconds}), deadline)
      return Outcome(header['status'], output), header['clean']
    except TimeoutError:
      return Outcome('timeout', b''), False
    except (OSError, EOFError, ValueError, KeyError):
      return Outcome('lost', b''), False

  def complaint(self) -> str:
    """Return what was written to stderr."""
    self._complaints.seek(0)
    return self._complaints.read(2000).decode(errors='replace').strip()

  def close(self) -> None:
    """Kill everything inside and remove what was written."""
    try:
      os.killpg(self._process.pid, signal.SIGKILL)
    except ProcessLookupError:
      pass
    self._process.wait()
    self._process.stdin.close()
    self._drain()
    self._process.stdout.close()
    self._complaints.close()
    if self._room:
      shutil.rmtree(self._room, ignore_errors=True)

  def _drain(self) -> None:
    """Wait until the driver, too, is gone: the last to hold the pipe."""
    deadline = time.monotonic() + _SLACK_S
    while (left := deadline - time.monotonic()) > 0:
      try:
        if not os.read(self._process.stdout.fileno(), 1 << 16):
          return
      except BlockingIOError:
        _ready(self._process.stdout.fileno(), select.POLLIN, left)

  def _exchange(self, request: str, deadline: float) -> tuple[dict, bytes]:
    """Send a frame and return the reply's header and body.

    Raises:
      TimeoutError: at the deadline.
      EOFError, OSError: the driver is gone.
    """
    data = request.encode()
    data = memoryview(struct.pack('<Q', len(data)) + data)
    while data:
      _wait(self._process.stdin.fileno(), select.POLLOUT, deadline)
      data = data[os.write(self._process.stdin.fileno(), data[:1 << 16]):]
    head, body = struct.unpack('<QQ', self._read(16, deadline))
    if head > 1 << 12 or body > (self._limits.output_mib << 20) + (1 << 16):
      raise ValueError('a reply beyond its bounds')
    return json.loads(self._read(head, deadline)), self._read(body, deadline)

  def _read(self, size: int, deadline: float) -> bytes:
    parts = []
    while size:
      _wait(self._process.stdout.fileno(), select.POLLIN, deadline)
      part = os.read(self._process.stdout.fileno(), min(size, 1 << 20))
      if not part:
        raise EOFError
      parts.append(part)
      size -= len(part)
    return b''.join(parts)


def _ready(descriptor: int, event: int, seconds: float) -> bool:
  poller = select.poll()
  poller.register(descriptor, event)
  return bool(poller.poll(max(0.0, seconds) * 1000))


def _wait(descriptor: int, event: int, deadline: float) -> None:
  if not _ready(descriptor, event, deadline - time.monotonic()):
    raise TimeoutError


def _walls(limits: Limits) -> list[str]:
  """Return bubblewrap's arguments."""
  prefix = os.path.realpath(sys.base_prefix)
  room = str(limits.room_mib << 20)
  walls = [
    '--unshare-pid', '--unshare-net', '--unshare-ipc', '--unshare-uts',
    '--unshare-cgroup-try', '--die-with-parent', '--new-session', '--clearenv',
    '--setenv', 'PATH', '/usr/bin:/bin', '--setenv', 'LANG', 'C.UTF-8', '--hostname',
    'sandbox', '--ro-bind', '/usr', '/usr', '--cap-drop', 'ALL']
  if os.getuid() == 0:
    # The kernel exempts root from the limit on processes, whatever namespace it is
    # in, so the driver itself becomes another user and unshares the user namespace.
    # bwrap's own process 1 stays root: out of the tests' reach, within bwrap's.
    walls += ['--cap-add', 'CAP_SETUID', '--cap-add', 'CAP_SETGID']
  else:
    # Here the driver is process 1: bwrap's would be the tests' equal.
    walls += ['--as-pid-1', '--unshare-user', '--uid', '65534', '--gid', '65534',
              '--cap-add', 'CAP_SYS_ADMIN']  # within its own user namespace
  for path in _ROOT_DIRECTORIES:
    if os.path.islink(path):
      walls += ['--symlink', os.readlink(path), path]
    elif os.path.isdir(path):
      walls += ['--ro-bind', path, path]
  if not pathlib.PurePath(prefix).is_relative_to('/usr'):
    for parent in list(pathlib.PurePath(prefix).parents)[-2::-1]:
      walls += ['--perms', '0755', '--dir', str(parent)]
    walls += ['--ro-bind', prefix, prefix]
  return [
    *walls, '--perms', '0755', '--dir', _INSIDE,
    '--ro-bind', str(_DRIVER), f'{_INSIDE}/{_DRIVER.name}',
    '--ro-bind', str(_PROGRAM), f'{_INSIDE}/{_PROGRAM.name}',
    '--proc', '/proc', '--dev', '/dev',
    '--size', room, '--perms', '1777', '--tmpfs', '/tmp',
    '--size', room, '--perms', '1777', '--tmpfs', '/dev/shm',
    '--remount-ro', '/dev', '--remount-ro', '/', '--chdir', '/tmp']
