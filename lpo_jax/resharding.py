"""The copy of a policy's matrices that sampling reads: cast once, gathered once.

Training holds matrices in `param_dtype`, split over `fsdp`. Decoding multiplies with
all of them for every token, and would cast and gather them for every token: XLA leaves
both inside the loop. So a batch is sampled from a copy in the dtype that the policy
computes in, whole along `fsdp` and split over `tensor` as before; it is gone when the
batch is done. Samples are the same, since a matrix is cast before each product anyway.
A vision tower, which encodes once, is read as it lies.

The copy may lie on another mesh than the policy (`layout`): the same devices, split
otherwise, other devices, or a CPU's cores. Then all of it is copied, and what was
sampled comes back.
"""

import contextlib
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from lpo_jax import cores, sharding
from lpo_jax.policy import Policy, PolicyConfig


def layout(asked: tuple[int, ...], mesh: Mesh | AbstractMesh, prompts: int,
           samples: int, policy: PolicyConfig, platform: str | None,
           apart: bool = False) -> tuple[int, ...]:
  """Return the shape of the mesh that samples, along sharding.AXES; () for the same.

  Args:
    asked: devices along the mesh's own axes; () for the same, and for a device a core
      where the mesh is one CPU device and JAX shows more (`cores.offer`).
    mesh: that trains.
    prompts: of which every shard gets as many.
    samples: K.
    policy: that is to be split.
    platform: of the mesh; None if it is not known.
    apart: the mesh that samples is of the devices that do not train.

  Raises:
    ValueError: sizes not for the axes or devices, or that do not divide what is split.
  """
  if asked and len(asked) != len(mesh.axis_names):
    raise ValueError(f'mesh.sampling_shape={asked}: give one size for each of '
                     f'{mesh.axis_names}, or () for those of mesh.shape')
  sizes = dict(zip(mesh.axis_names, asked, strict=True)) if asked else dict(mesh.shape)
  count = math.prod(sizes.values())
  if apart and count > len(_others(mesh)):
    raise ValueError(f"mesh.sampling_devices='others': the mesh that samples needs "
                     f'{count}, but {len(_others(mesh))} are left beside the '
                     f'{mesh.size} of mesh.shape')
  if not apart and count != mesh.size:
    raise ValueError(f'mesh.sampling_shape={asked}: must be for the {mesh.size} '
                     "devices of mesh.shape, unless mesh.sampling_devices='others'")
  if not asked and mesh.size == 1 and platform == 'cpu' and not apart:
    sizes['data'] = cores.split(prompts, samples)
  if sizes == dict(mesh.shape) and not apart:
    return ()
  shape = tuple(sizes[axis] for axis in sharding.AXES)
  sharding.check_policy(mesh_of(mesh, shape, apart), prompts, policy)
  return shape


def _others(mesh: Mesh | AbstractMesh) -> list:
  """Return the devices that are here and not of the mesh."""
  if isinstance(mesh, AbstractMesh):
    return []
  return [device for device in jax.devices() if device not in set(mesh.devices.flat)]


@functools.cache
def mesh_of(mesh: Mesh | AbstractMesh, shape: tuple[int, ...],
            apart: bool = False) -> Mesh | AbstractMesh:
  """Return the mesh of a shape that `layout` gave, beside the one that trains."""
  if not shape:
    return mesh
  if isinstance(mesh, AbstractMesh):
    return AbstractMesh(shape, sharding.AXES)
  devices = _others(mesh) if apart else list(mesh.devices.flat)
  if math.prod(shape) > len(devices):  # a CPU's cores
    devices = jax.local_devices()
  return sharding.make_mesh(shape, sharding.AXES, devices)


def described(policy: Policy, mesh: Mesh, onto: Mesh | None = None) -> Policy:
  """Return the copy as shapes, dtypes and placements.

  Args:
    policy: arrays, or what describes them (jax.ShapeDtypeStruct).
    mesh: where it is.
    onto: where the copy is; None for the same mesh.

  Returns:
    A tree like `policy`; leaves that need no copy are its own.
  """
  onto = mesh if onto is None else onto

  def leaf(path, x):
    axes, dtype = sharding.logical_axes(path), jnp.dtype(policy.config.dtype)
    matrix = len(axes) > 1 and getattr(path[0], 'name', None) != 'vision'
    split = mesh.shape[sharding.RULES['embed']] > 1 and 'embed' in axes
    if onto == mesh and (not matrix or (x.dtype == dtype and not split)):
      return x
    if matrix:
      axes = tuple(None if axis == 'embed' else axis for axis in axes)
    return jax.ShapeDtypeStruct(x.shape, dtype if matrix else x.dtype,
                                sharding=sharding.placement(x.shape, axes, onto))

  return jax.tree_util.tree_map_with_path(leaf, policy)


def copied(policy: Policy, mesh: Mesh, onto: Mesh | None = None,
           during: contextlib.AbstractContextManager | None = None) -> Policy:
  """Return the policy that sampling reads; itself where nothing is to be copied.

  Args:
    policy: that is trained.
    mesh: where it is.
    onto: where the copy is to be; None for the same mesh.
    during: entered while there is something to copy, and left when it is there.
  """
  leaves, structure = jax.tree.flatten(policy)
  wanted = jax.tree.leaves(described(policy, mesh, onto))
  changed = [i for i, (x, y) in enumerate(zip(leaves, wanted, strict=True))
             if x is not y]
  if not changed:
    return policy
  old, wanted = [leaves[i] for i in changed], [wanted[i] for i in changed]
  places, apart = [x.sharding for x in wanted], onto is not None and onto != mesh
  with during or contextlib.nullcontext():
    if not apart or any(x.dtype != y.dtype for x, y in zip(old, wanted, strict=True)):
      old = jax.jit(_cast, static_argnums=1,
                    out_shardings=[x.sharding for x in old] if apart else places)(
        old, tuple(x.dtype for x in wanted))
    new = jax.block_until_ready(jax.device_put(old, places) if apart else old)
  for i, x in zip(changed, new, strict=True):
    leaves[i] = x
  return jax.tree.unflatten(structure, leaves)


def _cast(leaves: list, dtypes: tuple) -> list:
  return [x.astype(dtype) for x, dtype in zip(leaves, dtypes, strict=True)]


def carried(key: jax.Array, mesh: Mesh) -> jax.Array:
  """Return a key made on the mesh in context on the one that samples."""
  around = jax.sharding.get_mesh()
  if around.empty or around == mesh:
    return key
  data, kind = np.asarray(jax.random.key_data(key)), jax.random.key_impl(key)
  with jax.set_mesh(mesh):
    return jax.random.wrap_key_data(data, impl=kind)


def place(shape: tuple[int, ...], mesh: Mesh) -> jax.sharding.NamedSharding:
  """Return where an array [B, ...] that was sampled is put on the mesh that trains."""
  return sharding.placement(shape, ('batch', *[None] * (len(shape) - 1)), mesh)


def returned(tree, onto: Mesh, mesh: Mesh):
  """Return arrays [B, ...] that were sampled `onto` one mesh on the one that trains."""
  if onto == mesh:
    return tree
  return jax.tree.map(lambda x: jax.device_put(x, place(x.shape, mesh)), tree)
