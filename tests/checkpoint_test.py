"""What is saved comes back bit for bit, on any mesh, or is refused with a reason."""

import json
import pathlib
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lpo_jax import checkpoint, manifest
from lpo_jax.types import TrainState

# Orbax leaves coroutines behind when a read fails.
pytestmark = pytest.mark.filterwarnings(
  'ignore::pytest.PytestUnraisableExceptionWarning', 'ignore::RuntimeWarning'
)


def _state(step=0, width=16):
  params = nnx.Linear(8, width, rngs=nnx.Rngs(step))
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
  return TrainState(
    step=jnp.int32(step),
    params=params,
    opt_state=optimizer.init(params),
    skipped=jnp.int32(0),
  )


def _abstract(state, sharding=None):
  sharding = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state
  )


def _assert_equal(left, right):
  assert jax.tree.structure(left) == jax.tree.structure(right)
  for one, other in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
    assert one.dtype == other.dtype
    np.testing.assert_array_equal(one, other)


def _save(directory, steps, width=16, **options):
  keeper = checkpoint.Checkpointer(directory, **options)
  for step in steps:
    keeper.save(step, _state(step, width))
  keeper.close()


def _restore(directory, abstract=None):
  keeper = checkpoint.Checkpointer(directory)
  found = keeper.restore(abstract or _abstract(_state()))
  messages = keeper.messages
  keeper.close()
  return found, messages


def test_a_state_comes_back_bit_for_bit(tmp_path):
  _save(tmp_path, [1, 2])
  (state, step), messages = _restore(tmp_path)
  assert step == 2 and messages == []
  _assert_equal(state, _state(2))


def test_concrete_arrays_serve_as_the_abstract_state(tmp_path):
  _save(tmp_path, [3])
  _assert_equal(_restore(tmp_path, _state(0))[0][0], _state(3))


def test_an_empty_folder_restores_nothing(tmp_path):
  assert _restore(tmp_path / 'new')[0] is None


@pytest.mark.parametrize('saved_on, shape', [((1, 1), (4, 2)), ((8, 1), (2, 4))])
def test_a_state_saved_on_one_mesh_restores_on_another(tmp_path, saved_on, shape):
  auto = (jax.sharding.AxisType.Auto,) * 2

  def sharding(shape):
    mesh = jax.make_mesh(shape, ('a', 'b'), axis_types=auto)

    def place(leaf):
      return jax.NamedSharding(mesh, jax.P('a', 'b') if leaf.ndim == 2 else jax.P())

    return place

  state = _state(1)
  spread = jax.tree.map(lambda x: jax.device_put(x, sharding(saved_on)(x)), state)
  keeper = checkpoint.Checkpointer(tmp_path)
  keeper.save(1, spread)
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding(shape)(x)), state
  )
  restored, _ = keeper.restore(abstract)
  keeper.close()
  _assert_equal(restored, state)
  for leaf, wanted in zip(
    jax.tree.leaves(restored), jax.tree.leaves(abstract), strict=True
  ):
    assert leaf.sharding == wanted.sharding


def test_the_state_may_be_donated_once_save_returns(tmp_path):
  keeper = checkpoint.Checkpointer(tmp_path)
  state = _state(5)
  wiped = jax.jit(lambda s: jax.tree.map(jnp.zeros_like, s), donate_argnums=0)
  keeper.save(5, state)
  wiped(state)
  restored, _ = keeper.restore(_abstract(_state()))
  keeper.close()
  _assert_equal(restored, _state(5))


def test_the_last_n_are_kept(tmp_path):
  _save(tmp_path, range(5), keep_last=3)
  keeper = checkpoint.Checkpointer(tmp_path)
  assert keeper.steps() == [2, 3, 4] and keeper.latest_step() == 4
  keeper.close()


@pytest.mark.parametrize('mode, best', [('max', 1), ('min', 2)])
def test_the_best_is_kept_beside_them_also_after_a_restart(tmp_path, mode, best):
  scores = {0: 0.4, 1: 0.9, 2: 0.1, 3: 0.5, 4: float('nan'), 5: None, 6: 0.6, 7: 0.5}
  for steps in (range(4), range(4, 8)):
    keeper = checkpoint.Checkpointer(tmp_path, best_metric='val/x', best_mode=mode)
    for step in steps:
      keeper.save(
        step, _state(), {'other': 1.0} | ({'val/x': scores[step]} if step != 5 else {})
      )
    keeper.wait()
    last = keeper.steps()
    keeper.close()
  assert last == [best, 6, 7]


def test_saves_happen_at_multiples_or_when_forced_and_once(tmp_path):
  keeper = checkpoint.Checkpointer(tmp_path, every=3, keep_last=9)
  saved = [step for step in range(1, 8) if keeper.save(step, _state())]
  assert saved == [3, 6]
  assert keeper.save(7, _state(), force=True)
  assert not keeper.save(7, _state(), force=True)
  keeper.close()


def _damage(file, how):
  data = bytearray(file.read_bytes())
  if how == 'deleted':
    file.unlink()
  elif how == 'truncated':
    file.write_bytes(data[: len(data) // 2])
  else:
    at = {'first': 0, 'middle': len(data) // 2, 'last': len(data) - 1}[how]
    data[at] ^= 0x55
    file.write_bytes(data)


def test_no_damage_to_any_file_is_restored_silently(tmp_path):
  _save(tmp_path, [1, 2], width=512, best_metric='val/x')
  keeper = checkpoint.Checkpointer(tmp_path, best_metric='val/x')
  keeper.save(3, _state(3, 512), {'val/x': 0.5})
  keeper.close()
  folder = tmp_path / '3'
  fell_back = 0
  for file in sorted(f for f in folder.rglob('*') if f.is_file()):
    original = file.read_bytes()
    for how in ('deleted', 'truncated', 'first', 'middle', 'last'):
      _damage(file, how)
      keeper = checkpoint.Checkpointer(tmp_path, best_metric='val/x')
      state, step = keeper.restore(_abstract(_state(width=512)))
      keeper.close()
      _assert_equal(state, _state(step, 512))
      if step != 3:
        fell_back += 1
        (tmp_path / 'damaged_3').rename(folder)
      file.write_bytes(original)
  assert fell_back >= 20


def _largest_file(folder):
  files = [f for f in (folder / 'state').rglob('*') if f.is_file()]
  return max(files, key=lambda f: f.stat().st_size)


def test_a_damaged_latest_is_set_aside_and_its_step_saved_again(tmp_path):
  _save(tmp_path, [1, 2], width=512)
  _damage(_largest_file(tmp_path / '2'), 'middle')
  keeper = checkpoint.Checkpointer(tmp_path)
  state, step = keeper.restore(_abstract(_state(width=512)))
  assert step == 1
  _assert_equal(state, _state(1, 512))
  assert 'fell back from damaged checkpoint' in keeper.messages[0]
  assert 'bits changed' in keeper.messages[0]
  assert (tmp_path / 'damaged_2').is_dir() and keeper.latest_step() == 1
  assert keeper.save(2, _state(2, 512))
  keeper.close()
  _assert_equal(_restore(tmp_path, _abstract(_state(width=512)))[0][0], _state(2, 512))


def test_an_array_that_its_description_lost_counts_as_damage(tmp_path):
  _save(tmp_path, [1, 2])
  file = tmp_path / '2' / 'state' / '_METADATA'
  described = json.loads(file.read_text())
  arrays = described['tree_metadata']
  del arrays[next(name for name in arrays if 'params/kernel' in name)]
  file.write_text(json.dumps(described))
  (state, step), messages = _restore(tmp_path)
  assert step == 1 and 'params/kernel/value was not read' in messages[0]
  _assert_equal(state, _state(1))


def test_one_step_damaged_twice_keeps_both_for_inspection(tmp_path):
  _save(tmp_path, [1])
  for _ in range(2):
    _save(tmp_path, [2])
    _damage(_largest_file(tmp_path / '2'), 'truncated')
    assert _restore(tmp_path)[0][1] == 1
  assert {f.name for f in tmp_path.glob('damaged*')} == {'damaged_2', 'damaged_2_1'}


def test_when_all_are_damaged_the_error_says_what_to_do_and_nothing_moves(tmp_path):
  _save(tmp_path, [1, 2])
  for step in ('1', '2'):
    _damage(_largest_file(tmp_path / step), 'truncated')
  with pytest.raises(checkpoint.DamagedError, match='(?s)/2 .*/1 .*Move these folders'):
    _restore(tmp_path)
  assert (tmp_path / '1').is_dir() and (tmp_path / '2').is_dir()


def test_another_shape_is_an_error_that_names_both_and_changes_nothing(tmp_path):
  _save(tmp_path, [1, 2])
  with pytest.raises(ValueError, match='params/kernel') as error:
    _restore(tmp_path, _abstract(_state(width=32)))
  assert 'float32[8, 16] in the checkpoint, float32[8, 32] asked for' in str(
    error.value
  )
  assert _restore(tmp_path)[0][1] == 2


_KILLED = """
import os, signal, sys
import jax.numpy as jnp
from lpo_jax import checkpoint
keeper = checkpoint.Checkpointer(sys.argv[1])
for step in range(100):
  keeper.save(step, {'x': jnp.full((2_000_000,), step, jnp.float32)})
  if step == 3:
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_save_cut_short_by_a_kill_is_never_seen(tmp_path):
  root = pathlib.Path(checkpoint.__file__).parents[1]
  done = subprocess.run(
    [sys.executable, '-c', _KILLED, str(tmp_path)], cwd=root, capture_output=True
  )
  assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
  abstract = {'x': jax.ShapeDtypeStruct((2_000_000,), jnp.float32)}
  (state, step), messages = _restore(tmp_path, abstract)
  assert step in (2, 3) and messages == []
  np.testing.assert_array_equal(state['x'], np.full(2_000_000, step, np.float32))
  left = {entry.name for entry in tmp_path.iterdir()}
  assert all(name.isdecimal() for name in left if not name.startswith('_')), left


@pytest.mark.parametrize('where', ['.', 'checkpoints', 'checkpoints/2'])
def test_params_are_read_from_a_run_its_checkpoints_or_one_step(tmp_path, where):
  _save(tmp_path / 'checkpoints', [1, 2])
  params = checkpoint.restore_params(tmp_path / where, _abstract(_state().params))
  _assert_equal(params, _state(2).params)


def test_params_of_a_damaged_step_come_from_the_one_before_and_nothing_moves(tmp_path):
  _save(tmp_path, [1, 2])
  _damage(_largest_file(tmp_path / '2'), 'truncated')
  params = checkpoint.restore_params(tmp_path, _abstract(_state().params))
  _assert_equal(params, _state(1).params)
  assert (tmp_path / '2').is_dir()


def test_params_of_another_shape_or_from_nowhere_are_refused(tmp_path):
  with pytest.raises(FileNotFoundError, match='no checkpoint at'):
    checkpoint.restore_params(tmp_path, _abstract(_state().params))
  _save(tmp_path, [1])
  with pytest.raises(manifest.MismatchError, match=r'params/bias.*\[16\].*\[4\]'):
    checkpoint.restore_params(tmp_path, _abstract(_state(width=4).params))


@pytest.mark.parametrize(
  'options', [{'keep_last': 0}, {'every': 0}, {'best_mode': 'most'}]
)
def test_bad_options_are_named(tmp_path, options):
  with pytest.raises(ValueError, match=next(iter(options))):
    checkpoint.Checkpointer(tmp_path, **options)
