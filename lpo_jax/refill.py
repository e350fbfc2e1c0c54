"""Who decodes next, so that a long tail of responses never idles the device.

All rows of a decode program have one length, and chunks end at fixed lengths, the
levels. A load is as many rows as are decoded at once. At a chunk's end those who are
not done join those parked at their level: together they go on if they fill a load, else
they are parked, and the next load is of fresh prompts. Once none are left, the lowest
level goes on, in as few places as hold it, and takes along whom it meets. So no level
ever holds a load, and all but the last few turns are full ones.

Rows lie in places [S, b, k]: on each shard of the batch b slots, each a prompt and k
of its responses. The fullest shard decides how many there are, so rows change shards
where that saves some. This is host logic on row numbers; what moves has a handle.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

NOBODY = -1  # the row number of an empty place


class Move(NamedTuple):
  """Which places of some loads make up a new one."""

  load: np.ndarray  # i[S, b], which of them a slot comes from
  slot: np.ndarray  # i[S, b], its number there, within its shard
  member: np.ndarray  # i[S, b, k], its responses there
  rows: np.ndarray  # i[S, b, k], who that is
  distance: int = 0  # then every slot goes to the shard i xor distance; 0: it stays


def fresh(prompts: int, samples: int, loads: int, shards: int) -> list[np.ndarray]:
  """Return the rows i[S, b, K] of each load of new prompts, as `sharding.split` cuts.

  Row k of prompt i has number i K + k.
  """
  rows = np.arange(prompts * samples).reshape(-1, loads, samples)
  return [rows[:, load].reshape(shards, -1, samples) for load in range(loads)]


def run(loads: list[np.ndarray], rooms: list[int], most: float, *, begin: Callable,
        decode: Callable, move: Callable) -> None:
  """Decode every row to its end.

  Args:
    loads: rows of each load of new prompts, i[S, b, K], all of one shape.
    rooms: room that a place takes during each chunk.
    most: room for parked places, as a share of what a load takes in its last chunk:
      where fresh prompts could park more, the highest level goes on before them, and
      may park a little more on its way. 0: a load ends before the next begins.
    begin: load number -> handle of its rows.
    decode: (handle, rows, chunk number) -> handle, and done bool[S, b, k]; the last
      chunk leaves nobody.
    move: (one handle or more, Move) -> handle.
  """
  whole, waiting = loads[0].shape, list(range(len(loads)))
  parked = {}  # level -> handle and rows
  least, longest = (loads[0].size * (rooms[i] if rooms else 0) for i in (0, -1))
  while waiting or parked:
    held = sum(rows.size * rooms[level - 1] for level, (_, rows) in parked.items())
    if waiting and (not parked or held + least <= most * longest):
      level, number = 0, waiting.pop(0)
      running = begin(number), loads[number]
    else:
      level = max(parked) if waiting else min(parked)
      running = parked.pop(level)
    while running and level < len(rooms):
      running = _chunk(running, level, parked, whole, decode, move)
      level += 1


def _chunk(running, level, parked, whole, decode, move):
  """Decode a chunk; return the full load that goes on, or None, and park the others."""
  handle, rows = running
  handle, done = decode(handle, rows, level)
  here = [parked.pop(level + 1)] if level + 1 in parked else []
  here.append((handle, np.where(done, NOBODY, rows)))
  full = None
  for load in _packed(here, whole, move):
    if _full(load[1], whole):
      full = load
    else:
      parked[level + 1] = load
  return full


def _packed(found, whole, move):
  """Yield the loads, handle and rows, that hold everybody of the loads of a level."""
  handles, rows = map(list, zip(*found, strict=True))
  while (sent := surplus(rows, whole)) is not None:
    handles.append(move(handles, sent))
    rows = [*_without(rows, sent.rows), sent.rows[partners(whole[0], sent.distance)]]
  while any((mine != NOBODY).any() for mine in rows):
    new = pack(rows, whole)
    if len(rows) == 1 and new.rows.size == rows[0].size:
      yield handles[0], rows[0]  # as they lie
      return
    yield move(handles, new), new.rows
    rows = _without(rows, new.rows)


def _without(loads, gone):
  """Return rows of loads, with nobody in place of those that are gone."""
  return [np.where(np.isin(rows, gone), NOBODY, rows) for rows in loads]


def _full(rows: np.ndarray, whole: tuple[int, int, int]) -> bool:
  """Return whether some shard has as many rows as it decodes at once."""
  return (rows != NOBODY).sum(axis=(1, 2)).max() == whole[1] * whole[2]


def pack(loads, whole: tuple[int, int, int]) -> Move:
  """Return the move of as many rows as a load holds into the fewest places.

  Places are halvings of a load's or three quarters of them all, so that programs are
  few; among equally few, those that hold the most rows, and among these, where most
  responses share a prompt. Every row stays on its shard.

  Args:
    loads: rows of one load or more, i[S, b, k].
    whole: shape of a load of new prompts.
  """
  members = _members(loads)

  def cut(width):
    slots = -(-members // width)
    count = smallest_part(whole[1] * whole[2] // width, slots.sum(1).max())
    left = count - (slots.cumsum(1) - slots)  # places that the slots before leave
    return count * width, -np.clip(left * width, 0, members).sum(), -width, count

  *_, width, count = min(map(cut, _widths(whole[2])))
  return _moved(loads, -width, count, np.full(whole[0], count))


def surplus(loads, whole: tuple[int, int, int]) -> Move | None:
  """Return what shards send each other so that `pack` needs fewer places.

  All shards that lie a distance apart become as full as each other; the distance is
  the power of two that helps most. None if rows are best left where they are.

  Args:
    loads: rows of one load or more, i[S, b, k].
    whole: shape of a load of new prompts.
  """
  members = _members(loads)

  def even(width, distance):
    """Return how good it is to even slots out, and how many each shard sends."""
    slots = (-(-members // width)).sum(1)
    ahead = slots - slots[partners(whole[0], distance)]
    sent = np.maximum(ahead, 0) // 2
    slots = slots - sent + sent[partners(whole[0], distance)]
    count = smallest_part(whole[1] * whole[2] // width, slots.max())
    taken = np.minimum(slots, count).sum() / max(slots.sum(), 1)
    return (count * width, -taken, distance, -width), sent

  distances = [0] + [2**power for power in range((whole[0] - 1).bit_length())]
  ways = (even(*way) for way in itertools.product(_widths(whole[2]), distances))
  (*_, distance, width), sent = min(ways, key=lambda found: found[0])
  if not distance:
    return None
  most = smallest_half(whole[1] * whole[2] // -width, sent.max())
  return _moved(loads, -width, most, sent, distance)


def partners(shards: int, distance: int) -> np.ndarray:
  """Return for each shard the one `distance` away, i xor distance; itself if none."""
  far = np.arange(shards) ^ distance
  return np.where(far < shards, far, np.arange(shards))


def _widths(samples: int) -> set[int]:
  """Return how many responses may share a slot's prompt: halvings of K, and one."""
  return {smallest_half(samples, least) for least in range(1, samples + 1)} | {1}


def _members(loads) -> np.ndarray:
  """Return how many rows there are in each slot of all loads, i[S, slots]."""
  return np.concatenate([(rows != NOBODY).sum(-1) for rows in loads], axis=1)


def _moved(loads, width, size, counts, distance=0) -> Move:
  """Return the move of the first slots, `counts` i[S], into places [S, size, width]."""
  parts = [_cut(rows, load, width) for load, rows in enumerate(loads)]
  parts.append(_cut(np.full((len(counts), size, width), NOBODY), 0, width))
  parts = [np.concatenate(each, axis=1) for each in zip(*parts, strict=True)]
  here = parts[-1][..., 0] != NOBODY
  here &= here.cumsum(1) <= counts[:, None]
  first = np.argsort(~here, axis=1, kind='stable')[:, :size]
  shards = np.arange(len(counts))[:, None]
  load, slot, member, rows = (each[shards, first] for each in parts)
  rows = np.where(here[shards, first][..., None], rows, NOBODY)
  real = rows != NOBODY
  slot, load = (np.where(real[..., 0], each, 0) for each in (slot, load))
  return Move(load, slot, np.where(real, member, 0), rows, distance)


def _cut(rows, load, width):
  """Return load, slot, members and rows of slots cut to `width`, real rows first.

  i[S, n] the first two, i[S, n, width] the others.
  """
  (shards, slots, samples), fill = rows.shape, -rows.shape[2] % width
  member = np.argsort(rows == NOBODY, axis=-1, kind='stable').astype(np.int32)
  rows = np.take_along_axis(rows, member, axis=-1)
  member, rows = (np.pad(x, ((0, 0), (0, 0), (0, fill)), constant_values=value)
                  .reshape(shards, -1, width)
                  for x, value in ((member, 0), (rows, NOBODY)))
  slot = np.repeat(np.arange(slots, dtype=np.int32), (samples + fill) // width)
  slot = np.broadcast_to(slot, member.shape[:2])
  return np.full_like(slot, load), slot, member, rows


def smallest_half(size: int, least: int) -> int:
  """Return the smallest halving of `size` that is >= least; `size` if none is."""
  while size % 2 == 0 and size // 2 >= max(least, 1):
    size //= 2
  return size


def smallest_part(size: int, least: int) -> int:
  """Return `smallest_half`, or three quarters of `size` if they are fewer, >= least."""
  half, most = smallest_half(size, least), size * 3 // 4
  return min(half, most) if size % 4 == 0 and least <= most else half
