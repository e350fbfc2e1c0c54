"""Where arrays live: one table from parameter to logical axes, one to mesh axes.

The mesh has three axes. `data` splits the batch and copies parameters; `fsdp` splits
both; `tensor` splits heads, MLP width and vocabulary. XLA inserts the collectives
(GSPMD); nothing here is a second engine.

  parameter path -> logical axes (PARAMETERS) -> mesh axes (RULES)
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ('data', 'fsdp', 'tensor')
BATCH = ('data', 'fsdp')  # mesh axes that split B

RULES = {
  'embed': 'fsdp',
  'vocab': 'tensor',
  'heads': 'tensor',
  'kv_heads': 'tensor',
  'mlp': 'tensor',
  'sequence': 'tensor',  # of the residual stream, see constrain_residual
}

# The last axes of each parameter; leading ones (stacked layers) are not split.
PARAMETERS = {
  'embedding': ('vocab', 'embed'),
  'unembedding': ('embed', 'vocab'),
  'query': ('embed', 'heads'),
  'key': ('embed', 'kv_heads'),
  'value': ('embed', 'kv_heads'),
  'out': ('heads', 'embed'),
  'gate': ('embed', 'mlp'),
  'up': ('embed', 'mlp'),
  'down': ('mlp', 'embed'),
  'query_bias': ('heads',),
  'key_bias': ('kv_heads',),
  'value_bias': ('kv_heads',),
}
PARAMETERS |= {  # of the vision tower; what it shares with the decoder stands above
  'patch': (None, 'embed'),
  'qkv': ('embed', None, 'heads'),
  'qkv_bias': (None, 'heads'),
  'gate_bias': ('mlp',),
  'up_bias': ('mlp',),
  'merge_in': ('embed', 'mlp'),
  'merge_in_bias': ('mlp',),
  'merge_out': ('mlp', 'embed'),
}
PARAMETERS |= {  # low-rank adapters are split as the matrix they correct
  f'{name}_lora_{part}': axes
  for name in ('query', 'key', 'value', 'out', 'gate', 'up', 'down')
  for part, axes in (('a', (PARAMETERS[name][0], None)),
                     ('b', (None, PARAMETERS[name][1])))
}


def make_mesh(shape: tuple[int, ...], axes: tuple[str, ...] = AXES,
              devices=None) -> Mesh:
  """Return a mesh of the first prod(shape) devices.

  Args:
    shape: devices along each axis.
    axes: names of the axes, of AXES.
    devices: to choose from; those that are here if None.

  Raises:
    ValueError: if an axis is unknown, the lengths differ, or devices are too few.
  """
  if len(shape) != len(axes) or sorted(axes) != sorted(AXES):
    raise ValueError(
      f'mesh.shape={tuple(shape)} with mesh.axes={tuple(axes)}: name each of {AXES} '
      'once, with one size each (1 leaves an axis unused)'
    )
  devices = jax.devices() if devices is None else devices
  need, have = math.prod(shape), len(devices)
  if need > have or need < 1:
    raise ValueError(
      f'mesh.shape={tuple(shape)} needs {need} devices, but {have} are here: make '
      'their product fit'
    )
  return jax.make_mesh(tuple(shape), tuple(axes), devices=devices[:need],
                       axis_types=(AxisType.Auto,) * len(axes))


def check_divisible(mesh: Mesh, sizes: dict[str, int]) -> None:
  """Raise a ValueError unless every named size splits over its mesh axes.

  Key/value heads may also be fewer, if they divide the axis: see `notices`.

  Args:
    mesh: the mesh.
    sizes: sizes by logical axis name: `batch`, or a key of RULES (heads count
      heads, not columns).
  """
  for name, size in sizes.items():
    axes = BATCH if name == 'batch' else (RULES[name],)
    parts = math.prod(mesh.shape[axis] for axis in axes)
    if size % parts and not (name == 'kv_heads' and parts % size == 0):
      raise ValueError(
        f'{name}={size} does not split over mesh axes {"x".join(axes)} of size {parts}'
      )


def check_policy(mesh: Mesh, batch: int, sizes) -> None:
  """Raise a ValueError unless a batch and a policy's PolicyConfig split over a mesh."""
  check_divisible(mesh, {'batch': batch} | sizes.split_sizes)
  if sizes.vision:
    check_divisible(mesh, sizes.vision.split_sizes)


def notices(mesh: Mesh, kv_heads: int) -> list[str]:
  """Return what a user should know of how a policy is split."""
  tensor = mesh.shape[RULES['kv_heads']]
  if kv_heads % tensor == 0:
    return []
  return [f'kv_heads={kv_heads} are fewer than the {tensor} devices along mesh axis '
          f'{RULES["kv_heads"]}: keys and values are copied to {tensor // kv_heads} '
          'devices each']


def state_shardings(tree, mesh: Mesh):
  """Return the sharding of every leaf of a train state, by its parameter's name.

  A leaf of the optimizer state that mirrors a parameter (a moment) is placed as that
  parameter is; scalars and norms are replicated.
  """
  def place(path, leaf):
    spec, logical = [None] * leaf.ndim, logical_axes(path)
    if leaf.ndim >= len(logical):
      spec[leaf.ndim - len(logical):] = [axis and RULES[axis] for axis in logical]
    return NamedSharding(mesh, PartitionSpec(*spec))

  return jax.tree_util.tree_map_with_path(place, tree)


def logical_axes(path: tuple) -> tuple[str | None, ...]:
  """Return the logical axes of the parameter at a tree's path; none of others."""
  # A leaf is .value of its nnx.Param, whose own name stands before it.
  name = getattr(path[-2], 'name', None) if len(path) > 1 else None
  return PARAMETERS.get(name, ())


def replicated(mesh: Mesh) -> NamedSharding:
  """Return the sharding that copies an array onto every device."""
  return NamedSharding(mesh, PartitionSpec())


def shard_batch(tree, mesh: Mesh):
  """Place host arrays [B, ...] on the mesh, split along B.

  Each process passes its own rows; together they make the global batch.
  """
  sharding = NamedSharding(mesh, PartitionSpec(BATCH))
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree)


def split(tree, count: int):
  """Return [B, ...] arrays as [count, B / count, ...], every count-th row to a part.

  The stride keeps each part spread over the devices as the whole is, so that cutting
  a sharded batch moves nothing.
  """
  return jax.tree.map(
    lambda x: jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0), tree)


def join(parts):
  """Return the [B, ...] arrays whose `split` the parts are."""
  return joined(jax.tree.map(lambda *xs: jnp.stack(xs), *parts))


def joined(tree):
  """Return the [B, ...] arrays whose `split` a tree is."""
  return jax.tree.map(
    lambda x: jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:]), tree)


def constrain_batch(x):
  """Keep an activation [B, ...] split along B only; a no-op outside of `around`.

  Without it XLA may follow a parameter's fsdp axis into the activations.
  """
  if set(BATCH) <= set(around().axis_names):
    where = PartitionSpec(BATCH, *([PartitionSpec.UNCONSTRAINED] * (x.ndim - 1)))
    return jax.lax.with_sharding_constraint(x, where)
  return x


def placement(shape: tuple[int, ...], logical: tuple, mesh) -> NamedSharding:
  """Return where an activation lives.

  Args:
    shape: [..., *axes]; leading axes (stacked layers) are not split.
    logical: for each of the last axes `batch`, a key of RULES, or None for whole. An
      axis that does not split evenly stays whole: so it is with key/value heads fewer
      than the tensor axis.
    mesh: concrete or abstract.
  """
  spec = [None] * (len(shape) - len(logical))
  for size, name in zip(shape[len(spec):], logical, strict=True):
    axes = BATCH if name == 'batch' else (RULES[name],) if name else ()
    parts = math.prod(mesh.shape[axis] for axis in axes)
    spec.append(None if size % parts else axes or None)
  return NamedSharding(mesh, PartitionSpec(*spec))


def spec(x, *logical: str | None) -> PartitionSpec | None:
  """Return how `placement` splits an activation; None outside of `around`."""
  mesh = around()
  known = set(AXES) <= set(mesh.axis_names)
  return placement(x.shape, logical, mesh).spec if known else None


def around():
  """Return the mesh in context; an empty one within `by_shard`, as without any."""
  mesh = jax.sharding.get_abstract_mesh()
  within = AxisType.Manual in mesh.axis_types
  return jax.sharding.AbstractMesh((), ()) if within else mesh


def constrain(x, *logical: str | None):
  """Place an activation as `placement` says; a no-op outside of `around`."""
  where = spec(x, *logical)
  return x if where is None else jax.lax.with_sharding_constraint(x, where)


def lookup(table, tokens):
  """Return the rows [..., D] of a table [V, D] at tokens.

  Where the rows outweigh the table, as in the update, the table is gathered from the
  fsdp axis first: else XLA gathers the rows of the whole batch onto every device.
  """
  if tokens.size >= table.shape[0]:
    table = constrain(table, 'vocab', None)
  return table[tokens]


def constrain_residual(x, sequence: bool):
  """Keep the residual stream [B, .., T, D] split along B, and T over `tensor` if asked.

  With `sequence`, what a block keeps for its backward pass is as many times smaller
  as the tensor axis is long; XLA gathers it where heads or MLP columns are split.
  """
  mesh = around()
  if not sequence or x.shape[-2] % mesh.shape.get('tensor', 1):
    return constrain_batch(x)
  return constrain(x, 'batch', *[None] * (x.ndim - 3), 'sequence', None)


def by_shard(function, given: tuple, found: tuple):
  """Return a function that each shard of the batch runs by itself, where it can.

  It can where a mesh splits nothing but the batch and every device has all weights: a
  loop then ends for each shard when its own rows are done, no step waits for the
  slowest device, and what is summed over all (`total`) is so once, at the end.
  Elsewhere this is the function itself.

  Args:
    function: of and to trees of arrays.
    given: a PartitionSpec for each argument, or a tree of them.
    found: for its results, likewise.
  """
  shape = around().shape
  if shape.get('data', 1) == 1 or any(shape.get(axis, 1) > 1 for axis in AXES[1:]):
    return function
  return jax.shard_map(function, in_specs=given, out_specs=found, check_vma=False)


def total(tree):
  """Return sums over the shards within `by_shard`; the tree itself elsewhere."""
  within = AxisType.Manual in jax.sharding.get_abstract_mesh().axis_types
  return jax.lax.psum(tree, 'data') if within else tree


def batch_shards(mesh: Mesh | None = None) -> int:
  """Return into how many parts a mesh splits the batch; default: the one `around`."""
  shape = (around() if mesh is None else mesh).shape
  return math.prod(shape.get(axis, 1) for axis in BATCH)
