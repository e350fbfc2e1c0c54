"""Save and restore a training state: atomic, asynchronous, verified.

Orbax writes each step to a temporary folder and renames it, so a killed save is
never seen. It does not notice a flipped byte in an array, so beside the arrays
stands a manifest of shapes, dtypes and fingerprints. A pytree is stored as a flat
dict 'path/with/slashes' -> array: no container leaves a trace in the file, and
the sharding of the state given to `restore` decides where the arrays land.
"""

import dataclasses
import json
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from lpo_jax import hosts, manifest

STATE, MANIFEST = 'state', 'manifest'


class DamagedError(RuntimeError):
  """No checkpoint could be read back as it was written."""


class Checkpointer:
  """The checkpoints of one run, at `directory`/<step>."""

  def __init__(
    self,
    directory: str,
    keep_last: int = 2,
    best_metric: str | None = None,
    best_mode: str = 'max',
    every: int = 1,
  ):
    """Open `directory`, creating it and clearing saves that a kill cut short.

    Args:
      directory: where the steps' folders stand.
      keep_last: how many of the newest checkpoints are kept.
      best_metric: also keep the best checkpoint by this entry of `save`'s metrics.
      best_mode: 'max' or 'min': which value of `best_metric` is the best.
      every: `save` acts at multiples of this step count, unless forced.

    Raises:
      ValueError: an argument is out of range.
    """
    if keep_last < 1 or every < 1:
      raise ValueError(f'{keep_last=} and {every=} must be at least 1')
    if best_mode not in ('max', 'min'):
      raise ValueError(f"{best_mode=} must be 'max' or 'min'")
    self.directory = pathlib.Path(directory).absolute()
    self.messages = []  # what the last restore had to say, oldest first
    self._best_metric, self._every = best_metric, every
    self._policy = _LastAndBest(keep_last, best_mode, _read_scores(self.directory))
    self._manager = ocp.CheckpointManager(
      self.directory,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=self._policy, cleanup_tmp_directories=True
      ),
    )

  def due(self, step: int) -> bool:
    """Return whether `save` acts at this step without being forced."""
    return step % self._every == 0

  def steps(self) -> list[int]:
    """Return the steps that have a checkpoint, in ascending order."""
    return sorted(self._manager.all_steps())

  def latest_step(self) -> int | None:
    """Return the newest checkpoint's step, or None."""
    return max(self._manager.all_steps(), default=None)

  def save(
    self, step: int, state: Any, metrics: dict | None = None, force: bool = False
  ) -> bool:
    """Start saving `state`; return once its arrays may be donated.

    Args:
      step: finished iterations; names the checkpoint.
      state: pytree of arrays.
      metrics: name -> number; read for `best_metric`, where present and finite.
      force: save although the step is not a multiple of `every`.

    Returns:
      Whether a save was started: not if it is not due or the step is saved already.

    Raises:
      Exception: what went wrong in the asynchronous save before this one.
    """
    if not (force or self.due(step)) or step in self._manager.all_steps():
      return False
    flat = manifest.flatten(state)
    score = (metrics or {}).get(self._best_metric)
    score = None if score is None or not math.isfinite(score) else float(score)
    self._policy.scores.pop(step, None)
    if score is not None:
      self._policy.scores[step] = score
    return self._manager.save(
      step,
      args=ocp.args.Composite(
        **{
          STATE: ocp.args.PyTreeSave(flat),
          MANIFEST: ocp.args.JsonSave(manifest.describe(flat) | {'score': score}),
        }
      ),
      force=True,
    )

  def wait(self) -> None:
    """Block until the save under way is on disk; raise what went wrong in it."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Finish the save under way and release the threads."""
    self._manager.close()

  def restore(self, abstract_state: Any) -> tuple[Any, int] | None:
    """Return the newest intact checkpoint and its step, or None if there is none.

    Damaged checkpoints newer than the one returned are renamed to
    damaged_<step>, so that the step can be saved again; `messages` says so.

    Args:
      abstract_state: pytree of arrays or of ShapeDtypeStructs with shardings; a
        leaf without a sharding goes to the first device.

    Raises:
      manifest.MismatchError: the newest readable checkpoint has other arrays than
        `abstract_state`; names them. Nothing was changed.
      DamagedError: checkpoints exist and none is intact. Nothing was changed.
    """
    self.wait()
    steps = hosts.gather(self.steps())[0]  # all read what process 0 sees
    folders = [self.directory / str(step) for step in reversed(steps)]
    if not folders:
      return None
    state, folder, self.messages = _newest_intact(folders, abstract_state, prefix='')
    self._set_aside(folders[: folders.index(folder)])
    return state, int(folder.name)

  def _set_aside(self, folders: list[pathlib.Path]) -> None:
    if not folders:
      return
    if hosts.first():
      for folder in folders:
        names = [f'damaged_{folder.name}'] + [
          f'damaged_{folder.name}_{copy}' for copy in range(1, 1000)
        ]
        free = (folder.with_name(n) for n in names if not folder.with_name(n).exists())
        folder.rename(next(free))
    hosts.gather(None)  # renamed, before anyone looks again
    self._manager.reload()


def restore_params(path: str, abstract_params: Any, prefix: str = 'params') -> Any:
  """Return the parameters stored in another run, read without changing it.

  Args:
    path: a run's workdir, its checkpoints folder, or one step's folder.
    abstract_params: pytree of arrays or of ShapeDtypeStructs with shardings.
    prefix: the field of the saved state that holds the parameters.

  Raises:
    FileNotFoundError: `path` holds no checkpoint.
    manifest.MismatchError, DamagedError: as `Checkpointer.restore`.
  """
  return newest_params(path, abstract_params, prefix)[0]


def newest_params(path: str, abstract_params: Any, prefix: str = 'params'
                  ) -> tuple[Any, int]:
  """Return the parameters of `restore_params` and their step."""
  folders = hosts.gather([str(f) for f in _step_folders(pathlib.Path(path).absolute())])
  folders = [pathlib.Path(folder) for folder in folders[0]]
  if not folders:
    raise FileNotFoundError(
      f'no checkpoint at {path}: expected a run folder with checkpoints/<step>, '
      'a folder of <step> folders, or one such folder'
    )
  params, folder, _ = _newest_intact(folders, abstract_params, f'{prefix}/')
  return params, int(folder.name)


def described(path: str, prefix: str = 'params') -> dict[str, str]:
  """Return the dtype of each array of a run's newest checkpoint, by name.

  Args:
    path: as of `restore_params`.
    prefix: the field of the saved state whose arrays are meant.

  Raises:
    FileNotFoundError: `path` holds no checkpoint whose manifest can be read.
  """
  for folder in _step_folders(pathlib.Path(path).absolute()):
    try:
      arrays = json.loads((folder / MANIFEST / 'metadata').read_text())['arrays']
    except (OSError, ValueError, KeyError):
      continue  # damaged: `restore_params` says so
    return {name.removeprefix(f'{prefix}/'): dtype
            for name, (_, dtype, _) in arrays.items() if name.startswith(f'{prefix}/')}
  raise FileNotFoundError(f'no checkpoint at {path}')


@dataclasses.dataclass
class _LastAndBest:
  """Which checkpoints Orbax preserves: its BestN forgets the scores at a restart."""

  keep_last: int
  best_mode: str
  scores: dict[int, float]  # by step; only checkpoints that have one

  def should_preserve(self, checkpoints, *, context):
    steps = [checkpoint.step for checkpoint in checkpoints]
    kept = set(sorted(steps)[-self.keep_last :])
    scored = [step for step in sorted(steps) if step in self.scores]
    if scored:
      pick = max if self.best_mode == 'max' else min
      kept.add(pick(scored, key=self.scores.get))
    return [step in kept for step in steps]


def _read_scores(directory: pathlib.Path) -> dict[int, float]:
  scores = {}
  for folder in _step_folders(directory):
    try:
      score = json.loads((folder / MANIFEST / 'metadata').read_text())['score']
      scores[int(folder.name)] = float(score)
    except (OSError, ValueError, TypeError, KeyError):
      continue  # no score, or damaged: either way not known to be the best
  return scores


def _step_folders(path: pathlib.Path) -> list[pathlib.Path]:
  if (path / STATE).is_dir():
    return [path]
  root = path / 'checkpoints' if (path / 'checkpoints').is_dir() else path
  folders = [f for f in root.glob('*') if f.name.isdecimal() and f.is_dir()]
  return sorted(folders, key=lambda folder: -int(folder.name))


def _newest_intact(folders: list[pathlib.Path], abstract: Any, prefix: str):
  """Return (tree, its folder, messages about those skipped), trying in order."""
  failures = []
  for folder in folders:
    stored, reason = None, None
    try:
      described, stored = _read(folder, abstract, prefix)
    except (manifest.MismatchError, MemoryError, PermissionError):
      raise
    except Exception as error:  # damage surfaces in Orbax even as plain Exception
      reason = f'{type(error).__name__}: {str(error)[:300]}'
    whole = not hosts.anywhere(reason is not None)
    if whole:  # now that every process has its part
      try:
        manifest.check_bits(described, stored)
      except ValueError as error:
        whole, reason = False, f'{type(error).__name__}: {str(error)[:300]}'
    if whole:
      tree = jax.tree.unflatten(jax.tree.structure(abstract), list(stored.values()))
      messages = [f'fell back from {text}' for text in failures]
      for message in messages:
        logging.warning('%s; restored %s instead', message, folder)
      return tree, folder, messages
    failures.append(f'damaged checkpoint {folder} ({reason or "on another host"})')
  raise DamagedError(
    'no checkpoint is intact:\n  ' + '\n  '.join(failures) + '\nMove these folders '
    'away to start from the beginning, or put back a copy of one of them.'
  )


def _read(folder: pathlib.Path, abstract: Any, prefix: str) -> tuple[dict, dict]:
  """Return the manifest and the arrays, without a word to other processes."""
  described = _reader(ocp.JsonCheckpointHandler(), folder / MANIFEST, None)
  wanted = {prefix + name: leaf for name, leaf in manifest.flatten(abstract).items()}
  manifest.check_structure(described, wanted, prefix, origin=str(folder))
  return described, _read_arrays(folder, wanted)


def _read_arrays(folder: pathlib.Path, wanted: dict[str, Any]) -> dict[str, Any]:
  first = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  places = {
    name: ocp.ArrayRestoreArgs(
      sharding=getattr(leaf, 'sharding', None) or first,
      global_shape=np.shape(leaf),
      dtype=jnp.result_type(leaf),
    )
    for name, leaf in wanted.items()
  }
  item = {
    name: jax.ShapeDtypeStruct(place.global_shape, place.dtype)
    for name, place in places.items()
  }
  args = ocp.args.PyTreeRestore(item=item, restore_args=places, partial_restore=True)
  stored = _reader(ocp.PyTreeCheckpointHandler(), folder / STATE, args)
  for name in wanted:
    if not isinstance(stored[name], jax.Array):  # its description is damaged
      raise ValueError(f'{name} was not read: there is {stored[name]} in its place')
  return {name: stored[name] for name in wanted}


def _reader(handler, path: pathlib.Path, args: Any) -> Any:
  if not path.is_dir():
    raise FileNotFoundError(f'{path} is missing')
  # Not through ocp.Checkpointer, whose barrier would wait for a process that failed.
  try:
    return handler.restore(path, args=args or ocp.args.JsonRestore())
  finally:
    handler.close()
