"""What of a policy is trained; low-rank adapters (LoRA, arXiv:2106.09685).

  y = x W + alpha / r (x A) B,    A [D, r] uniform, B [r, F] zero at the start

A policy with adapters is a policy like any other: A and B stand in its blocks, beside
the matrix they correct, and sampler and learner apply them by the same products. What
is trained is cut out of the tree by `split`: gradients, their sums and the optimiser's
moments exist for that part alone, and the frozen base is only read. So it is with a
frozen vision tower.
"""

import dataclasses

import jax
import jax.numpy as jnp

from lpo_jax.policy.config import Lora, PolicyConfig
from lpo_jax.policy.transformer import Policy
from lpo_jax.types import Array


def split(policy):
  """Return (trained, frozen): the policy twice, None where the other has the leaf.

  Trained are the adapters; without adapters everything, but a frozen vision tower.
  """
  def is_trained(path) -> bool:
    if policy.config.lora is not None:
      return _is_adapter(path)
    return not (policy.config.vision_is_frozen and _is_vision(path))

  def cut(wanted):
    return jax.tree_util.tree_map_with_path(
      lambda path, x: x if is_trained(path) == wanted else None, policy)

  return cut(True), cut(False)


def join(one, other):
  """Return the tree whose leaves `split` divided between two."""
  return jax.tree.map(lambda a, b: b if a is None else a, one, other,
                      is_leaf=lambda x: x is None)


def add(policy: Policy, lora: Lora | None, key: Array | None) -> Policy:
  """Return a stacked policy with fresh adapters; as it is if it has some, or no `lora`.

  Under jit nothing but the adapters is drawn.
  """
  if lora is None or policy.config.lora is not None:
    return policy
  config = dataclasses.replace(policy.config, lora=lora)
  fresh, _ = split(Policy(config, key))
  return _of_leaves(config, _by_name(policy) | _by_name(fresh))


def remove(policy: Policy) -> Policy:
  """Return the base of a policy, shapes or arrays."""
  config = dataclasses.replace(policy.config, lora=None)
  return _of_leaves(config, _by_name(policy))


def give_base(trained: Policy, base: Policy) -> Policy:
  """Return the policy of `split`'s trained part and a base without adapters."""
  return _of_leaves(trained.config, _by_name(base) | _by_name(trained))


def merge(weight: Array, down: Array, up: Array, scale: float) -> Array:
  """Return W + scale A B, [..., D, F], computed in float32, in the dtype of W.

  Args:
    weight: [..., D, F].
    down: [..., D, r], A.
    up: [..., r, F], B.
    scale: alpha / r.
  """
  change = jnp.matmul(down, up, precision='highest', preferred_element_type=jnp.float32)
  return (weight.astype(jnp.float32) + scale * change).astype(weight.dtype)


def _is_vision(path) -> bool:
  """Return whether a leaf's path in a policy leads into its vision tower."""
  return getattr(path[0], 'name', None) == 'vision'


def _is_adapter(path) -> bool:
  return '_lora_' in jax.tree_util.keystr(path)


def _by_name(tree) -> dict:
  return {jax.tree_util.keystr(path): leaf
          for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _of_leaves(config: PolicyConfig, leaves: dict) -> Policy:
  """Return a stacked policy made of leaves by name; surplus ones are left out."""
  shapes = jax.eval_shape(lambda: Policy(config, jax.random.key(0)))
  return jax.tree.unflatten(jax.tree.structure(shapes),
                            [leaves[name] for name in _by_name(shapes)])
