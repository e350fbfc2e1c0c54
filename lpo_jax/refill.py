"""Who decodes next, so that a long tail of responses never idles the device.

All rows of a decode program have one length, and chunks end at fixed lengths, the
levels. A load is as many rows as are decoded at once. At a chunk's end those who are
not done join those parked at their level: together they go on if they fill a load, else
they are parked, and the next load is of fresh prompts. Once none are left, the lowest
level goes on, in as few places as hold it, and takes along whom it meets. So no level
ever holds a load, and all but the last few turns are full ones.

Rows lie in places [S, b, k]: on each shard of the batch b slots, each a prompt and k
of its responses. A row stays on its shard. This is host logic on row numbers; what it
moves, it knows as handles.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

NOBODY = -1  # the row number of an empty place


class Move(NamedTuple):
  """Which places of one or two loads make up a new one."""

  load: np.ndarray  # i[S, b], which of them a slot comes from
  slot: np.ndarray  # i[S, b], its number there, within its shard
  member: np.ndarray  # i[S, b, k], its responses there
  rows: np.ndarray  # i[S, b, k], who that is


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
    move: (one or two handles, Move) -> handle.
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
  handles, rows = zip(*found, strict=True)
  while any((mine != NOBODY).any() for mine in rows):
    new = pack(rows, whole)
    if len(rows) == 1 and new.rows.size == rows[0].size:
      yield handles[0], rows[0]  # as they lie
      return
    yield move(handles, new), new.rows
    rows = [np.where(np.isin(mine, new.rows), NOBODY, mine) for mine in rows]


def _full(rows: np.ndarray, whole: tuple[int, int, int]) -> bool:
  """Return whether some shard has as many rows as it decodes at once."""
  return (rows != NOBODY).sum(axis=(1, 2)).max() == whole[1] * whole[2]


def pack(loads, whole: tuple[int, int, int]) -> Move:
  """Return the move of as many rows as a load holds into the fewest places.

  Places are halvings of a load's or three quarters of them all, so that programs are
  few; among equally few, those that hold the most rows, and among these, where most
  responses share a prompt.

  Args:
    loads: rows of one load or two, i[S, b, k].
    whole: shape of a load of new prompts.
  """
  held = [[(load, slot, np.flatnonzero(members != NOBODY))
           for load, rows in enumerate(loads)
           for slot, members in enumerate(rows[shard])] for shard in range(whole[0])]

  def cut(width):
    slots = [[(load, slot, members[i:i + width]) for load, slot, members in mine
              for i in range(0, len(members), width)] for mine in held]
    count = smallest_part(whole[1] * whole[2] // width, max(map(len, slots)))
    slots = [mine[:count] for mine in slots]
    taken = sum(len(members) for mine in slots for *_, members in mine)
    return (count * width, -taken, -width), slots, (whole[0], count, width)

  widths = {smallest_half(whole[2], least) for least in range(1, whole[2] + 1)} | {1}
  _, slots, shape = min(map(cut, widths), key=lambda found: found[0])
  load, slot = (np.zeros(shape[:2], np.int32) for _ in range(2))
  member, rows = np.zeros(shape, np.int32), np.full(shape, NOBODY)
  for shard, mine in enumerate(slots):
    for i, (load[shard, i], slot[shard, i], members) in enumerate(mine):
      member[shard, i, :len(members)] = members
      rows[shard, i, :len(members)] = loads[load[shard, i]][shard, slot[shard, i],
                                                            members]
  return Move(load, slot, member, rows)


def smallest_half(size: int, least: int) -> int:
  """Return the smallest halving of `size` that is >= least; `size` if none is."""
  while size % 2 == 0 and size // 2 >= max(least, 1):
    size //= 2
  return size


def smallest_part(size: int, least: int) -> int:
  """Return `smallest_half`, or three quarters of `size` if they are fewer, >= least."""
  half, most = smallest_half(size, least), size * 3 // 4
  return min(half, most) if size % 4 == 0 and least <= most else half
