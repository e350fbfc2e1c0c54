"""Two processes train as one does, stop together, and go on where they stopped.

One run is followed through three launches of two processes, over gloo on 127.0.0.1
with four CPU devices each: a SIGTERM to one process ends the first, a SIGKILL the
second, the third finishes. Beside it stands one process of eight devices. Rewards
depend on problem and text, so that a verdict in the wrong row shows; batch rows lie
in two separate pieces on each process.
"""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from lpo_jax import checkpoint, hosts, sharding
from tests import compiler, learner

ROOT = pathlib.Path(__file__).parents[1]
COSTS = ('timing_s/', 'perf/tokens_per_s', 'perf/compile_count')
STEPS = 6
HEARTBEAT_S = 20  # of silence after which a process counts as dead
BOUND_S = 200  # within which a process that lost another must have ended
PROGRAM = """
from absl import app
from lpo_jax import main
from lpo_jax.tasks import countdown
countdown.Countdown.verify = lambda self, problem, text: (
  (7 * len(text) + sum(problem.answer['numbers'])) % 5 / 4)
app.run(main.main, flags_parser=main.parse_flags)
"""
FLAGS = (
  '--config=experiments/countdown.py:tiny', f'--config.num_steps={STEPS}',
  "--config.mesh.axes=('fsdp', 'data', 'tensor')", '--config.mesh.shape=4,2,1',
  '--config.prompts_per_step=16', '--config.micro_prompts=8', '--config.eval.every=99',
  '--config.eval.problems=21', '--config.warmstart.steps=2',
  '--config.warmstart.warmup_steps=1', '--config.optimizer.learning_rate=1e-3',
  '--config.sampling.chunk=10', '--config.sampling.prompts_at_once=8',
  '--config.sampling.parked=1',
  '--config.checkpoint.every=99',
  '--config.log.groups=12', '--config.log.groups_every=99',
  '--config.log.tensorboard=False')


def start(folder, name, devices, *flags):
  """Start one process; its words go to `folder`/`name`.txt."""
  environment = os.environ | {'JAX_PLATFORMS': 'cpu',
                              'XLA_FLAGS': compiler.devices(devices)}
  with (folder / f'{name}.txt').open('w') as file:
    return subprocess.Popen([sys.executable, '-c', PROGRAM, *FLAGS, *flags], cwd=ROOT,
                            env=environment, stdout=file, stderr=subprocess.STDOUT)


def start_two(folder, name, *flags):
  """Start both processes of one run in `folder`/run."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  return [start(folder, f'{name}_{index}', 4, f'--workdir={folder}/run',
                f'--coordinator={address}', '--num_processes=2',
                f'--process_id={index}', f'--heartbeat_s={HEARTBEAT_S}',
                '--config.mesh.sampling_shape=2,4,1', *flags)
          for index in range(2)]


def wait_for_line(folder, step, processes):
  path, text = folder / 'run/metrics.jsonl', f'"step": {step},'
  deadline = time.monotonic() + 600
  while not (path.exists() and text in path.read_text()):
    ended = [process.poll() for process in processes]
    assert ended == [None, None] and time.monotonic() < deadline, ended
    time.sleep(0.01)


def lines(workdir):
  """Return every line without what measures time, by step."""
  rows = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
  return {row['step']: {name: value for name, value in row.items()
                        if not name.startswith(COSTS)} for row in rows}


def words(folder, name):
  return (folder / f'{name}.txt').read_text()


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
  """The workdir of one process with eight devices."""
  folder = tmp_path_factory.mktemp('alone')
  process = start(folder, 'alone', 8, f'--workdir={folder}/run')
  assert process.wait(600) == 0, words(folder, 'alone')
  return folder / 'run'


@pytest.fixture(scope='module')
def story(tmp_path_factory):
  """The three launches: exit codes, seconds to stop, lines before the kill."""
  folder, told = tmp_path_factory.mktemp('story'), {}
  processes = start_two(folder, 'first')
  wait_for_line(folder, 0, processes)
  processes[1].send_signal(signal.SIGTERM)
  told['first'] = [process.wait(600) for process in processes]
  processes = start_two(folder, 'second')
  wait_for_line(folder, 3, processes)
  processes[1].kill()
  began = time.monotonic()
  told['second'] = [process.wait(600) for process in processes]
  told['seconds'] = time.monotonic() - began
  told['lines'] = lines(folder / 'run')
  told['third'] = [process.wait(600) for process in start_two(folder, 'third')]
  for name in ('eval', 'again'):
    told[name] = [process.wait(600) for process in start_two(folder, name,
                                                             '--mode=eval')]
    report, = (folder / 'run').glob('eval.json')
    told[f'{name} found'] = json.loads(report.read_text())['sets']['countdown']
    records = folder / 'run' / told[f'{name} found']['records']
    told[f'{name} records'] = records.read_text()
    done = records.with_suffix('.done')
    done.write_text(done.read_text()[:-5])  # as if killed in the second batch
  return folder, told


def test_a_sigterm_to_one_process_saves_and_ends_all_in_good_order(story):
  folder, told = story
  assert told['first'] == [0, 0], words(folder, 'first_0')
  assert 'asked to stop: saved step 1;' in words(folder, 'first_0')
  assert 'resuming after step 1' in words(folder, 'second_0')


def test_a_killed_process_ends_the_other_soon_and_with_the_reason(story):
  folder, told = story
  assert told['second'][0] not in (0, None)
  assert told['second'][1] == -signal.SIGKILL
  assert told['seconds'] < BOUND_S
  assert re.search('error: process 0 of 2 stops: .*Start every process again|'
                   'Terminating process because .* another task died',
                   words(folder, 'second_0'), re.DOTALL)


def test_a_restart_repeats_every_number_bit_by_bit(story):
  folder, told = story
  assert told['third'] == [0, 0], words(folder, 'third_0')
  assert 'resuming after step 1' in words(folder, 'third_0')
  now = lines(folder / 'run')
  assert sorted(now) == list(range(STEPS + 1)) and set(told['lines']) >= {2, 3}
  assert {step: now[step] for step in told['lines']} == told['lines']


def test_two_processes_train_to_the_numbers_of_one(alone, story):
  # Not bit by bit: gloo adds up in another order than one process does.
  expected, found = lines(alone), lines(story[0] / 'run')
  assert sorted(expected) == sorted(found)
  for step, row in expected.items():
    assert set(row) == set(found[step])
    for name, value in row.items():
      assert found[step][name] == pytest.approx(value, rel=1e-4, abs=2e-6), (step, name)
  last = expected[STEPS]
  assert last['actor/grad_norm'] > 0.1 and 0 < last['reward/mean'] < 1
  assert 0 < last['val/countdown/pass@4'] < 1


def test_logged_groups_are_those_of_one_process(alone, story):
  name = 'rollouts/step_000001.jsonl'
  rows = [[json.loads(line) for line in (workdir / name).read_text().splitlines()]
          for workdir in (alone, story[0] / 'run')]
  assert len(rows[0]) == 12
  for one, two in zip(*rows, strict=True):
    for field in ('id', 'prompt', 'responses', 'rewards', 'lengths'):
      assert one[field] == two[field]
    for field in ('target', 'policy_before', 'policy_after', 'coefficients'):
      np.testing.assert_allclose(one[field], two[field], atol=1e-6)


def test_two_processes_evaluate_record_and_go_on_as_in_training(story):
  folder, told = story
  assert told['eval'] == told['again'] == [0, 0], words(folder, 'eval_0')
  assert 'going on after 16 of 21' in words(folder, 'again_0')
  assert told['again records'] == told['eval records']
  expected = {name: value for name, value in lines(folder / 'run')[STEPS].items()
              if name.startswith('val/')}
  for name in ('eval', 'again'):
    numbers = told[f'{name} found']['numbers']
    assert {f'val/countdown/{key}': value for key, value in numbers.items()} == expected
  rows = [json.loads(line) for line in told['eval records'].splitlines()]
  order = [int(row['id'].rpartition('-')[2]) for row in rows]
  assert len(rows) == 21 and order == sorted(set(order))
  for row in rows:
    numbers = sum(row['answer']['numbers'])
    assert row['rewards'] == [(7 * len(text) + numbers) % 5 / 4
                              for text in row['responses']]
  table = [line for line in words(folder, 'eval_0').splitlines() if line[:1] == '|']
  assert len(table) == 3 and '|' not in words(folder, 'eval_1')


def test_only_the_first_process_speaks(story):
  assert 'warm start' in words(story[0], 'first_0')
  for name in ('first_1', 'third_1'):
    assert not re.search('warm start|step/s|val/', words(story[0], name))


def test_every_row_is_graded_once_by_a_holder_and_the_work_is_even():
  patterns = [[{0}, {0}, {1}, {1}], [{0, 1}] * 5, [{0, 1}] * 4 + [{2, 3}] * 4,
              [{0, 1, 2}, {0}] * 3]
  for holders in patterns:
    owners = hosts.deal(holders)
    assert all(owner in who for owner, who in zip(owners, holders, strict=True))
    for who in holders:
      shared = [owner for owner, theirs in zip(owners, holders, strict=True)
                if theirs == who]
      counts = [shared.count(process) for process in who]
      assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize(('arguments', 'message'), [
  (('10.0.0.1:1234', 2, None), r'--process_id=None: give all three'),
  (('10.0.0.1', 2, 0), r'--coordinator=10.0.0.1: write HOST:PORT'),
  (('10.0.0.1:1234', 2, 2), r'--process_id=2: must be from 0 to 1'),
  (('10.0.0.1:1234', 2, 0, 3), r'--heartbeat_s=3: must be at least 10'),
])
def test_what_cannot_be_joined_is_named(arguments, message):
  with pytest.raises(ValueError, match=message):
    hosts.join(*arguments)


def test_a_run_goes_on_from_a_checkpoint_of_another_mesh(tmp_path):
  groups, update = learner.groups(8, exact=False), learner.program(micro_prompts=8)
  states = []
  for shape in ((8, 1, 1), (2, 2, 2)):
    mesh = sharding.make_mesh(shape)
    fresh = learner.fresh(learner.policy())
    places = sharding.state_shardings(fresh, mesh)
    checkpoints = checkpoint.Checkpointer(str(tmp_path))
    with jax.set_mesh(mesh):
      if not states:
        state = jax.device_put(fresh, places)
        checkpoints.save(0, state, force=True)
      else:
        state, _ = checkpoints.restore(jax.tree.map(
          lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
          fresh, places))
        learner.assert_identical(state, fresh)
        query = state.params.blocks.query[...]
        assert query.sharding.shard_shape(query.shape) == (2, 8, 16)
      checkpoints.close()
      states.append(jax.device_get(update(state, hosts.place(groups, mesh))[0]))
  learner.assert_close(*states)
  moved = jax.tree.map(lambda x, y: np.abs(x - y).max(), states[0].params, fresh.params)
  assert max(jax.tree.leaves(moved)) > 1e-4
