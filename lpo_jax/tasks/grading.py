"""A pool of processes that grades one batch while the next one decodes.

  with Grader('lpo_jax.tasks.math_verdict:judge', workers=4, deadline_s=10.0) as grader:
    handle = grader.submit(problems, texts)     # returns at once
    ...                                         # decode the next batch
    verdicts = handle.result()                  # in order, one per response

A response that outlasts its deadline costs its worker's life, not the run's; a worker
that dies is replaced. Nothing outlives the owner, whatever signal ends it.
"""

import dataclasses
import json
import logging
import math
import os
import pathlib
import pickle
import queue
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from lpo_jax.tasks import grading_worker

TIMEOUT, ERROR = 'timeout', 'error'  # notes that are counted
ATTEMPTS = 5  # deaths on one item before it is given up
START_S = 60.0
_ROOT = str(pathlib.Path(__file__).parents[2])
_COMMAND = ('import sys; sys.path.insert(0, sys.argv[1]); '
            'from lpo_jax.tasks import grading_worker; grading_worker.serve()')


@dataclasses.dataclass(frozen=True)
class Verdicts:
  """What a batch got."""

  rewards: list[list[float]]  # [B][K], in [0, 1]
  metrics: dict[str, tuple[float, float]]  # name -> (total, count); they add up
  failures: list[str]  # one line for each item without a verdict of its own
  notes: list[list[str]] = dataclasses.field(  # [B][K]: TIMEOUT, ERROR or ''
    default_factory=list)  # empty where verdicts come without


@dataclasses.dataclass
class _Item:
  handle: 'Handle'
  row: int
  column: int
  answer: Any
  text: str
  name: str


class Handle:
  """A batch on its way."""

  def __init__(self, texts: Sequence[Sequence[str]]):
    """Make room for the verdicts of `texts`, [B][K]."""
    self._rewards = [[0.0] * len(row) for row in texts]
    self._left = self._count = sum(map(len, texts))
    self._notes = [[''] * len(row) for row in texts]
    self._failures, self._fatal, self._waited = [], None, 0.0
    self._submitted = time.monotonic()
    self._lock, self._done = threading.Lock(), threading.Event()
    if not self._count:
      self._done.set()

  def done(self) -> bool:
    """Return whether `result` would return at once."""
    return self._done.is_set()

  def result(self, timeout_s: float | None = None) -> Verdicts:
    """Wait for the verdicts.

    Raises:
      RuntimeError: the verdict cannot be given on this machine (a missing library or
        sandbox), or the pool was closed.
      TimeoutError: after `timeout_s` seconds, if given.
    """
    if not self._done.wait(timeout_s):
      raise TimeoutError(f'{self._left} of {self._count} verdicts after {timeout_s} s')
    if self._fatal:
      raise RuntimeError(f'grading stopped: {self._fatal}')
    count = float(self._count)
    notes = [note for row in self._notes for note in row]
    return Verdicts(self._rewards, {
      'grading/timeout_frac': (float(notes.count(TIMEOUT)), count),
      'grading/error_frac': (float(notes.count(ERROR)), count),
      'grading/queue_s': (self._waited, count)}, sorted(self._failures), self._notes)

  def _start(self) -> None:
    with self._lock:
      self._waited += time.monotonic() - self._submitted

  def _finish(self, item: _Item, reward: float, note: str, why: str = '') -> None:
    with self._lock:
      self._rewards[item.row][item.column] = reward
      if note in (TIMEOUT, ERROR):
        self._notes[item.row][item.column] = note
      if why:
        self._failures.append(f'{item.name}: {why}')
        logging.getLogger(__name__).warning('verdict 0 for %s: %s', item.name, why)
      self._left -= 1
      if not self._left:
        self._done.set()

  def _fail(self, why: str) -> None:
    with self._lock:
      self._fatal = self._fatal or why
      self._done.set()


class Grader:
  """The pool."""

  def __init__(self, verify: str | Callable, *, workers: int = 2,
               deadline_s: float = 30.0, recycle: int = 1000,
               options: dict | None = None):
    """Start the workers and wait until each has loaded the verdict.

    Args:
      verify: 'module:function', or a function at the top of its module, called as
        function(problem.answer, text, **options) -> reward, or (reward, note) with
        note TIMEOUT or ERROR if that is what happened.
      workers: processes.
      deadline_s: wall clock of one item; then its worker is killed and it gets 0.
      recycle: items after which a worker is replaced.
      options: keyword arguments of the function.

    Raises:
      ValueError: a function that no other process can find, or a bad number.
      RuntimeError: a worker cannot load the verdict; says why.
    """
    if callable(verify):
      verify = f'{verify.__module__}:{verify.__qualname__}'
    if ':' not in verify or '<' in verify or '__main__:' in verify:
      raise ValueError(f'verify={verify!r} is no module:function that can be imported')
    if workers < 1 or recycle < 1 or not deadline_s > 0:
      raise ValueError(f'need workers >= 1, recycle >= 1, deadline_s > 0; got '
                       f'workers={workers}, recycle={recycle}, deadline_s={deadline_s}')
    self._verify, self._options = verify, options or {}
    self._deadline_s, self._recycle = deadline_s, recycle
    self._queue, self._handles = queue.SimpleQueue(), []
    self._closed, self._started = False, queue.SimpleQueue()
    self._threads = [threading.Thread(target=self._tend, daemon=True,
                                      name=f'grader-{i}') for i in range(workers)]
    for thread in self._threads:
      thread.start()
    faults = [fault for _ in self._threads if (fault := self._started.get())]
    if faults:
      self.close()
      raise RuntimeError(f'{verify} does not load in a worker: {faults[0]}')

  def submit(self, problems: Sequence, texts: Sequence[Sequence[str]]) -> Handle:
    """Queue a batch.

    Args:
      problems: B of them, of which `answer` and `id` are read.
      texts: [B][K] responses.

    Raises:
      ValueError: another number of problems than rows of texts, or a closed pool.
    """
    if self._closed:
      raise ValueError('the grading pool is closed')
    if len(problems) != len(texts):
      raise ValueError(f'{len(problems)} problems but {len(texts)} rows of texts')
    handle = Handle(texts)
    self._handles = [other for other in self._handles if not other.done()] + [handle]
    for row, (problem, responses) in enumerate(zip(problems, texts, strict=True)):
      for column, text in enumerate(responses):
        self._queue.put(_Item(handle, row, column, problem.answer, text,
                              f'response {column} to problem {problem.id!r}'))
    return handle

  def close(self) -> None:
    """End the workers; unfinished batches raise from `result`."""
    if self._closed:
      return
    self._closed = True
    for _ in self._threads:
      self._queue.put(None)
    for handle in self._handles:
      if not handle.done():
        handle._fail('the pool was closed')
    for thread in self._threads:
      thread.join()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()

  def _tend(self) -> None:
    """Own one worker at a time and hand it one item at a time."""
    try:
      worker = _Worker(self._verify)
    except RuntimeError as error:
      self._started.put(str(error))
      return
    self._started.put('')
    while (item := self._queue.get()) is not None:
      if not self._closed and not item.handle.done():
        item.handle._start()
        worker, reply = self._ask(worker, item)
        self._settle(item, reply)
    if worker is not None:
      worker.close()

  def _ask(self, worker: '_Worker | None', item: _Item):
    """Return the worker for the next item, None if it is dead, and the reply."""
    for _ in range(ATTEMPTS):
      if worker is not None and worker.items >= self._recycle:
        worker.close()
        worker = None
      try:
        worker = worker or _Worker(self._verify)
        return worker, worker.ask(
          (item.answer, item.text, self._options), self._deadline_s)
      except TimeoutError:
        worker.close()
        return None, {'reward': 0.0, 'note': TIMEOUT,
                      'why': f'no verdict within {self._deadline_s} s'}
      except (OSError, EOFError, ValueError):
        worker.close()
        worker = None
      except RuntimeError as error:
        return None, {'fatal': str(error)}
    return None, {'reward': 0.0, 'note': ERROR,
                  'why': f'its grader died {ATTEMPTS} times'}

  def _settle(self, item: _Item, reply: dict) -> None:
    """Tell the batch."""
    reward = reply.get('reward', 0.0)
    if 'fatal' in reply:
      item.handle._fail(f'{item.name}: {reply["fatal"]}')
    elif not (math.isfinite(reward) and 0.0 <= reward <= 1.0):
      item.handle._fail(f'{item.name}: reward={reward} is outside [0, 1]')
    else:
      item.handle._finish(item, reward, reply['note'], reply.get('why', ''))


class _Worker:
  """The owner's end of one process; used by the thread that made it alone."""

  def __init__(self, verify: str):
    self.items = 0
    self._process = subprocess.Popen(
      [sys.executable, '-P', '-c', _COMMAND, _ROOT, str(os.getpid()), verify],
      stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    for pipe in (self._process.stdin, self._process.stdout):
      os.set_blocking(pipe.fileno(), False)
    try:
      reply = self._reply(time.monotonic() + START_S)
    except (OSError, EOFError, ValueError) as error:
      reply = {'fatal': f'it does not start ({type(error).__name__})'}
    if 'fatal' in reply:
      self.close()
      raise RuntimeError(reply['fatal'])

  def ask(self, request: tuple, seconds: float) -> dict:
    """Return the reply; raises TimeoutError, or EOFError or OSError if it died."""
    self.items += 1
    deadline = time.monotonic() + seconds
    data = pickle.dumps(request)
    data = memoryview(grading_worker.HEADER.pack(len(data)) + data)
    while data:
      self._wait(self._process.stdin.fileno(), select.POLLOUT, deadline)
      data = data[os.write(self._process.stdin.fileno(), data[:1 << 16]):]
    return self._reply(deadline)

  def close(self) -> None:
    """Kill the process; what it started goes with it."""
    self._process.kill()
    self._process.wait()
    self._process.stdin.close()
    self._process.stdout.close()

  def _reply(self, deadline: float) -> dict:
    line = b''
    while not line.endswith(b'\n'):
      self._wait(self._process.stdout.fileno(), select.POLLIN, deadline)
      part = os.read(self._process.stdout.fileno(), 1 << 16)
      if not part:
        raise EOFError
      line += part
    return json.loads(line)

  def _wait(self, descriptor: int, event: int, deadline: float) -> None:
    poller = select.poll()
    poller.register(descriptor, event)
    left = deadline - time.monotonic()
    if left <= 0 or not poller.poll(left * 1000):
      raise TimeoutError
