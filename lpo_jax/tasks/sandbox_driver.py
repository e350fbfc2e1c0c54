"""The inside of the sandbox: runs one program once per test, each time from scratch.

Started by `sandbox` as a file of its own, with the standard library alone. A test is a
forked interpreter in its own process namespace, without capabilities, under resource
limits and a system call filter; when it ends or its time is up the whole namespace is
killed. The driver knows inputs, one at a time, and never an expected output; what it
reports is what the program printed or returned, and the judge outside compares.
"""

import ctypes
import gc
import json
import os
import resource
import select
import signal
import struct
import sys
import time

sys.path.append(os.path.dirname(os.path.abspath(__file__)))  # last: it may hold math.py
import sandbox_program  # noqa: E402

sys.path.pop()

_CLONE_NEWUSER, _CLONE_NEWPID = 0x10000000, 0x20000000
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4
_PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 36, 38
_POLL_S = 0.05  # between two looks at memory
_ROOM = ('/tmp', '/dev/shm')  # what must be empty for the next test
_NOBODY = 64123  # an unused user and group, taken where the sandbox starts as root
_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
  """Serve frames on stdin until it closes; leave when a test leaves files behind."""
  requests, replies = os.dup(0), os.dup(1)
  null = os.open('/dev/null', os.O_RDWR)
  for descriptor in (0, 1, 2):
    os.dup2(null, descriptor)
  setup = json.loads(_read_frame(requests))
  _prepare(setup)
  gc.freeze()  # so that a fork copies less
  _write_frame(replies, {'status': 'ready'}, b'')
  while (frame := _read_frame(requests)) is not None:
    job = json.loads(frame)
    status, output = _run({**setup, 'test_s': job['test_s']}, job, requests)
    if status == 'abandoned':
      return
    clean = not setup['isolated'] or not any(
      os.path.isdir(room) and os.listdir(room) for room in _ROOM)
    _write_frame(replies, {'status': status, 'clean': clean}, output)
    if not clean:
      return


def _read_frame(descriptor: int) -> bytes | None:
  head = _read_exactly(descriptor, 8)
  return head and _read_exactly(descriptor, struct.unpack('<Q', head)[0])


def _read_exactly(descriptor: int, size: int) -> bytes | None:
  parts = []
  while size:
    part = os.read(descriptor, min(size, 1 << 20))
    if not part:
      return None
    parts.append(part)
    size -= len(part)
  return b''.join(parts)


def _write_frame(descriptor: int, header: dict, body: bytes) -> None:
  head = json.dumps(header).encode()
  data = struct.pack('<QQ', len(head), len(body)) + head + body
  while data:
    data = data[os.write(descriptor, data):]


def _control(option: int, value: int) -> None:
  sandbox_program.check(_libc.prctl(option, value, 0, 0, 0), f'prctl({option})')


def _prepare(setup: dict) -> None:
  """Become nobody in a user namespace of its own; be hidden from the tests."""
  if setup['isolated'] and os.getuid() == 0:  # as root, bwrap leaves the user to us
    os.setgroups([])
    os.setresgid(_NOBODY, _NOBODY, _NOBODY)
    os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    sandbox_program.check(_libc.unshare(_CLONE_NEWUSER), 'unshare(CLONE_NEWUSER)')
  if not setup['isolated']:
    _control(_PR_SET_CHILD_SUBREAPER, 1)
  _control(_PR_SET_NO_NEW_PRIVS, 1)
  _control(_PR_SET_DUMPABLE, 0)


def _run(setup: dict, job: dict, owner: int) -> tuple[str, bytes]:
  """Run one test; return its status and what it printed or returned."""
  reads, writes = os.pipe()
  source = os.memfd_create('stdin')
  data = job.get('stdin', '').encode('utf-8', 'surrogatepass')
  while data:
    data = data[os.write(source, data):]
  os.lseek(source, 0, os.SEEK_SET)
  pid = _fork_namespace() if setup['isolated'] else os.fork()
  if pid == 0:
    try:
      if setup['isolated']:
        _be_init(setup, job, source, writes)
      else:
        sandbox_program.run(setup, job, source, writes)
    finally:
      os._exit(70)
  os.close(writes)
  os.close(source)
  status, output = _watch(setup, pid, reads, owner)
  os.close(reads)
  return status, output


def _fork_namespace() -> int:
  """Fork into a new process namespace; killing the child kills all of it."""
  number = sandbox_program.MACHINES[os.uname().machine][1]
  pid = ctypes.PyDLL(None, use_errno=True).syscall(
    ctypes.c_long(number),
    ctypes.c_ulong(_CLONE_NEWPID | signal.SIGCHLD), None, None, None, None)
  sandbox_program.check(pid, 'clone(CLONE_NEWPID)')
  return pid


def _be_init(setup: dict, job: dict, source: int, writes: int) -> None:
  """Be process 1 of a test: fork the program, reap, end as it ends."""
  _control(_PR_SET_PDEATHSIG, signal.SIGKILL)
  child = os.fork()
  if child == 0:
    try:
      sandbox_program.run(setup, job, source, writes)
    finally:
      os._exit(70)
  os.closerange(3, 256)
  while True:
    pid, status = os.waitpid(-1, 0)
    if pid == child:
      os._exit(min(os.waitstatus_to_exitcode(status) & 0xFF, 255))


def _watch(setup: dict, pid: int, reads: int, owner: int) -> tuple[str, bytes]:
  """Collect output until the test ends or breaks a bound; then nothing of it lives."""
  start = look = time.monotonic()
  poller, parts, size, status = select.poll(), [], 0, ''
  ended = os.pidfd_open(pid)
  poller.register(reads, select.POLLIN)
  poller.register(ended, select.POLLIN)
  poller.register(owner, 0)  # reports that nobody asks any more
  while not status:
    ready = [descriptor for descriptor, _ in poller.poll(_POLL_S * 1000)]
    now = time.monotonic()
    if reads in ready:
      parts.append(os.read(reads, 1 << 16))
      size += len(parts[-1])
      if not parts[-1]:
        poller.unregister(reads)
    if owner in ready:
      status = 'abandoned'
    elif size > setup['output_bytes']:
      status = 'output'
    elif ended in ready:
      code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
      status, pid = 'error' if code else 'ok', 0
    elif now > start + setup['test_s']:
      status = 'timeout'
    elif now > look + _POLL_S:
      look = now
      if _resident_bytes() > setup['memory_bytes']:
        status = 'memory'
  os.close(ended)
  _end(setup, pid)
  while status in ('ok', 'error') and size <= setup['output_bytes']:
    os.set_blocking(reads, False)
    try:
      part = os.read(reads, 1 << 16)
    except BlockingIOError:
      break
    if not part:
      break
    parts.append(part)
    size += len(part)
  return ('output', b'') if size > setup['output_bytes'] else (status, b''.join(parts))


def _resident_bytes() -> int:
  """Return the resident memory of all the processes that a test may have."""
  total = 0
  for pid in _descendants():
    try:
      with open(f'/proc/{pid}/statm') as file:
        total += int(file.read().split()[1])
    except (OSError, IndexError, ValueError):
      pass
  return total * resource.getpagesize()


def _descendants() -> list[int]:
  """Return the processes below the driver, the driver aside."""
  parents = {}
  for name in os.listdir('/proc'):
    if name.isdigit():
      try:
        with open(f'/proc/{name}/stat', 'rb') as file:
          parents[int(name)] = int(file.read().rpartition(b')')[2].split()[1])
      except (OSError, IndexError, ValueError):
        pass
  found, frontier = [], {os.getpid()}
  while frontier:
    frontier = {pid for pid, parent in parents.items() if parent in frontier}
    found += frontier
  return found


def _end(setup: dict, pid: int) -> None:
  """Kill what is left of a test and reap it."""
  if pid:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
  for _ in range(0 if setup['isolated'] else 100):
    left = _descendants()
    for other in left:
      try:
        os.kill(other, signal.SIGKILL)
      except OSError:
        pass
    try:
      while os.waitpid(-1, os.WNOHANG)[0]:
        pass
    except ChildProcessError:
      if not left:
        return
    time.sleep(0.001)


if __name__ == '__main__':
  main()
