"""Runs as processes side by side; resumed where they were killed, never repeated.

On CPU each has cores of its own, because XLA's threads would share all of them. What
one compiles the others find. A child ends with this process, after saving, so that the
next start finds no other.
"""

import ctypes
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterable

from lpo_jax import compilation, workdir


@dataclasses.dataclass(frozen=True)
class Job:
  """One process to come."""

  name: str
  folder: pathlib.Path
  config: object  # ConfigDict, of the base with its fields set
  command: list[str]
  after: str = ''  # the job whose policy it starts from


def done(job: Job) -> bool:
  """Return whether the job's run has reached its last step."""
  path = job.folder / workdir.SUMMARY
  try:
    return json.loads(path.read_text())['step'] == job.config.num_steps
  except (OSError, ValueError, KeyError):
    return False


class Runner:
  """Runs jobs side by side, each on cores of its own where the machine has only those.
  """

  def __init__(self, jobs: Iterable[Job], logs: pathlib.Path, processes: int):
    """Nothing starts before `run`.

    Args:
      jobs: of `plan`.
      logs: folder of what they say; what they compile is kept beside it.
      processes: at once; 0 for one a core on CPU, one on accelerators.
    """
    self._jobs, self._logs = list(jobs), logs
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else []
    count = processes or (max(1, len(cores)) if _on_cpu() else 1)
    share = max(1, len(cores) // count)
    self._free = [cores[i * share:(i + 1) * share] for i in range(count)]
    self._environment = os.environ | compilation.shared(str(logs.parent))
    self._running = {}  # job -> process, its cores, when it began
    self.failed = {}  # name -> why

  def run(self) -> None:
    """Run everything that is not done; end the children if this process is asked to.

    Raises:
      KeyboardInterrupt: on SIGINT and SIGTERM, after every child has saved.
    """
    before = signal.signal(signal.SIGTERM, _interrupt)
    waiting = [job for job in self._jobs if not done(job)]
    total, began, ended = len(waiting), time.monotonic(), 0
    say(f'{len(self._jobs) - total} of {len(self._jobs)} runs are done already')
    try:
      while waiting or self._running:
        waiting = self._begin(waiting)
        time.sleep(0.05)
        for name in self._end():
          ended += 1
          spent = time.monotonic() - began
          minutes = (total - ended - len(self.failed)) * spent / ended / 60
          say(f'[{ended}/{total}] {name}; about {minutes:.0f} min left')
    finally:
      self._stop()
      signal.signal(signal.SIGTERM, before)

  def _begin(self, waiting: list[Job]) -> list[Job]:
    """Start what can be started; return what still waits."""
    ready = {job.name for job in self._jobs if done(job)} if self._free else set()
    later = []
    for job in waiting:
      if job.after in self.failed:
        self.failed[job.name] = f'{job.after} failed'
      elif self._free and (not job.after or job.after in ready):
        cores, log = self._free.pop(), self._logs / f'{job.name}.txt'
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open('a') as file:
          process = subprocess.Popen(
            job.command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            env=self._environment,
            preexec_fn=_child(cores) if sys.platform == 'linux' else None)
        self._running[job.name] = (job, process, cores, time.monotonic())
      else:
        later.append(job)
    return later

  def _end(self):
    """Yield a line for every child that has ended."""
    for name, (job, process, cores, began) in list(self._running.items()):
      if process.poll() is None:
        continue
      del self._running[name]
      self._free.append(cores)
      if process.returncode == 0 and done(job):
        yield f'{name}: {time.monotonic() - began:.0f} s'
      else:
        log = self._logs / f'{name}.txt'
        self.failed[name] = f'exit status {process.returncode}, see {log}'
        say(f'{name} failed: {self.failed[name]}\n{_tail(log)}')

  def _stop(self) -> None:
    for _, process, *_ in self._running.values():
      process.send_signal(signal.SIGTERM)  # it saves and leaves in good order
    for _, process, *_ in self._running.values():
      try:
        process.wait(120)
      except subprocess.TimeoutExpired:
        process.kill()


def _child(cores: list[int]):
  """Return what a child does first: take its cores, and end when this process does."""
  def prepare():
    if cores:
      os.sched_setaffinity(0, cores)
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
  return prepare


def _on_cpu() -> bool:
  """Return whether JAX would use the CPU; asked in another process, which lets go."""
  found = subprocess.run(
    [sys.executable, '-c', 'import jax; print(jax.default_backend())'],
    capture_output=True, text=True)
  return found.stdout.strip() == 'cpu'


def _interrupt(*_):
  raise KeyboardInterrupt


def _tail(path: pathlib.Path, lines: int = 8) -> str:
  return '\n'.join(path.read_text(errors='replace').splitlines()[-lines:])


def say(text: str) -> None:
  """Tell the user."""
  print(text, flush=True)
