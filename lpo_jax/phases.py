"""Where the time of a step goes, and a watchdog for when it goes nowhere.

`with phases('sample'): ...` adds the seconds spent to timing_s/sample. A daemon
thread looks at the open phases and, when one lasts longer than it should, logs
which, for how long, and the stack of the thread that is in it: once at the limit
and again each time the age has doubled.
"""

import contextlib
import dataclasses
import sys
import threading
import time
import traceback
from collections.abc import Iterator

from absl import logging


@dataclasses.dataclass
class _Open:
  """One phase that has begun and not ended."""

  name: str
  began: float  # seconds
  warn_at: float  # age in seconds at which the watchdog speaks next
  thread: int  # identifier of the thread inside it


class Phases:
  """Seconds per named phase; phases may nest, each counts its own whole span."""

  def __init__(self, limit_s: float | None = 600.0, poll_s: float | None = None):
    """Start the watchdog.

    Args:
      limit_s: age in seconds at which a phase is reported; None for no watchdog.
      poll_s: seconds between two looks; a tenth of the limit, at most 5, if None.

    Raises:
      ValueError: `limit_s` is not positive.
    """
    if limit_s is not None and limit_s <= 0:
      raise ValueError(f'{limit_s=} must be positive, or None for no watchdog')
    self._limit_s = limit_s
    self._seconds: dict[str, float] = {}
    self._open: list[_Open] = []
    self._lock = threading.Lock()
    self._stop = threading.Event()
    self._watchdog = None
    if limit_s is not None:
      poll_s = min(limit_s / 10, 5.0) if poll_s is None else poll_s
      self._watchdog = threading.Thread(
        target=self._watch, args=(poll_s,), name='phase_watchdog', daemon=True
      )
      self._watchdog.start()

  @contextlib.contextmanager
  def __call__(self, name: str) -> Iterator[None]:
    """Time the body of a with statement as the phase `name`."""
    limit_s = float('inf') if self._limit_s is None else self._limit_s
    phase = _Open(name, time.monotonic(), limit_s, threading.get_ident())
    with self._lock:
      self._open.append(phase)
    try:
      yield
    finally:
      seconds = time.monotonic() - phase.began
      with self._lock:
        self._open.remove(phase)
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds

  def flush(self) -> dict[str, float]:
    """Return {'timing_s/<name>': seconds} of the phases ended since the last flush."""
    with self._lock:
      seconds, self._seconds = self._seconds, {}
    return {f'timing_s/{name}': value for name, value in seconds.items()}

  def close(self) -> None:
    """Stop the watchdog."""
    self._stop.set()
    if self._watchdog is not None:
      self._watchdog.join()

  def _watch(self, poll_s: float) -> None:
    while not self._stop.wait(poll_s):
      now = time.monotonic()
      with self._lock:
        overdue = [p for p in self._open if now - p.began >= p.warn_at]
        for phase in overdue:
          while phase.warn_at <= now - phase.began:
            phase.warn_at *= 2
      if overdue:  # the innermost says most; those around it are slow because of it
        _warn(overdue[-1], now - overdue[-1].began, self._limit_s)


def _warn(phase: _Open, age: float, limit_s: float) -> None:
  frame = sys._current_frames().get(phase.thread)
  stack = ''.join(traceback.format_stack(frame)) if frame else '(its thread is gone)'
  logging.warning(
    'phase %r has lasted %.0f s, more than limit_s=%g; its thread is here:\n%s',
    phase.name, age, limit_s, stack,
  )  # fmt: skip
