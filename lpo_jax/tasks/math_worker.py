"""math-verify in a process of its own, killed when an answer takes too long.

Three processes: the caller; a keeper, which has math-verify loaded and warm and never
looks at an answer; and its forked child, which compares answers until one outlasts the
deadline or its memory, dies, and is forked anew within milliseconds. No alarm signal,
so any thread may ask. The keeper goes when its caller does, the child with the keeper.
A deadline counts the child's own processor time, so that a verdict does not depend on
what else the machine does; `PATIENCE` times as much wall clock ends it in any case.
"""

import ctypes
import json
import logging
import os
import pathlib
import resource
import select
import signal
import subprocess
import sys
import threading
import time

DEADLINE_S = 2.5  # processor seconds of one comparison
PATIENCE = 3.0  # times as many seconds of wall clock
START_S, ATTEMPTS = 60.0, 3  # of loading math-verify, once
MEMORY_BYTES = 2 << 30
ITEMS = 1000  # comparisons after which a child is replaced
TIMEOUT, ERROR = 'timeout', 'error'
_ROOT = str(pathlib.Path(__file__).parents[2])
_COMMAND = ('import sys; sys.path.insert(0, sys.argv[1]); '
            'from lpo_jax.tasks import math_worker; math_worker.serve()')
_WARM = (('\\frac{1}{2}', '0.5'), ('(1,\\sqrt{2})', '(1,x^2)'), ('\\{1,\\pi\\}', 'A'))


class Comparer:
  """The caller's end: one keeper, used by one thread at a time, restarted if lost."""

  def __init__(self, deadline_s: float = DEADLINE_S):
    """Nothing starts before the first comparison."""
    self._deadline_s = deadline_s
    self._lock = threading.Lock()
    self._process = None
    self._owner = None

  def equal(self, gold: str, answer: str) -> tuple[bool, str]:
    """Return whether math-verify calls two LaTeX texts equal, and what went wrong.

    Args:
      gold: the reference.
      answer: what is judged.

    Returns:
      The verdict, and '', TIMEOUT, or ERROR if the child died.

    Raises:
      ImportError: math-verify is not installed.
      RuntimeError: it is, but does not start.
    """
    with self._lock:
      alive = self._process is not None and self._process.poll() is None
      if not alive or self._owner != os.getpid():
        self._start()
      request = json.dumps({'gold': gold, 'answer': answer, 's': self._deadline_s})
      try:
        self._process.stdin.write(request.encode() + b'\n')
        self._process.stdin.flush()
        # The keeper answers soon after the deadline even when the machine is busy.
        reply = json.loads(_read_line(
          self._process.stdout.fileno(), PATIENCE * self._deadline_s + 5.0))
      except (OSError, EOFError, ValueError):
        self._stop()
        return False, ERROR
      return bool(reply['equal']), reply['note']

  def close(self) -> None:
    """End the keeper."""
    with self._lock:
      self._stop()

  def _start(self) -> None:
    if self._owner == os.getpid():
      self._stop()
    self._owner = os.getpid()
    for attempt in range(ATTEMPTS):
      self._process = subprocess.Popen(
        [sys.executable, '-P', '-c', _COMMAND, _ROOT], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, start_new_session=True)
      try:
        reply = _read_line(self._process.stdout.fileno(), START_S).decode()
      except (OSError, EOFError) as error:
        self._stop()
        logging.getLogger(__name__).warning(
          'math-verify did not start (%s), attempt %d', type(error).__name__, attempt)
        continue
      if reply == 'ready':
        return
      self._stop()
      raise ImportError(f'{reply}: the math verdict needs pip install math-verify')
    raise RuntimeError(
      f'math-verify did not start in {ATTEMPTS} attempts of {START_S} s')

  def _stop(self) -> None:
    if self._process is not None:
      self._process.kill()
      self._process.wait()
      self._process.stdin.close()
      self._process.stdout.close()
    self._process = None


def _read_line(descriptor: int, seconds: float, owner: int | None = None) -> bytes:
  """Return one line without its end.

  With `owner`, a pipe's reading end, stop as soon as nobody can write to that.

  Raises:
    TimeoutError: it does not come in time.
    EOFError: the writer, or the owner, is gone.
  """
  deadline, line = time.monotonic() + seconds, b''
  readable = select.poll()
  readable.register(descriptor, select.POLLIN)
  if owner is not None:
    readable.register(owner, 0)
  while not line.endswith(b'\n'):
    left = deadline - time.monotonic()
    ready = dict(readable.poll(max(left, 0.0) * 1000))
    if not ready:
      raise TimeoutError
    if owner in ready:
      raise EOFError
    part = os.read(descriptor, 65536)
    if not part:
      raise EOFError
    line += part
  return line[:-1]


def serve() -> None:
  """Be the keeper: answer requests on stdin until it closes."""
  replies = os.dup(1)
  os.dup2(2, 1)  # nothing a library prints may look like a reply
  try:
    import lpo_jax.tasks.math_symbols as symbols
    for gold, answer in _WARM:
      symbols.equal(gold, answer)
  except ImportError as error:
    os.write(replies, f'{error}\n'.encode())
    return
  os.write(replies, b'ready\n')
  child = None
  for line in sys.stdin.buffer:
    if child is None or child.items >= ITEMS:
      if child is not None:
        child.end()
      child = _Child(symbols.equal)
    try:
      reply = child.ask(line, json.loads(line)['s'])
    except (OSError, EOFError, ValueError) as error:
      child.end()
      child = None
      note = TIMEOUT if isinstance(error, TimeoutError) else ERROR
      reply = json.dumps({'equal': False, 'note': note}).encode()
    try:
      os.write(replies, reply + b'\n')
    except BrokenPipeError:  # the caller is gone
      break
  if child is not None:
    child.end()


class _Child:
  """The keeper's end of a forked comparer."""

  def __init__(self, equal):
    request_read, self._requests = os.pipe()
    self._replies, reply_write = os.pipe()
    self.items = 0
    self._pid = os.fork()
    if self._pid:
      os.close(request_read)
      os.close(reply_write)
      return
    try:
      os.close(self._requests)
      os.close(self._replies)
      _compare(equal, request_read, reply_write)
    finally:
      os._exit(1)

  def ask(self, line: bytes, seconds: float) -> bytes:
    self.items += 1
    start, spent = time.monotonic(), self._cpu_s()
    os.write(self._requests, line)
    while True:
      left = seconds - (self._cpu_s() - spent)
      patience = start + PATIENCE * seconds - time.monotonic()
      try:
        return _read_line(self._replies, max(0.02, min(left, patience)), owner=0)
      except TimeoutError:
        if patience <= 0 or self._cpu_s() - spent >= seconds:
          raise

  def _cpu_s(self) -> float:
    """Return the processor seconds that the process has used."""
    fields = pathlib.Path(f'/proc/{self._pid}/stat').read_text().rpartition(')')[2]
    return sum(map(int, fields.split()[11:13])) / os.sysconf('SC_CLK_TCK')

  def end(self) -> None:
    os.kill(self._pid, signal.SIGKILL)
    os.waitpid(self._pid, 0)
    os.close(self._requests)
    os.close(self._replies)


def _compare(equal, requests: int, replies: int) -> None:
  """Be the child: compare until killed; write nothing but replies, start nothing."""
  ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
  for limit, value in ((resource.RLIMIT_AS, MEMORY_BYTES), (resource.RLIMIT_CORE, 0),
                       (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_NPROC, 0)):
    resource.setrlimit(limit, (value, value))
  with os.fdopen(requests, 'rb') as lines:
    for line in lines:
      request = json.loads(line)
      try:
        found, note = bool(equal(request['gold'], request['answer'])), ''
      except (MemoryError, RecursionError):
        found, note = False, ERROR
      reply = json.dumps({'equal': found, 'note': note})
      os.write(replies, reply.encode() + b'\n')
