"""What is compiled in threads is what the run calls, and changes no number."""

import jax
import pytest

from experiments import countdown
from lpo_jax import batches, build, hosts, phases, prepare, programs, train
from lpo_jax import metrics as metrics_lib


@pytest.fixture
def config():
  config = countdown.get_config('tiny')
  config.num_steps = 2
  config.log.tensorboard = False
  return config


@pytest.fixture
def compiled():
  """Collect the names of the step's programs as they are compiled."""
  names, found = ('step', 'begin', 'decode', 'update', 'certify'), []

  def listen(event, _, fun_name='', **__):
    name = fun_name.removeprefix('jit(').removesuffix(')')
    if event.endswith('backend_compile_duration') and name in names:
      found.append(name)
  jax.monitoring.register_event_duration_secs_listener(listen)
  return found


@pytest.mark.parametrize('sampling_shape', [(), (8, 1, 1)])
def test_what_was_compiled_in_threads_is_found_when_it_is_called(
    config, compiled, sampling_shape):
  config.mesh.shape, config.mesh.sampling_shape = (2, 2, 2), sampling_shape
  parts = build.build(config)
  made, clock = programs.Programs(parts), phases.Phases(None)
  under_way = prepare.begin(config, parts, made, clock, None)
  under_way.wait()
  under_way.close()
  assert sorted(compiled) == ['begin', 'certify', 'decode', 'step', 'update']
  compiled.clear()
  with jax.set_mesh(parts.mesh):
    params = made.fresh_params(jax.random.key(0))
    init, step, _ = made.warm_start
    batch = hosts.place(batches.warmstart_batch(config, parts, 0), parts.mesh)
    params, _, _ = step(params, init(params), batch)
    state = made.state_of(params, jax.random.key(1))
    groups = batches.collect(config, parts, state.params, 1, jax.random.key(2),
                             clock).groups
    state, _, _ = made.update(state, groups)
    made.certify(state.params, state.step - 1, groups)
  assert not compiled


def test_a_run_is_the_same_where_nothing_is_compiled_in_threads(
    config, tmp_path, monkeypatch, compiled):
  train.Run(config, str(tmp_path / 'ahead')).train()
  assert sorted(compiled) == ['begin', 'certify', 'decode', 'step', 'update']
  monkeypatch.setattr(prepare, 'begin',
                      lambda *args: prepare.Prepared(phases.Phases(None)))
  train.Run(config, str(tmp_path / 'plain')).train()
  rows = [[{name: value for name, value in row.items()
            if not name.startswith(('timing_s/', 'perf/'))}
           for row in metrics_lib.read(str(tmp_path / name))]
          for name in ('ahead', 'plain')]
  assert rows[0] == rows[1]


def test_what_a_job_raised_is_raised_by_the_wait():
  found = prepare.Prepared(phases.Phases(None))
  found.add('sampler', lambda: 1 / 0)
  found.add('update', lambda made: made, 'sampler')
  with pytest.raises(ZeroDivisionError):
    found.wait('update')
  found.wait('warm_start')  # there is none
  found.close()


@pytest.mark.parametrize('resumed, steps, names', [
  (None, 2, ['warm_start', 'sampler', 'update', 'certify']),
  (None, 0, ['warm_start', 'sampler']),
  (1, 2, ['sampler', 'update', 'certify']),
  (2, 2, ['sampler']),
])
def test_only_what_will_be_called_is_compiled(config, monkeypatch, resumed, steps,
                                              names):
  added = []
  monkeypatch.setattr(prepare.Prepared, 'add',
                      lambda self, name, *_: added.append(name))
  config.num_steps = steps
  parts = build.build(config)
  prepare.begin(config, parts, programs.Programs(parts), phases.Phases(None),
                resumed).close()
  assert added == names
