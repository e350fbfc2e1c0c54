"""A fingerprint sees any change and no sharding; structure errors name the arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpo_jax import manifest

MIXED = {
  'f32': np.linspace(-1, 1, 24, dtype=np.float32).reshape(2, 3, 4),
  'bf16': np.asarray(jnp.arange(10, dtype=jnp.bfloat16)),
  'i32': np.arange(5, dtype=np.int32),
  'u8': np.arange(5, dtype=np.uint8),
  'bool': np.array([True, False, True]),
  'scalar': np.float32(0.0),
}


@pytest.mark.parametrize('name', MIXED)
def test_fingerprint_changes_with_every_single_bit(name):
  array = np.atleast_1d(MIXED[name])
  before = int(manifest.fingerprint(array))
  bits = 1 if array.dtype == bool else 8 * array.itemsize
  for element in range(array.size):
    for bit in range(0, bits, 3):
      changed = array.copy()
      raw = changed.reshape(-1).view(f'u{array.itemsize}')
      raw[element] ^= np.array(1 << bit, raw.dtype)
      assert int(manifest.fingerprint(changed)) != before


def test_fingerprint_changes_when_two_elements_are_swapped():
  array = np.arange(100.0, dtype=np.float32)
  marks = {int(manifest.fingerprint(array))}
  for at in range(99):
    swapped = array.copy()
    swapped[[at, at + 1]] = swapped[[at + 1, at]]
    marks.add(int(manifest.fingerprint(swapped)))
  assert len(marks) == 100


def test_fingerprint_agrees_with_a_loop_in_plain_integers():
  array = np.linspace(-3, 5, 12, dtype=np.float32).reshape(3, 4)
  total = 0
  for position, bits in enumerate(array.reshape(-1).view(np.uint32).tolist()):
    weight = position * 0x85EBCA6B % 2**32
    weight = (weight ^ (weight >> 13)) * 0xC2B2AE35 % 2**32
    weight = (weight ^ (weight >> 16)) | 1
    total = (total + bits * weight) % 2**32
  assert int(manifest.fingerprint(array)) == total


@pytest.mark.parametrize('kind', ['Auto', 'Explicit'])
def test_fingerprint_is_the_same_on_every_sharding(kind):
  kind = getattr(jax.sharding.AxisType, kind)
  array = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
  mesh = jax.make_mesh((4, 2), ('a', 'b'), axis_types=(kind, kind))
  specs = [(None, None), ('a', None), (None, 'b'), ('a', 'b'), (('a', 'b'), None)]
  marks = {
    int(
      manifest.fingerprints(
        {'x': jax.device_put(array, jax.NamedSharding(mesh, jax.P(*spec)))}
      )['x']
    )
    for spec in specs
  }
  assert marks == {int(manifest.fingerprint(array))}


def test_a_flat_state_is_named_by_its_paths():
  tree = {'a': [jnp.zeros(1), {'b': jnp.zeros(2)}], 'c': jnp.zeros(3)}
  names = {name: leaf.shape[0] for name, leaf in manifest.flatten(tree).items()}
  assert names == {'a/0': 1, 'a/1/b': 2, 'c': 3}


def test_two_leaves_of_one_path_are_refused():
  with pytest.raises(ValueError, match='2 leaves have only 1'):
    manifest.flatten({'a/b': jnp.zeros(1), 'a': {'b': jnp.zeros(1)}})


def test_structure_error_names_every_array_that_differs_and_no_other():
  described = manifest.describe(MIXED)
  wanted = dict(MIXED) | {'i32': np.zeros(6, np.int32), 'new': np.zeros(2, np.float32)}
  del wanted['u8']
  with pytest.raises(manifest.MismatchError) as error:
    manifest.check_structure(described, wanted, origin='/run/7')
  assert '/run/7' in str(error.value)
  assert 'i32: int32[5] in the checkpoint, int32[6] asked for' in str(error.value)
  assert 'new: absent in the checkpoint, float32[2] asked for' in str(error.value)
  assert 'u8: uint8[5] in the checkpoint, absent asked for' in str(error.value)
  assert 'f32' not in str(error.value).replace('float32', '')


def test_an_altered_manifest_is_damage_not_another_structure():
  described = manifest.describe(MIXED)
  described['arrays']['i32'][0] = [6]
  with pytest.raises(ValueError, match='checksum') as error:
    manifest.check_structure(described, MIXED)
  assert not isinstance(error.value, manifest.MismatchError)


def test_bit_errors_name_the_array():
  described = manifest.describe(MIXED)
  manifest.check_bits(described, MIXED)
  with pytest.raises(ValueError, match='saved in u8$'):
    manifest.check_bits(described, MIXED | {'u8': MIXED['u8'] + np.uint8(1)})
