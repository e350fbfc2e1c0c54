"""Every row is decoded once to its end, where it was sent; few places stand empty."""

import itertools
import weakref

import numpy as np
import pytest

from benchmarks import shapes
from lpo_jax import refill

_K = 8


class _Device:
  """Decodes rows of known lengths; a handle says who lies where."""

  def __init__(self, lengths, at_once, longest, chunk, shards=1):
    self.lengths, self.chunk, self.longest = lengths.reshape(-1), chunk, longest
    self.loads = refill.fresh(*lengths.shape, len(lengths) // at_once, shards)
    self.shard = dict(zip(np.stack(self.loads).ravel().tolist(), np.broadcast_to(
      np.arange(shards)[:, None, None], np.stack(self.loads).shape).ravel(),
      strict=True))
    self.rooms = [min(start + chunk, longest) for start in range(0, longest, chunk)]
    self.behind = np.zeros(self.lengths.size, int)  # chunks that each row was decoded
    self.places, self.shapes, self.turns, self.sent = 0, set(), [], 0

  def run(self, most=1.0):
    refill.run(self.loads, self.rooms, most, begin=lambda load: self.loads[load].copy(),
               decode=self.decode, move=self.move)
    return self

  def decode(self, handle, rows, index):
    real = rows != refill.NOBODY
    np.testing.assert_array_equal(handle[real], rows[real])
    for shard, mine in enumerate(rows):
      assert {self.shard[row] for row in mine[mine != refill.NOBODY]} <= {shard}
    start = index * self.chunk
    assert (self.behind[rows[real]] == index).all()
    assert (self.lengths[rows[real]] > start).all()  # nobody who is done
    assert len(set(rows[real])) == real.sum() > 0
    self.behind[rows[real]] += 1
    self.places += rows.size * (min(self.rooms[index],
                                    self.lengths[rows[real]].max()) - start)
    self.shapes.add(rows.shape)
    self.turns.append((index, rows.shape, tuple(rows[real])))
    return handle, ~real | (self.lengths[rows] <= self.rooms[index])

  def move(self, handles, to):
    found = np.full(to.rows.shape, refill.NOBODY)
    for shard in range(len(to.slot)):
      for i, load in enumerate(to.load[shard]):
        found[shard, i] = handles[load][shard, to.slot[shard, i]][to.member[shard, i]]
    found = np.where(to.rows == refill.NOBODY, -7, found)
    if not to.distance:
      return found
    self.sent += 1
    found = found[refill.partners(len(found), to.distance)]
    for shard, mine in enumerate(found):  # a row changes its shard only so
      self.shard |= dict.fromkeys(mine[mine >= 0].tolist(), shard)
    return found

  def waste(self):
    """Return places decoded over tokens sampled."""
    return self.places / self.lengths.sum()


@pytest.mark.parametrize('shards', [1, 2, 4])
@pytest.mark.parametrize(('prompts', 'at_once', 'longest', 'chunk', 'samples'), [
  (64, 16, 512, 32, 8), (64, 64, 512, 32, 8), (8, 8, 100, 7, 3), (32, 4, 64, 8, 1),
  (16, 8, 10, 10, 6), (24, 12, 9, 1, 5)])
def test_every_row_is_decoded_chunk_after_chunk_to_its_end(
    prompts, at_once, longest, chunk, samples, shards):
  lengths = shapes.heavy_tailed(prompts, samples, longest)
  found = _Device(lengths, at_once, longest, chunk, shards).run()
  np.testing.assert_array_equal(found.behind, -(-found.lengths // chunk))
  again = _Device(lengths, at_once, longest, chunk, shards).run()
  assert again.turns == found.turns


@pytest.mark.parametrize(('prompts', 'at_once', 'chunk', 'most'), [
  (64, 16, 32, 1.30), (64, 16, 16, 1.25), (256, 16, 32, 1.25), (64, 64, 32, 1.55)])
def test_a_heavy_tail_costs_little_more_than_its_tokens(prompts, at_once, chunk, most):
  for seed in range(5):
    lengths = shapes.heavy_tailed(prompts, _K, 512, seed)
    found = _Device(lengths, at_once, 512, chunk).run()
    assert 1 <= found.waste() < most
    assert len(found.shapes) <= 10


@pytest.mark.parametrize(('shards', 'waits', 'most'), [
  (16, 0.0, 1.15), (16, 1.0, 1.08), (64, 0.0, 1.25), (64, 1.0, 1.08)])
def test_many_shards_need_few_more_places_than_one(shards, waits, most):
  for seed in range(3):
    lengths = shapes.heavy_tailed(512 if waits else 128, _K, 1024, seed)
    one, many = (_Device(lengths, 128, 1024, 128, count).run(waits)
                 for count in (1, shards))
    assert one.waste() <= many.waste() < most * one.waste()
    assert one.sent == 0 < many.sent < 1.5 * len(many.turns)


def test_without_room_for_parked_rows_a_load_ends_before_the_next_begins():
  lengths = shapes.heavy_tailed(64, _K, 512)
  found, waits = (_Device(lengths, 16, 512, 32).run(most) for most in (0.0, 1.0))
  ends = [index for index, *_ in found.turns]
  assert sum(after < before for before, after in itertools.pairwise(ends)) == 3
  assert 1.15 * waits.waste() < found.waste() < 1.7


def test_loads_that_no_one_leaves_go_on_as_they_are():
  found = _Device(np.full((8, _K), 64), 4, 64, 16).run()
  assert found.waste() == 1
  assert [index for index, *_ in found.turns] == [0, 1, 2, 3] * 2
  assert found.shapes == {(1, 4, _K)}


def test_without_tokens_to_decode_every_load_is_begun():
  begun = []
  refill.run(refill.fresh(6, 2, 3, 1), [], 1.0, begin=begun.append, decode=None,
             move=None)
  assert begun == [0, 1, 2]


def test_responses_that_remain_share_their_prompt_where_that_costs_no_place():
  rows = np.arange(32).reshape(1, 4, 8).copy()
  rows[0, :, 3:] = refill.NOBODY  # 3 of 8 of each
  found = refill.pack([rows], (1, 4, 8))
  assert found.rows.shape == (1, 4, 4)  # 16 places hold 12
  rows[0, 1:, 1:] = refill.NOBODY
  found = refill.pack([rows], (1, 4, 8))  # 3 + 1 + 1 + 1
  assert found.rows.shape == (1, 8, 1)
  np.testing.assert_array_equal(np.sort(found.rows.ravel()),
                                [-1, -1, 0, 1, 2, 8, 16, 24])


@pytest.mark.parametrize('rows,places', [(64, 64), (49, 64), (48, 48), (33, 48),
                                         (32, 32), (17, 32), (12, 16), (1, 1)])
def test_places_are_halvings_of_a_load_or_three_quarters_of_it(rows, places):
  held = np.full((2, 64), refill.NOBODY)
  held[0, :rows] = np.arange(rows)  # the fuller shard decides
  held[1, :rows // 2] = 1000
  found = refill.pack([held.reshape(2, 8, 8)], (2, 8, 8))
  assert found.rows.shape[0] == 2
  assert found.rows[0].size == found.rows[1].size == places
  np.testing.assert_array_equal(np.sort(found.rows[0].ravel())[-rows:], np.arange(rows))


@pytest.mark.parametrize('shards', [1, 2, 3, 4, 6, 8])
def test_what_shards_send_saves_places_and_loses_nobody(shards):
  whole, count = (shards, 4, _K), 0
  for seed in range(8):
    rng = np.random.default_rng(seed)
    rows = np.arange(shards * 32).reshape(whole)
    left = rng.random((shards, 1, 1))  # how many responses are left differs by shard
    loads = [np.where(rng.random(whole) < left, rows + i * rows.size, refill.NOBODY)
             for i in range(rng.integers(1, 3))]
    sent = refill.surplus(loads, whole)
    if sent is not None:
      count += 1
      _check_sent(loads, sent, whole)
  assert (count >= 2) == (shards > 1)


def _check_sent(loads, sent, whole):
  partners = refill.partners(whole[0], sent.distance)
  gone = sent.rows[sent.rows != refill.NOBODY]
  assert len(set(gone)) == gone.size > 0
  for shard, mine in enumerate(sent.rows):
    mine = set(mine[mine != refill.NOBODY])
    assert mine <= {row for load in loads for row in load[shard].ravel()}
    if mine:  # who sends gets nothing back
      assert partners[shard] != shard
      assert (sent.rows[partners[shard]] == refill.NOBODY).all()
  stay = [np.where(np.isin(load, gone), refill.NOBODY, load) for load in loads]
  even = refill.pack([*stay, sent.rows[partners]], whole).rows
  alone = refill.pack(loads, whole).rows
  held = [(found != refill.NOBODY).sum() for found in (even, alone)]
  assert even.size < alone.size or held[0] > held[1] and even.size == alone.size


def test_partners_lie_a_distance_apart_or_are_alone():
  np.testing.assert_array_equal(refill.partners(5, 2), [2, 3, 0, 1, 4])
  np.testing.assert_array_equal(refill.partners(4, 1), [1, 0, 3, 2])
  np.testing.assert_array_equal(refill.partners(3, 0), [0, 1, 2])


class _Held:
  """A handle that takes room as long as anyone has it."""

  def __init__(self, places, width, held):
    self.room, self.width = places * width, width
    held.add(self)


@pytest.mark.parametrize('most', [0.0, 0.5, 1.0])
def test_parked_rows_take_no_more_room_than_they_may(most):
  lengths, peaks = shapes.heavy_tailed(256, _K, 512).reshape(-1), []
  loads, rooms = refill.fresh(256, _K, 32, 1), list(range(32, 513, 32))
  held = weakref.WeakSet()

  def look(running=None):
    peaks.append(sum(one.room for one in held if one is not running))

  def begin(load):
    look()
    return _Held(loads[load].size, rooms[0], held)

  def decode(handle, rows, index):
    look(handle)
    done = (rows == refill.NOBODY) | (lengths[rows] <= rooms[index])
    return _Held(rows.size, rooms[index], held), done

  def move(handles, to):
    return _Held(to.rows.size, handles[0].width, held)

  refill.run(loads, rooms, most, begin=begin, decode=decode, move=move)
  assert most / 2 <= max(peaks) / (loads[0].size * 512) <= 1.2 * most
