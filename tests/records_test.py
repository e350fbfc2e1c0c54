"""What an evaluation cut short leaves is whole batches, its own and no other's."""

import dataclasses
import json

import jax
import pytest

from lpo_jax import evaluate, outcomes, records, rollout, tokenizer
from lpo_jax.types import Mean, Problem
from tests import tiny

WHO = {'policy': 'a', 'responses': 2}
PROBLEMS = [Problem(f'{i} 2 : 3 >', {'numbers': [i, 2], 'target': 3}, f'p{i}')
            for i in range(5)]
BATCHES = ((0, 2), (2, 4), (4, 5))


def outcome(index):
  return outcomes.Outcome([0.1 * index, 1.0], [None, f'{index}'], [True, False],
                          [index, 3], ['√2\u2028 "no"\n', f'<answer>{index}'])


def add(kept, start, stop):
  kept.add(PROBLEMS[start:stop], [outcome(i) for i in range(start, stop)],
           {'seen': Mean(0.1 * (start + 1), float(stop - start))})


def fill(folder, batches=BATCHES):
  kept = records.Records(str(folder), 'set', WHO)
  for start, stop in batches:
    add(kept, start, stop)
  return kept


def bare(index):
  return dataclasses.replace(outcome(index), responses=[])


def test_what_was_kept_comes_back_bit_by_bit(tmp_path):
  first = fill(tmp_path)
  again = records.Records(str(tmp_path), 'set', WHO)
  outcomes, metrics = again.kept()
  assert outcomes == [bare(i) for i in range(5)]
  assert again.problems == 5 and again.path == first.path
  total = 0.0
  for start, _ in BATCHES:
    total += 0.1 * (start + 1)
  assert (metrics['seen'].total, metrics['seen'].count) == (total, 5.0)
  assert again.seconds == pytest.approx(first.seconds) and first.seconds > 0


def test_a_line_holds_all_that_another_verifier_needs(tmp_path):
  rows = [json.loads(line) for line in fill(tmp_path).path.read_bytes().split(b'\n')
          if line]
  assert rows[3] == {'id': 'p3', 'prompt': '3 2 : 3 >', 'answer': PROBLEMS[3].answer,
                     **dataclasses.asdict(outcome(3))}


def test_a_kill_at_any_byte_costs_its_batch_alone(tmp_path):
  kept = fill(tmp_path / 'whole')
  done = kept.path.with_suffix('.done')
  whole, marks = kept.path.read_bytes(), done.read_bytes()
  ends = [0] + [json.loads(line)['bytes'] for line in marks.split(b'\n')[1:-1]]
  lines = [len(marks.split(b'\n')[0]) + 1]
  for line in marks.split(b'\n')[1:-1]:
    lines.append(lines[-1] + len(line) + 1)
  # Every state of the two files between the first byte and the last, in their order.
  states = [(0, size) for size in range(0, lines[0], 40)]
  for batch in range(3):
    size, more = ends[batch], ends[batch + 1]
    states += [(cut, lines[batch]) for cut in range(size, more, 29)]
    states += [(more, cut) for cut in range(lines[batch], lines[batch + 1], 3)]
  states.append((ends[3], lines[3]))
  for size, mark in states:
    kept.path.write_bytes(whole[:size])
    done.write_bytes(marks[:mark])
    again = records.Records(str(tmp_path / 'whole'), 'set', WHO)
    batches = sum(mark >= end for end in lines[1:])
    assert again.kept()[0] == [bare(i) for i in range(min(2 * batches, 5))]
    for start, stop in BATCHES[batches:]:
      add(again, start, stop)
    assert kept.path.read_bytes() == whole
    assert records.Records(str(tmp_path / 'whole'), 'set', WHO).problems == 5


def test_a_record_that_the_disk_lost_is_asked_again(tmp_path):
  kept = fill(tmp_path)
  kept.path.write_bytes(kept.path.read_bytes()[:-3])
  assert records.Records(str(tmp_path), 'set', WHO).problems == 4
  kept.path.unlink()
  assert records.Records(str(tmp_path), 'set', WHO).problems == 0


def test_damaged_records_are_named(tmp_path):
  kept = fill(tmp_path)
  data = bytearray(kept.path.read_bytes())
  data[3] = ord('"')
  kept.path.write_bytes(bytes(data))
  with pytest.raises(ValueError, match=f'{kept.path.name} is damaged: move it away'):
    records.Records(str(tmp_path), 'set', WHO)


def test_records_of_another_are_left_alone_and_named(tmp_path):
  mine = fill(tmp_path)
  other = records.Records(str(tmp_path), 'set', WHO | {'policy': 'b'})
  assert other.problems == 0 and other.others() == [mine.path.name]
  records.Records(str(tmp_path), 'set-b', WHO)
  assert other.others() == [mine.path.name]
  assert records.Records(str(tmp_path), 'set', WHO).problems == 5


def test_two_writers_are_noticed(tmp_path):
  one, two = (records.Records(str(tmp_path), 'set', WHO) for _ in range(2))
  add(one, 0, 2)
  with pytest.raises(RuntimeError, match='another evaluation writes to it'):
    add(two, 0, 2)


def identity(**changes):
  parts = dict(policy='a', problems=PROBLEMS, task={'name': 'countdown', 'options': {}},
               tokenizer=tokenizer.get('countdown'), key=jax.random.key(0),
               sampling=rollout.SamplingConfig(), config=evaluate.EvalConfig())
  return records.identity(**parts | changes)


@pytest.mark.parametrize('changes', [
  {'policy': 'b'}, {'problems': PROBLEMS[:4]}, {'problems': PROBLEMS[::-1]},
  {'problems': [dataclasses.replace(PROBLEMS[0], answer=3), *PROBLEMS[1:]]},
  {'task': {'name': 'countdown', 'options': {'format_reward': 0.1}}},
  {'key': jax.random.key(1)}, {'sampling': rollout.SamplingConfig(temperature=0.5)},
  {'sampling': rollout.SamplingConfig(max_new_tokens=7)},
  {'config': evaluate.EvalConfig(17)}, {'config': evaluate.EvalConfig(16, 64)}])
def test_whatever_decides_the_responses_makes_other_records(changes):
  assert identity(**changes) != identity()


def test_what_does_not_decide_them_makes_none():
  assert identity(config=evaluate.EvalConfig(8, 16, (1,), 3)) == identity()


def test_an_answer_that_json_cannot_hold_is_named():
  with pytest.raises(ValueError, match="problem 'odd': .*JSON"):
    identity(problems=[Problem('1', {1, 2}, 'odd')])


def test_a_policy_is_known_by_its_weights_and_switches():
  mark = records.policy_mark(tiny.policy())
  assert records.policy_mark(tiny.policy()) == mark
  assert records.policy_mark(tiny.policy(1)) != mark
  assert records.policy_mark(tiny.policy(dtype='bfloat16')) != mark
