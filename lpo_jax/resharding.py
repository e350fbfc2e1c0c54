"""The copy of a policy's matrices that sampling reads: cast once, gathered once.

Training holds matrices in `param_dtype`, split over `fsdp`. Decoding multiplies with
all of them for every token, and would cast and gather them for every token: XLA leaves
both inside the loop. So a batch is sampled from a copy in the dtype that the policy
computes in, whole along `fsdp` and split over `tensor` as before; it is gone when the
batch is done. Samples are the same, since a matrix is cast before each product anyway.
A vision tower, which encodes once, is read as it lies.
"""

import contextlib

import jax
import jax.numpy as jnp

from lpo_jax import sharding
from lpo_jax.policy import Policy


def described(policy: Policy, mesh: jax.sharding.Mesh) -> Policy:
  """Return the copy as shapes, dtypes and placements.

  Args:
    policy: arrays, or what describes them (jax.ShapeDtypeStruct).
    mesh: where.

  Returns:
    A tree like `policy`; leaves that need no copy are its own.
  """
  def leaf(path, x):
    axes, dtype = sharding.logical_axes(path), jnp.dtype(policy.config.dtype)
    matrix = len(axes) > 1 and getattr(path[0], 'name', None) != 'vision'
    split = mesh.shape[sharding.RULES['embed']] > 1 and 'embed' in axes
    if not matrix or (x.dtype == dtype and not split):
      return x
    axes = tuple(None if axis == 'embed' else axis for axis in axes)
    return jax.ShapeDtypeStruct(x.shape, dtype,
                                sharding=sharding.placement(x.shape, axes, mesh))

  return jax.tree_util.tree_map_with_path(leaf, policy)


def copied(policy: Policy, mesh: jax.sharding.Mesh,
           during: contextlib.AbstractContextManager | None = None) -> Policy:
  """Return the policy that sampling reads; itself where nothing is to be copied.

  Args:
    policy: that is trained.
    mesh: where.
    during: entered while there is something to copy, and left when it is there.
  """
  leaves, structure = jax.tree.flatten(policy)
  wanted = jax.tree.leaves(described(policy, mesh))
  changed = [i for i, (x, y) in enumerate(zip(leaves, wanted, strict=True))
             if x is not y]
  if not changed:
    return policy
  places = [wanted[i].sharding for i in changed]
  cast = jax.jit(_cast, static_argnums=1, out_shardings=places)
  with during or contextlib.nullcontext():
    new = jax.block_until_ready(cast([leaves[i] for i in changed],
                                     policy.config.dtype))
  for i, x in zip(changed, new, strict=True):
    leaves[i] = x
  return jax.tree.unflatten(structure, leaves)


def _cast(leaves: list, dtype: str) -> list:
  return [x.astype(dtype) for x in leaves]
