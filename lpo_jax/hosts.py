"""Many processes as one run: joining, who holds which rows, agreeing, failing together.

Every process runs the same program on one mesh. A row of the batch is decoded and
graded by one process that holds it; what the others must know travels as JSON through
`gather`. Process 0 alone writes files and speaks. Everything here that communicates is
collective: every process must call it, in the same order. With one process nothing
communicates and nothing is copied.
"""

import contextlib
import functools
import json
import os
import signal
import sys
import traceback
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lpo_jax import sharding

_LEAST_BYTES = 4096  # a message's buffer is this or doubled: few programs


def join(coordinator: str | None = None, processes: int | None = None,
         process: int | None = None, heartbeat_s: int = 100,
         join_s: int = 300) -> None:
  """Connect this process to the others; before any other use of JAX.

  Args:
    coordinator: HOST:PORT of process 0; None where JAX finds it (TPU, Slurm, MPI).
    processes: how many there are; None as above.
    process: which this one is, from 0; None as above.
    heartbeat_s: seconds after which a silent process counts as dead and all stop.
    join_s: seconds to wait for every process to come.

  Raises:
    ValueError: arguments that cannot be, or an environment that does not say.
  """
  if (coordinator is None) != (processes is None) or (
      (processes is None) != (process is None)):
    raise ValueError(
      f'--coordinator={coordinator}, --num_processes={processes}, --process_id='
      f'{process}: give all three, or none of them with --distributed')
  if coordinator is not None and not coordinator.rpartition(':')[2].isdecimal():
    raise ValueError(f'--coordinator={coordinator}: write HOST:PORT')
  if processes is not None and not 0 <= process < processes:
    raise ValueError(f'--process_id={process}: must be from 0 to '
                     f'{processes - 1} with --num_processes={processes}')
  if heartbeat_s < 10:
    raise ValueError(f'--heartbeat_s={heartbeat_s}: must be at least 10')
  try:
    jax.distributed.initialize(
      coordinator, processes, process, initialization_timeout=join_s,
      heartbeat_timeout_seconds=heartbeat_s)
  except ValueError as error:
    raise ValueError(f'--distributed: the environment does not name the processes '
                     f'({error}); give --coordinator, --num_processes and '
                     '--process_id') from error
  signal.signal(signal.SIGTERM, signal.SIG_DFL)  # JAX's own handler swallows it


def alone() -> bool:
  """Return whether this is the only process."""
  return jax.process_count() == 1


def first() -> bool:
  """Return whether this is process 0, which writes and speaks."""
  return jax.process_index() == 0


def by_first(function):
  """Make `function` do nothing, and return None, except on process 0."""
  @functools.wraps(function)
  def call(*args, **kwargs):
    return function(*args, **kwargs) if first() else None

  return call


def gather(value: Any) -> list:
  """Return every process's `value`, in the order of the processes.

  Args:
    value: anything that JSON can hold; floats come through bit by bit.
  """
  if alone():
    return [value]
  message = np.frombuffer(json.dumps(value).encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.array(message.size, np.int32))
  room = _LEAST_BYTES
  while room < sizes.max():
    room *= 2
  buffer = np.zeros(room, np.uint8)
  buffer[:message.size] = message
  found = multihost_utils.process_allgather(buffer)
  return [json.loads(row[:size].tobytes()) for row, size in zip(found, sizes,
                                                               strict=True)]


def anywhere(flag: bool) -> bool:
  """Return whether `flag` holds on any process."""
  if alone():
    return flag
  return bool(multihost_utils.process_allgather(np.array(flag)).any())


@contextlib.contextmanager
def agreeing():
  """Raise a ValueError of the body, on whichever process, on every process."""
  error = None
  try:
    yield
  except ValueError as found:
    if alone():
      raise
    error = found
  messages = gather(None if error is None else str(error))
  failed = [index for index, message in enumerate(messages) if message is not None]
  if failed:
    where = '' if len(failed) == len(messages) else f'on process {failed[0]}: '
    raise ValueError(where + messages[failed[0]]) from error


@contextlib.contextmanager
def all_or_none():
  """End this process at once when the body fails, so that the others end as well.

  A process that left in good order would wait for the others, and they for it.
  """
  try:
    yield
  except (Exception, KeyboardInterrupt) as error:
    if alone():
      raise
    traceback.print_exc()
    text = str(error).strip().partition('\n')[0]
    print(f'error: process {jax.process_index()} of {jax.process_count()} stops: '
          f'{type(error).__name__}: {text}\nIf another process failed first, its own '
          'output says why. Start every process again: the run goes on from its '
          'newest checkpoint.', file=sys.stderr, flush=True)
    os._exit(1)


def check_mesh(mesh: Mesh) -> None:
  """Raise a ValueError unless every process has a part in the mesh."""
  if not alone() and mesh.size != jax.device_count():
    raise ValueError(
      f'mesh.shape={tuple(mesh.shape.values())} uses {mesh.size} of '
      f'{jax.device_count()} devices of {jax.process_count()} processes: with more '
      'than one process it must use them all')


def check_same(name: str, text: str) -> None:
  """Raise a ValueError unless every process has the same `text` under this name."""
  texts = gather(text)
  other = [index for index, theirs in enumerate(texts) if theirs != texts[0]]
  if other:
    raise ValueError(f'{name} of process 0 is not that of process {other[0]}: start '
                     'every process with the same flags')


def deal(holders: list[set[int]]) -> list[int]:
  """Return which process grades each row: one of its holders, each in its turn.

  Args:
    holders: for each row, the processes whose devices have it.
  """
  turns, owners = {}, []
  for who in map(frozenset, holders):
    turn = turns[who] = turns.get(who, -1) + 1
    owners.append(sorted(who)[turn % len(who)])
  return owners


@functools.cache
def _rows(mesh: Mesh, size: int, process: int) -> tuple[np.ndarray, np.ndarray]:
  """Return the rows of [size] that a process holds, and those of them it grades."""
  holders = [set() for _ in range(size)]
  split = NamedSharding(mesh, PartitionSpec(sharding.BATCH))
  for device, (part,) in split.devices_indices_map((size,)).items():
    for row in range(*part.indices(size)):
      holders[row].add(device.process_index)
  held = [row for row, who in enumerate(holders) if process in who]
  return (np.array(held, np.int64),
          np.flatnonzero(np.array(deal(holders)) == process))


def own_rows(size: int, mesh: Mesh) -> np.ndarray:
  """Return the rows of a batch that this process decodes and grades, ascending.

  They follow from the placement of [size] on the mesh; the processes together cover
  every row once.
  """
  return _rows(mesh, size, jax.process_index())[1]


def place(tree, mesh: Mesh):
  """Place arrays [B, ...] that every process has whole on the mesh, split along B."""
  if alone():
    return sharding.shard_batch(tree, mesh)

  def held(x):
    return np.asarray(x)[_rows(mesh, len(x), jax.process_index())[0]]
  return sharding.shard_batch(jax.tree.map(held, tree), mesh)


def _identity(x):
  return x


def local(tree, mesh: Mesh):
  """Return the own rows of device arrays [B, ...] as host arrays.

  With one process that is everything, and `tree` comes back as it is.
  """
  if alone():
    return tree
  split = NamedSharding(mesh, PartitionSpec(sharding.BATCH))

  def cut(x):
    parts = {part.index[0].start or 0: part.data for part in x.addressable_shards}
    whole = np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])
    held, mine = _rows(mesh, len(x), jax.process_index())
    return whole[np.searchsorted(held, mine)]

  return jax.tree.map(cut, jax.jit(_identity, out_shardings=split)(tree))


def fetch(tree):
  """Return device arrays on the mesh as host arrays, whole on every process."""
  if alone():
    return jax.device_get(tree)
  return multihost_utils.process_allgather(tree, tiled=True)


def gather_rows(values: list, rows: np.ndarray, size: int) -> list:
  """Return one value for each of `size` rows, from the processes that own them.

  Args:
    values: one for each of `rows`; anything that JSON can hold.
    rows: this process's own.
    size: of the batch.
  """
  if alone():
    return list(values)
  found = {}
  for theirs, more in gather([rows.tolist(), values]):
    found |= dict(zip(theirs, more, strict=True))
  return [found[row] for row in range(size)]
