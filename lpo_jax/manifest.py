"""What a saved state must contain: names, shapes, dtypes, fingerprints of the bits.

A file system can lose or flip bytes long after a save succeeded. The manifest is a
small JSON object written beside the arrays; a state read back is compared with it
first by structure (another model?) and then by bits (a damaged file?). The
fingerprints are computed on the devices and are the same on every mesh.
"""

import json
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


class MismatchError(ValueError):
  """A checkpoint is intact but belongs to a state of another structure."""


def flatten(tree: Any) -> dict[str, Any]:
  """Return the leaves of a pytree by their path, 'opt_state/0/mu/embed'.

  Raises:
    ValueError: two leaves share a path.
  """
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  flat = {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in leaves
  }
  if len(flat) != len(leaves):
    raise ValueError(f'{len(leaves)} leaves have only {len(flat)} distinct paths')
  return flat


@jax.jit  # traced once for all arrays of a shape
def fingerprint(array: Any) -> jax.Array:
  """Return u32[], a sum over the bits of an array that any one change alters.

  Each element's bits are multiplied by an odd number drawn from its position, and
  odd numbers are invertible modulo 2^32. Integer sums do not depend on their
  order, so every sharding gives the same number.
  """
  array = jnp.asarray(array)
  if array.dtype == jnp.bool_:
    array = array.astype(jnp.uint8)
  width = min(array.dtype.itemsize, 4)
  bits = jax.lax.bitcast_convert_type(array, f'uint{8 * width}').astype(jnp.uint32)
  position, stride = jnp.zeros(bits.shape, jnp.uint32), 1
  for axis in reversed(range(bits.ndim)):
    index = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    position = position + index * np.uint32(stride % 2**32)
    stride *= bits.shape[axis]
  weight = position * np.uint32(0x85EBCA6B)  # the finaliser of MurmurHash3
  weight = (weight ^ (weight >> 13)) * np.uint32(0xC2B2AE35)
  weight = (weight ^ (weight >> 16)) | np.uint32(1)
  return jnp.sum(bits * weight, dtype=jnp.uint32)


@jax.jit
def fingerprints(flat: dict[str, Any]) -> dict[str, jax.Array]:
  """Return the fingerprint, u32[], of every array of a flat state."""
  return {name: fingerprint(array) for name, array in flat.items()}


def describe(flat: dict[str, Any]) -> dict:
  """Return the manifest of a flat state: name -> [shape, dtype, fingerprint]."""
  marks = jax.device_get(fingerprints(flat))
  arrays = {
    name: [list(np.shape(leaf)), str(jnp.result_type(leaf)), int(marks[name])]
    for name, leaf in flat.items()
  }
  return {'arrays': arrays, 'crc32': _crc32(arrays)}


def check_structure(
  manifest: dict, wanted: dict[str, Any], prefix: str = '', origin: str = ''
) -> None:
  """Compare a manifest with the arrays one wants to read.

  Args:
    manifest: as `describe` returned it.
    wanted: name -> anything with a shape and a dtype.
    prefix: only names that begin so must be wanted.
    origin: the checkpoint, for the message.

  Raises:
    ValueError: the manifest itself is damaged.
    MismatchError: names, shapes or dtypes differ; the message lists them.
  """
  if _crc32(manifest['arrays']) != manifest['crc32']:
    raise ValueError('the manifest does not match its own checksum')
  saved = {
    name: f'{dtype}{shape}'
    for name, (shape, dtype, _) in manifest['arrays'].items()
    if name.startswith(prefix)
  }
  asked = {
    name: f'{jnp.result_type(leaf)}{list(np.shape(leaf))}'
    for name, leaf in wanted.items()
  }
  lines = [
    f'  {name}: {saved.get(name, "absent")} in the checkpoint, '
    f'{asked.get(name, "absent")} asked for'
    for name in sorted(saved.keys() | asked.keys())
    if saved.get(name) != asked.get(name)
  ]
  if lines:
    shown = lines[:20] + [f'  and {len(lines) - 20} more'] * (len(lines) > 20)
    raise MismatchError(
      f'checkpoint {origin} holds another state, {len(lines)} arrays differ:\n'
      + '\n'.join(shown)
    )


def check_bits(manifest: dict, stored: dict[str, Any]) -> None:
  """Compare arrays read back with the fingerprints taken when they were saved.

  Raises:
    ValueError: some differ; names them.
  """
  marks = jax.device_get(fingerprints(stored))
  altered = [n for n, mark in marks.items() if int(mark) != manifest['arrays'][n][2]]
  if altered:
    raise ValueError(f'bits changed since they were saved in {", ".join(altered)}')


def _crc32(arrays: dict) -> int:
  return zlib.crc32(json.dumps(arrays, sort_keys=True).encode())
