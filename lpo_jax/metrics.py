"""Means that merge exactly, and the files of a run that hold numbers.

`metrics.jsonl` has one object a line: {"step": 3, "reward/mean": 0.5, ...}, steps
strictly rising. Floats are written with repr's digits, so what is read back is
bit-identical; NaN and infinities are written as null, since JSON has no others.
A run that resumes after step C drops every line past C before it writes again.
"""

import json
import math
import os
import pathlib
import sys
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from absl import logging

from lpo_jax.types import Mean

FILE = 'metrics.jsonl'


def merge(left: dict[str, Mean], right: dict[str, Mean]) -> dict[str, Mean]:
  """Return the metrics of two parts of a batch as those of the whole."""
  merged = dict(left)
  for name, value in right.items():
    merged[name] = merged[name] + value if name in merged else value
  return merged


def reduce(metrics: dict[str, Mean]) -> dict[str, float]:
  """Return each mean as a float, fetched in one transfer; NaN where nothing counted."""
  return {name: float(mean) for name, mean in jax.device_get(metrics).items()}


class Writer:
  """Appends a run's numbers to DIR/metrics.jsonl and DIR/tensorboard."""

  def __init__(
    self, workdir: str, resume_step: int | None = None, tensorboard: bool = True
  ):
    """Open the files, keeping what was written up to `resume_step`.

    Args:
      workdir: the run's folder; created if absent.
      resume_step: the restored checkpoint's step: lines past it, and a last line
        that was cut short, are removed. None starts from an empty file.
      tensorboard: also write DIR/tensorboard.

    Raises:
      ValueError: `workdir` cannot be written.
    """
    check_writable(workdir)
    self._path = pathlib.Path(workdir) / FILE
    self._last = -1 if resume_step is None else resume_step
    _truncate(self._path, self._last)
    self._file = self._path.open('a', encoding='utf-8')
    self._board = None
    self._wants_board = tensorboard

  def write(self, step: int, numbers: dict[str, Any]) -> None:
    """Append one line and hand it to the operating system.

    Args:
      step: the line's step, past every step written before.
      numbers: name -> int, float, 0-d array or Mean.

    Raises:
      ValueError: `step` is already in the file.
    """
    if step <= self._last:
      raise ValueError(f'{step=} does not follow the last written step={self._last}')
    line = {'step': int(step)} | {n: _number(value) for n, value in numbers.items()}
    self._file.write(json.dumps(line, allow_nan=False) + '\n')
    self._file.flush()
    self._last = step
    if self._wants_board:
      self._board = self._board or _open_board(self._path, step)
      for name, value in line.items():
        if name != 'step' and value is not None:
          self._board.add_scalar(name, value, step)

  def sync(self) -> None:
    """Force what was written to the disk; call before a checkpoint is saved."""
    self._file.flush()
    os.fsync(self._file.fileno())
    if self._board is not None:
      self._board.flush()

  def close(self) -> None:
    """Sync and close the files."""
    self.sync()
    self._file.close()
    if self._board is not None:
      self._board.close()


def _open_board(path: pathlib.Path, first: int):
  """Return a writer of DIR/tensorboard whose steps from `first` replace older ones.

  tensorboardX imports torch where it is installed, for seconds, and does without it
  where it is not: here it is told that it is not.
  """
  there = sys.modules.setdefault('torch', None)  # None: not to be found
  try:
    import tensorboardX
  finally:
    if there is None:
      del sys.modules['torch']

  return tensorboardX.SummaryWriter(str(path.with_name('tensorboard')),
                                    purge_step=first)


class Silence:
  """The writer of a process that writes nothing."""

  def write(self, step: int, numbers: dict[str, Any]) -> None:
    """Write nothing."""

  def sync(self) -> None:
    """Sync nothing."""

  def close(self) -> None:
    """Close nothing."""


def read(workdir: str) -> list[dict]:
  """Return the lines of DIR/metrics.jsonl; a last line cut short is left out.

  Raises:
    FileNotFoundError: there is no such file.
  """
  return [row for row, _ in _whole_lines(pathlib.Path(workdir) / FILE)]


def validation(numbers: dict) -> dict:
  """Return those numbers that evaluation found."""
  return {name: value for name, value in numbers.items() if name.startswith('val/')}


def check_writable(workdir: str) -> None:
  """Create `workdir` if absent and prove that a file can be written in it.

  Raises:
    ValueError: it cannot.
  """
  probe = pathlib.Path(workdir) / f'.probe_{os.getpid()}'
  try:
    probe.parent.mkdir(parents=True, exist_ok=True)
    probe.write_text('')
    probe.unlink()
  except OSError as error:
    reason = error.strerror or error
    raise ValueError(f'workdir={workdir} cannot be written: {reason}') from error


def write_json(path: str, value: Any) -> None:
  """Write one JSON file, whole or not at all; NaN and infinities become null."""
  _replace(path, json.dumps(_plain(value), indent=2, allow_nan=False) + '\n')


def write_text(path: str, text: str) -> None:
  """Write one text file, whole or not at all."""
  _replace(path, text)


def write_rollouts(path: str, rows: Iterable[dict]) -> None:
  """Write one JSON object a line, the whole file or none of it."""
  lines = [json.dumps(_plain(row), allow_nan=False, ensure_ascii=False) for row in rows]
  _replace(path, ''.join(line + '\n' for line in lines))


def _replace(path: str, text: str) -> None:
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  # Beside the target, since a rename is atomic only within one file system.
  partial = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
  with partial.open('w', encoding='utf-8') as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  os.replace(partial, path)


def _truncate(path: pathlib.Path, last: int) -> None:
  lines = _whole_lines(path) if path.exists() else []
  _replace(path, ''.join(text + '\n' for row, text in lines if row['step'] <= last))


def _whole_lines(path: pathlib.Path) -> list[tuple[dict, str]]:
  lines, broken = [], 0
  texts = path.read_text(encoding='utf-8', errors='replace').split('\n')
  for text in filter(None, texts):
    try:
      row = json.loads(text)
      int(row['step'])
      lines.append((row, text))
    except (ValueError, TypeError, KeyError):
      broken += 1
  if broken:
    logging.warning('%s: left out %d lines cut short or damaged', path, broken)
  return lines


def _number(value: Any) -> int | float | None:
  value = float(value) if isinstance(value, Mean) else np.asarray(value).item()
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  return int(value)


def _plain(value: Any) -> Any:
  if isinstance(value, dict):
    return {str(name): _plain(entry) for name, entry in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(entry) for entry in value]
  if isinstance(value, np.ndarray | jax.Array) and np.ndim(value):
    return [_plain(entry) for entry in np.asarray(value)]
  if value is None or isinstance(value, str | bool):
    return value
  return _number(value)
