"""Every parameter has its place on the mesh, and what does not fit is named."""

import re

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from lpo_jax import optimizer, sequence, sharding
from lpo_jax import policy as policies
from lpo_jax.types import TrainState
from tests import learner, tiny

_LORA = policies.Lora(rank=2)
_TOWER = policies.VisionConfig(width=16, layers=2, heads=4, mlp_width=24, patch_size=2,
                               window_size=8, full_blocks=(1,), image_token=1)
_SWITCHES = {'plain': {},
             'all': dict(qkv_bias=True, qk_norm=True, lora=_LORA, vision=_TOWER,
                         rope_sections=(1, 2, 1)),
             'tied': dict(tied_embeddings=True)}
_ROWS = PartitionSpec(None, 'fsdp', 'tensor')  # the layer axis first
_COLUMNS = PartitionSpec(None, 'tensor', 'fsdp')
_EXPECTED = {
  'embedding': PartitionSpec('tensor', 'fsdp'),
  'unembedding': PartitionSpec('fsdp', 'tensor'),
  **dict.fromkeys(['query', 'key', 'value', 'gate', 'up'], _ROWS),
  **dict.fromkeys(['out', 'down'], _COLUMNS),
  **dict.fromkeys(['query_bias', 'key_bias', 'value_bias'],
                  PartitionSpec(None, 'tensor')),
  'patch': PartitionSpec(None, 'fsdp'),
  'qkv': PartitionSpec(None, 'fsdp', None, 'tensor'),
  'qkv_bias': PartitionSpec(None, None, 'tensor'),
  **dict.fromkeys(['gate_bias', 'up_bias'], PartitionSpec(None, 'tensor')),
  **dict.fromkeys(['out_bias', 'down_bias', 'merge_out_bias'], PartitionSpec()),
  'merge_in': PartitionSpec('fsdp', 'tensor'),
  'merge_in_bias': PartitionSpec('tensor'),
  'merge_out': PartitionSpec('tensor', 'fsdp'),
  **{f'{name}_lora_{part}': PartitionSpec(None, *axes)
     for names, rows, columns in (
       (['query', 'key', 'value', 'gate', 'up'], 'fsdp', 'tensor'),
       (['out', 'down'], 'tensor', 'fsdp')) for name in names
     for part, axes in (('a', (rows, None)), ('b', (None, columns)))},
}


def _shapes(switches):
  return tiny.shapes(policies.PolicyConfig(**{**tiny.SIZES, **switches}))


def _placed(tree, mesh):
  """Return {name: (spec, shape)} of the parameters of a tree."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  places = jax.tree.leaves(sharding.state_shardings(tree, mesh))
  return {path[-2].name: (place.spec, leaf.shape)
          for (path, leaf), place in zip(leaves, places, strict=True)}


def _same(spec, expected, ndim):
  mesh = sharding.make_mesh((2, 2, 2))
  return jax.sharding.NamedSharding(mesh, spec).is_equivalent_to(
    jax.sharding.NamedSharding(mesh, expected), ndim)


@pytest.mark.parametrize('switches', _SWITCHES.values(), ids=_SWITCHES.keys())
def test_every_parameter_is_split_as_its_name_says(switches):
  placed = _placed(_shapes(switches), sharding.make_mesh((2, 2, 2)))
  for name, (spec, shape) in placed.items():
    expected = _EXPECTED.get(name, PartitionSpec())
    assert _same(spec, expected, len(shape)), (name, spec)
    assert name in _EXPECTED or 'norm' in name, f'{name} is copied to every device'


def test_every_name_of_the_table_is_a_parameter():
  switches = _SWITCHES['all']
  placed = _placed(_shapes(switches), sharding.make_mesh((1, 1, 1)))
  assert set(sharding.PARAMETERS) <= set(placed)


def test_moments_live_where_their_parameters_do_and_counts_everywhere():
  params = _shapes(_SWITCHES['all'])
  transform = optimizer.build(optimizer.OptimizerConfig())
  scalar = jax.ShapeDtypeStruct((), np.int32)
  state = TrainState(scalar, params, jax.eval_shape(transform.init, params), scalar)
  mesh = sharding.make_mesh((2, 2, 2))
  places = sharding.state_shardings(state, mesh)
  for moment in ('mu', 'nu'):
    mirror = optax.tree_utils.tree_get(places.opt_state, moment)
    assert jax.tree.leaves(mirror) == jax.tree.leaves(places.params)
  assert places.step.spec == places.skipped.spec == PartitionSpec()
  counts = optax.tree_utils.tree_get_all_with_path(places.opt_state, 'count')
  assert counts and all(place.spec == PartitionSpec() for _, place in counts)


@pytest.mark.parametrize('shape,axes,message', [
  ((1, 1), ('data', 'model'), r"mesh.axes=\('data', 'model'\): name each of"),
  ((1, 1, 1), ('data', 'fsdp', 'model'), r'mesh.shape=\(1, 1, 1\) with mesh.axes='),
  ((1, 1), sharding.AXES, r'mesh.shape=\(1, 1\) with .* one size each'),
  ((2, 1, 1, 1), (*sharding.AXES, 'data'), r'mesh.shape=\(2, 1, 1, 1\)'),
  ((4, 2, 2), sharding.AXES, r'\(4, 2, 2\) needs 16 devices, but 8 are here: make'),
  ((0, 1, 1), sharding.AXES, r'\(0, 1, 1\) needs 0 devices, but 8 are here'),
])
def test_a_mesh_that_cannot_be_is_named_with_the_remedy(shape, axes, message):
  with pytest.raises(ValueError, match=message):
    sharding.make_mesh(shape, axes)


def test_axes_may_come_in_any_order_and_leave_devices_unused():
  mesh = sharding.make_mesh((2, 1, 2), ('tensor', 'data', 'fsdp'))
  assert dict(mesh.shape) == {'tensor': 2, 'data': 1, 'fsdp': 2}
  assert sharding.batch_shards(mesh) == 2


@pytest.mark.parametrize('sizes,message', [
  (dict(batch=6), 'batch=6 does not split over mesh axes dataxfsdp of size 4'),
  (dict(kv_heads=3), 'kv_heads=3 does not split over mesh axes tensor of size 2'),
  (dict(heads=4, embed=5), 'embed=5 does not split over mesh axes fsdp of size 2'),
  (dict(vocab=7), 'vocab=7 .* tensor'), (dict(mlp=7), 'mlp=7 .* tensor'),
])
def test_a_size_that_does_not_split_is_named(sizes, message):
  with pytest.raises(ValueError, match=message):
    sharding.check_divisible(sharding.make_mesh((2, 2, 2)), sizes)


def test_sizes_that_split_pass():
  sharding.check_divisible(sharding.make_mesh((2, 2, 2)), dict(
    batch=8, heads=4, kv_heads=2, embed=6, vocab=14, mlp=2))


@pytest.mark.parametrize('shape,shards', [((1, 1, 1), 1), ((8, 1, 1), 8),
                                          ((2, 2, 2), 4), ((1, 4, 2), 4)])
def test_the_batch_is_split_over_data_and_fsdp(shape, shards):
  mesh = sharding.make_mesh(shape)
  assert sharding.batch_shards() == 1  # no mesh in context
  with jax.set_mesh(mesh):
    assert sharding.batch_shards() == sharding.batch_shards(mesh) == shards
  rows = {'tokens': np.arange(16).reshape(8, 2), 'keep': np.arange(8) > 3}
  placed = sharding.shard_batch(rows, mesh)
  for name, x in placed.items():
    np.testing.assert_array_equal(x, rows[name])
    assert x.sharding.shard_shape(x.shape)[0] == 8 // shards
    assert x.sharding.shard_shape(x.shape)[1:] == x.shape[1:]


def test_replicated_is_whole_on_every_device():
  mesh = sharding.make_mesh((2, 2, 2))
  x = jax.device_put(np.ones((4, 4)), sharding.replicated(mesh))
  assert x.sharding.is_fully_replicated and len(x.devices()) == 8


def test_activations_are_left_alone_outside_a_mesh():
  x = np.ones((8, 3))
  assert sharding.constrain_batch(x) is x


def test_activations_are_split_along_the_batch_inside_a_mesh():
  mesh = sharding.make_mesh((2, 2, 2))
  with jax.set_mesh(mesh):
    x = jax.device_put(np.ones((8, 3)), sharding.replicated(mesh))
    y = jax.jit(sharding.constrain_batch)(x)
  assert y.sharding.shard_shape(y.shape)[0] == 2


@pytest.mark.parametrize('shape,alone', [
  ((4, 1, 1), True), ((1, 1, 1), False), ((2, 2, 1), False), ((4, 1, 2), False)])
def test_shards_loop_by_themselves_where_every_device_has_all_weights(shape, alone):
  def turns(limits):  # [B] -> [B], turns until the last row is there
    count = jax.lax.while_loop(lambda n: (n < limits).any(), lambda n: n + 1, 0)
    return sharding.constrain(limits * 0 + count, 'batch')

  limits = np.array([1, 3, 0, 0, 9, 2, 5, 5], np.int32)
  expected = np.repeat([3, 0, 9, 5], 2) if alone else np.full(8, 9)
  mesh = sharding.make_mesh(shape)
  with jax.set_mesh(mesh):
    rows = sharding.shard_batch(limits, mesh)
    spec = sharding.spec(rows, 'batch')
    found = jax.jit(sharding.by_shard(turns, (spec,), spec))(rows)
  np.testing.assert_array_equal(found, expected)
  assert sharding.spec(limits, 'batch') is None  # no mesh in context
  assert sharding.by_shard(turns, (None,), None) is turns


@pytest.mark.parametrize('shape', [(4, 1, 1), (2, 2, 1)])
def test_a_total_is_of_all_shards_by_themselves_or_not(shape):
  mesh = sharding.make_mesh(shape)
  with jax.set_mesh(mesh):
    rows = sharding.shard_batch(np.arange(8, dtype=np.float32), mesh)
    total = sharding.by_shard(lambda x: sharding.total({'sum': x.sum()}),
                              (sharding.spec(rows, 'batch'),), PartitionSpec())
    assert float(jax.jit(total)(rows)['sum']) == 28


# A policy on a mesh: what is split, what is copied, and that the result is the same.

_MESHED = dict(heads=8, kv_heads=2, vocab_size=96, width=16, mlp_width=32)


def _on_a_mesh(shape, rows=4, **switches):
  """Return log-probabilities, their gradient, and the compiled program's text."""
  policy = tiny.policy(**_MESHED, **switches)
  batch = tiny.rollouts((4, 1, 6, 2)[:rows], 4, 8, 96)
  mesh = sharding.make_mesh(shape)

  def loss(policy, batch):
    logprobs, _ = sequence.response_logprobs(policy, batch, chunk=4)
    return -logprobs.mean(), logprobs

  gradient = learner.jit(jax.value_and_grad(loss, has_aux=True))
  with jax.set_mesh(mesh):
    policy = jax.device_put(policy, sharding.state_shardings(policy, mesh))
    batch = sharding.shard_batch(batch, mesh)
    text = gradient.lower(policy, batch).compile().as_text()
    (_, logprobs), grads = gradient(policy, batch)
  return np.asarray(logprobs), jax.device_get(grads), text


@pytest.mark.parametrize('shape,switches', [
  ((1, 2, 4), {}), ((1, 1, 4), dict(sequence_sharding=True)),
  ((2, 2, 2), dict(sequence_sharding=True, remat='full', tied_embeddings=True))],
  ids=['few_heads', 'sequence', 'sequence_remat'])
def test_a_policy_is_the_same_however_it_is_split(shape, switches):
  logprobs, grads, _ = _on_a_mesh(shape, **switches)
  expected, reference, _ = _on_a_mesh(
    (1, 1, 1), tied_embeddings=switches.get('tied_embeddings', False))
  np.testing.assert_allclose(logprobs, expected, rtol=1e-5, atol=1e-5)
  for actual, wanted in zip(jax.tree.leaves(grads), jax.tree.leaves(reference),
                            strict=True):
    np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-6)


def _collectives(text, size):
  """Return the lines in which devices exchange an array with an axis of `size`."""
  names = ('all-gather', 'all-reduce', 'all-to-all', 'collective-permute')
  shape = re.compile(rf'\w+\[(?:\d+,)*{size}(?:,\d+)*\]')
  return [line for line in text.splitlines()
          if any(f' {name}(' in line or f' {name}-start(' in line for name in names)
          and shape.search(line.split(' = ')[1].split(')')[0])]


@pytest.mark.parametrize('tied', [False, True], ids=['untied', 'tied'])
def test_logits_stay_split_over_the_vocabulary(tied):
  text = _on_a_mesh((1, 1, 4), tied_embeddings=tied)[2]
  assert 'all-reduce' in text
  assert not _collectives(text, 96), 'logits [.., V] travel'


def test_few_key_value_heads_are_noticed_and_other_sizes_refused():
  mesh = sharding.make_mesh((1, 1, 8))
  sharding.check_divisible(mesh, dict(kv_heads=2, heads=8))
  assert 'kv_heads=2 are fewer than the 8' in sharding.notices(mesh, 2)[0]
  assert '4 devices each' in sharding.notices(mesh, 2)[0]
  assert not sharding.notices(mesh, 8)
  with pytest.raises(ValueError, match='kv_heads=3 does not split'):
    sharding.check_divisible(mesh, dict(kv_heads=3))


def test_an_axis_that_does_not_split_stays_whole():
  mesh = sharding.make_mesh((1, 2, 4))
  place = sharding.placement((3, 6, 2, 5), ('batch', 'kv_heads', None), mesh)
  assert place.spec == PartitionSpec(None, ('data', 'fsdp'), None, None)
  place = sharding.placement((4, 8, 8), ('batch', 'kv_heads', 'sequence')[:2], mesh)
  assert place.spec == PartitionSpec(None, ('data', 'fsdp'), 'tensor')


def test_a_mesh_can_be_of_given_devices():
  devices = jax.devices()[4:6]
  mesh = sharding.make_mesh((1, 2, 1), devices=devices)
  assert list(mesh.devices.ravel()) == devices
  with pytest.raises(ValueError, match='needs 4 devices, but 2 are here'):
    sharding.make_mesh((1, 4, 1), devices=devices)
