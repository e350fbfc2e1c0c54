"""Where arrays live: one table from parameter to logical axes, one to mesh axes.

The mesh has three axes. `data` splits the batch and copies parameters; `fsdp` splits
both; `tensor` splits heads, MLP width and vocabulary. XLA inserts the collectives
(GSPMD); nothing here is a second engine.

  parameter path -> logical axes (PARAMETERS) -> mesh axes (RULES)
"""

import math

import jax
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


def make_mesh(shape: tuple[int, ...], axes: tuple[str, ...] = AXES) -> Mesh:
  """Return a mesh of the first prod(shape) devices.

  Args:
    shape: devices along each axis.
    axes: names of the axes, of AXES.

  Raises:
    ValueError: if an axis is unknown, the lengths differ, or devices are too few.
  """
  if len(shape) != len(axes) or sorted(axes) != sorted(AXES):
    raise ValueError(
      f'mesh.shape={tuple(shape)} with mesh.axes={tuple(axes)}: name each of {AXES} '
      'once, with one size each (1 leaves an axis unused)'
    )
  need, have = math.prod(shape), jax.device_count()
  if need > have or need < 1:
    raise ValueError(
      f'mesh.shape={tuple(shape)} needs {need} devices, but {have} are here: make '
      'their product fit'
    )
  return jax.make_mesh(tuple(shape), tuple(axes), devices=jax.devices()[:need],
                       axis_types=(AxisType.Auto,) * len(axes))


def check_divisible(mesh: Mesh, sizes: dict[str, int]) -> None:
  """Raise a ValueError unless every named size splits over its mesh axes.

  Args:
    mesh: the mesh.
    sizes: sizes by logical axis name: `batch`, or a key of RULES (heads count
      heads, not columns).
  """
  for name, size in sizes.items():
    axes = BATCH if name == 'batch' else (RULES[name],)
    parts = math.prod(mesh.shape[axis] for axis in axes)
    if size % parts:
      raise ValueError(
        f'{name}={size} does not split over mesh axes {"x".join(axes)} of size {parts}'
      )


def state_shardings(tree, mesh: Mesh):
  """Return the sharding of every leaf of a train state, by its parameter's name.

  A leaf of the optimizer state that mirrors a parameter (a moment) is placed as that
  parameter is; scalars and norms are replicated.
  """
  def place(path, leaf):
    spec = [None] * leaf.ndim
    # A leaf is .value of its nnx.Param, whose own name stands before it.
    name = getattr(path[-2], 'name', None) if len(path) > 1 else None
    logical = PARAMETERS.get(name, ())
    if leaf.ndim >= len(logical):
      spec[leaf.ndim - len(logical):] = [RULES[axis] for axis in logical]
    return NamedSharding(mesh, PartitionSpec(*spec))

  return jax.tree_util.tree_map_with_path(place, tree)


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


def constrain_batch(x):
  """Keep an activation [B, ...] split along B only; a no-op outside a mesh.

  Without it XLA may follow a parameter's fsdp axis into the activations.
  """
  if set(BATCH) <= set(jax.sharding.get_abstract_mesh().axis_names):
    spec = PartitionSpec(BATCH, *([PartitionSpec.UNCONSTRAINED] * (x.ndim - 1)))
    return jax.lax.with_sharding_constraint(x, spec)
  return x


def batch_shards(mesh: Mesh | None = None) -> int:
  """Return into how many parts a mesh splits the batch; default: the one in context."""
  shape = (jax.sharding.get_abstract_mesh() if mesh is None else mesh).shape
  return math.prod(shape.get(axis, 1) for axis in BATCH)
