"""A step compiles without an array, is measured whole, and refused when too large."""

import json

import jax
import numpy as np
import pytest

from experiments import countdown
from lpo_jax import ahead, briefing, build, footprint, programs


def _config():
  config = countdown.get_config('tiny')
  config.task.name = 'not read'
  config.policy.tokenizer = 'not read'
  config.mesh.shape = (2, 2, 2)
  config.sampling.unroll = False
  return config


@pytest.fixture(scope='module')
def found():
  """Return what examining the tiny configuration on eight devices finds."""
  before = len(jax.live_arrays())
  result = ahead.examine(_config(), jax.devices())
  assert len(jax.live_arrays()) <= before + 1  # a key at most
  return result


def test_every_program_is_compiled_and_measured(found):
  assert set(found['programs']) == {'prefill', 'decode', 'update'}
  for program in found['programs'].values():
    assert program['arguments'] > 0 and program['flops_once'] > 0
  for kinds in found['phases'].values():
    assert kinds['total'] == sum(kinds[kind] for kind in footprint.KINDS[:-1])
    assert min(kinds.values()) >= 0
  assert found['bytes_per_device']['total'] == max(
    kinds['total'] for kinds in found['phases'].values())


def test_params_and_moments_are_those_of_the_train_state(found):
  state = programs.Programs(build.plan(_config())).abstract
  for kind, tree in (('params', state.params), ('optimizer', state.opt_state)):
    size = sum(np.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
               for x in jax.tree.leaves(tree))
    assert found['bytes_per_device'][kind] == size


def test_a_device_without_a_limit_or_a_table_row_is_not_judged(found):
  assert found['fits'] is None and found['predicted_s'] is None
  text = briefing.compiled(found)
  assert 'states no limit' in text and "no prediction of time: 'cpu'" in text


def test_few_key_value_heads_are_copied_and_said_so(found):
  assert found['notices'] == [
    'kv_heads=1 are fewer than the 2 devices along mesh axis tensor: keys and values '
    'are copied to 2 devices each']
  assert found['notices'][0] in briefing.compiled(found)


def test_too_small_a_device_is_refused_with_three_knobs(found, tmp_path, monkeypatch,
                                                        capsys):
  compiled = ahead._compile_all
  calls = []

  def once(parts, setting):
    calls.append(compiled)
    return found['programs'], {
      'params': 1e6, 'reads': 1e6, 'copy': 0, 'optimizer': 2e6, 'prompt_kv': 0,
      'cache': 1, 'parked': 0, 'before_growing': 0}

  monkeypatch.setattr(ahead, '_compile_all', once)
  run = tmp_path / 'new' / 'run'
  assert ahead.run(_config(), '', str(run), memory_gib=1e-6) == 1
  written = json.loads((run / 'compile.json').read_text())
  assert written['fits'] is False and len(written['knobs']) == 3
  shown = capsys.readouterr().out
  assert 'DOES NOT FIT' in shown
  assert all(knob['set'] in shown for knob in written['knobs'])
  assert ahead.run(_config(), '', str(run), memory_gib=1.0) == 0
  assert calls


def test_what_the_compiler_refuses_counts_as_too_large():
  def refuse():
    raise jax.errors.JaxRuntimeError(
      'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO '
      'temporaries (145.95G) exceeds available HBM (95.74G).')

  assert ahead._compile(refuse)['temporaries'] == 145.95 * 2**30


@pytest.mark.parametrize('topology', ['v5p', 'v5p-8', '2x2x4'])
def test_a_topology_that_is_none_is_named(topology):
  with pytest.raises(ValueError, match=f"topology='{topology}': write KIND:SIZES"):
    ahead.described(topology)


def test_a_missing_libtpu_is_named_with_the_remedy(monkeypatch):
  def absent(**_):
    raise RuntimeError('JAX TPU support not installed; cannot generate TPU topology.')

  monkeypatch.setattr(ahead.topologies, 'get_topology_desc', absent)
  with pytest.raises(ValueError, match=r"needs libtpu.*pip install 'lpo_jax\[tpu\]'"):
    ahead.described('v5p:2x2x4')


def test_a_slice_that_is_not_here_is_compiled_for():
  pytest.importorskip('libtpu')
  with pytest.raises(ValueError, match="topology='v99:2x2'"):
    ahead.described('v99:2x2')
  config = _config()
  config.mesh.shape = (1, 2, 2)
  found = ahead.examine(config, ahead.described('v5e:2x2'))
  assert found['chip'] == 'TPU v5e' and found['fits']
  assert found['predicted_s']['step']['total'] > 0


def test_a_policy_that_reads_images_is_compiled_with_its_tower():
  from experiments import geometry3k
  config = geometry3k.get_config('tiny')
  config.mesh.shape = (2, 1, 2)
  config.sampling.unroll = False
  for frozen in (True, False):
    config.policy.vision.frozen = frozen
    found = ahead.examine(config, jax.devices()[:4])
    assert set(found['programs']) == {'prefill', 'encode', 'decode', 'update'}
    assert found['phases']['encode']['activations'] > 0
    assert found['work_per_device']['encode']['flops'] > 0
    assert found['phases']['encode']['total'] < found['phases']['update']['total']
