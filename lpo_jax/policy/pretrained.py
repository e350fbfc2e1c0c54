"""Policies from Hugging Face checkpoints, one tensor at a time.

Every tensor is read straight onto its shards, each device taking the slice it needs,
and written into its place of the stacked parameter (donated, so in place): beside the
parameters themselves, host memory holds one tensor. Names, shapes and dtypes are
checked from the files' headers before anything is read or compiled.
"""

import dataclasses
import functools
import gc
import json
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors

from lpo_jax import hub, sharding
from lpo_jax.policy import hf_config, hf_names
from lpo_jax.policy.config import DTYPES, PolicyConfig
from lpo_jax.policy.transformer import Policy

CONFIG = 'config.json'
SINGLE, INDEX = 'model.safetensors', 'model.safetensors.index.json'
STORED = {'float32': 'F32', 'bfloat16': 'BF16', 'float16': 'F16'}
_ROWS = 4096  # of an embedding compared at once
_SLACK = 64 << 20  # bytes of parameters between two collections of garbage


def from_pretrained(path: str, mesh: jax.sharding.Mesh | None = None,
                    dtype: Any = None) -> Policy:
  """Return the policy of a Hugging Face folder or hub id, placed on the mesh.

  Args:
    path: folder with config.json and safetensors (one file, or shards and an index),
      or a hub id. Qwen2, Qwen2.5, Qwen3, Llama 3, Mistral and their distillations.
    mesh: where the parameters go; None: the first device.
    dtype: of parameters and activations; None: as stored.

  Raises:
    ValueError: names what is missing, surplus, misshapen, damaged or not supported.
  """
  folder = hub.resolve(os.fspath(path))
  return load(folder, read_config(folder, dtype), mesh)


def read_config(folder: str, dtype: Any = None) -> PolicyConfig:
  """Return the PolicyConfig of a local folder; see `from_pretrained`."""
  path = os.path.join(folder, CONFIG)
  hf = read_json(path)
  try:
    config = hf_config.parse(hf)
    name = hf_config.stored_dtype(hf) if dtype is None else jnp.dtype(dtype).name
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from error
  if name is None:
    stored = _headers(folder)[hf_names.EMBEDDING].dtype
    name = next((ours for ours, theirs in STORED.items() if theirs == stored), stored)
  if name not in DTYPES:
    raise ValueError(f'dtype={name!r}: choose one of {", ".join(DTYPES)}')
  return dataclasses.replace(config, dtype=name, param_dtype=name)


def load(folder: str, config: PolicyConfig,
         mesh: jax.sharding.Mesh | None = None) -> Policy:
  """Return the policy that `config` describes, with the weights of a local folder.

  Args:
    folder: with safetensors.
    config: `read_config(folder)`, with any dtypes.
    mesh: where the parameters go; None: the first device.

  Raises:
    ValueError: see `from_pretrained`.
  """
  mesh = sharding.make_mesh((1, 1, 1)) if mesh is None else mesh
  shapes = abstract(config)
  stored = check(folder, config)
  places = jax.tree.leaves(sharding.state_shardings(shapes, mesh))
  plan = list(zip(hf_names.parameters(shapes), jax.tree.leaves(shapes), places,
                  strict=True))
  leaves, passed = [None] * len(plan), 0
  for i in sorted(range(len(plan)), key=lambda i: plan[i][0].stacked):
    parameter, leaf, place = plan[i]  # the large tensors first, while little is held
    read = _load_stacked if parameter.stacked else _load_whole
    leaves[i] = jax.block_until_ready(read(parameter, stored, leaf, place))
    passed += leaf.size * leaf.dtype.itemsize
    if passed > _SLACK:  # jaxlib drops the host's copy of a finished transfer only then
      gc.collect()
      passed = 0
  return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def abstract(config: PolicyConfig) -> Policy:
  """Return a policy of shapes and dtypes only."""
  return jax.eval_shape(lambda: Policy(config, jax.random.key(0)))


def check(folder: str, config: PolicyConfig) -> dict[str, 'Stored']:
  """Return what a folder stores for a policy, by tensor; reads headers only.

  Raises:
    ValueError: names missing, surplus, misshapen and damaged tensors or files.
  """
  stored = _headers(folder)
  wanted = {tensor: parameter.shape
            for parameter in hf_names.parameters(abstract(config))
            for tensor in parameter.tensors}
  surplus = {name for name in stored if not hf_names.is_buffer(name)} - wanted.keys()
  if config.tied_embeddings and hf_names.UNEMBEDDING in surplus:
    surplus.remove(hf_names.UNEMBEDDING)
    _check_tied(folder, stored)
  for what, names in (('lacks', wanted.keys() - stored.keys()),
                      ('holds tensors that this architecture has not:', surplus)):
    if names:
      more = f' and {len(names) - 6} more' if len(names) > 6 else ''
      raise ValueError(f'{folder} {what} {", ".join(sorted(names)[:6])}{more}')
  for name, shape in wanted.items():
    if stored[name].shape != shape:
      raise ValueError(f'{folder}: {name} has shape {stored[name].shape}, but '
                       f'{CONFIG} asks for {shape}')
    if stored[name].dtype not in STORED.values():
      raise ValueError(f'{folder}: {name} is stored as {stored[name].dtype}; only '
                       f'{", ".join(STORED.values())} can be read')
  return stored


@dataclasses.dataclass(frozen=True)
class Stored:
  """Where a tensor is and what it is, from a file's header."""

  file: str
  name: str
  shape: tuple[int, ...]
  dtype: str

  def read(self, index: tuple[slice, ...]) -> np.ndarray:
    """Return a slice; the file is mapped for that long only, so no page stays."""
    with safetensors.safe_open(self.file, 'numpy') as file:
      return file.get_slice(self.name)[index]


def _load_whole(parameter, stored, leaf, place) -> jax.Array:
  """Return a parameter that is one tensor."""
  tensor = _fetch(parameter, stored[parameter.tensors[0]], place.mesh, place.spec)
  if tensor.dtype == leaf.dtype and not parameter.transposed:
    return tensor
  return _converter(place, leaf.dtype, parameter.transposed)(tensor)


def _load_stacked(parameter, stored, leaf, place) -> jax.Array:
  """Return a stacked parameter, its layers written one after the other."""
  write = _writer(place, parameter.transposed)
  spec = jax.sharding.PartitionSpec(*place.spec[1:])
  stack = jnp.zeros(leaf.shape, leaf.dtype, device=place)
  for layer, name in enumerate(parameter.tensors):
    tensor = _fetch(parameter, stored[name], place.mesh, spec)
    stack = jax.block_until_ready(write(stack, tensor, np.int32(layer)))
  return stack


@functools.cache
def _converter(place: jax.sharding.NamedSharding, dtype, transposed: bool):
  return jax.jit(lambda x: (x.T if transposed else x).astype(dtype),
                 out_shardings=place)


@functools.cache
def _writer(place: jax.sharding.NamedSharding, transposed: bool):
  def write(stack, tensor, layer):
    tensor = (tensor.T if transposed else tensor).astype(stack.dtype)
    return jax.lax.dynamic_update_index_in_dim(stack, tensor, layer, 0)

  return jax.jit(write, donate_argnums=0, out_shardings=place)


def _fetch(parameter, tensor: Stored, mesh, spec) -> jax.Array:
  """Return a tensor as stored, split as `spec` splits what becomes of it."""
  axes = (*spec, *[None] * (len(tensor.shape) - len(spec)))
  if parameter.transposed:
    axes = axes[::-1]
  place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
  read = functools.cache(lambda bounds: tensor.read(
    tuple(slice(*pair) for pair in bounds)))  # once, however many devices want it
  return jax.make_array_from_callback(
    tensor.shape, place,
    lambda index: read(tuple(part.indices(size)[:2] for part, size in
                             zip(index, tensor.shape, strict=True))))


def _headers(folder: str) -> dict[str, Stored]:
  """Return every tensor stored in a folder."""
  stored = {}
  for file in _files(folder):
    path = os.path.join(folder, file)
    if not os.path.isfile(path):
      raise ValueError(f'{folder}: {INDEX} names {file}, which is not there')
    try:
      with safetensors.safe_open(path, 'numpy') as opened:
        for name in opened.keys():  # noqa: SIM118, not a dict
          piece = opened.get_slice(name)
          if name in stored:
            raise ValueError(f'{name} stands in {stored[name].file} and in {path}')
          stored[name] = Stored(path, name, tuple(piece.get_shape()),
                                piece.get_dtype())
    except safetensors.SafetensorError as error:
      raise ValueError(f'{path} is damaged or cut short: {error}') from error
  if hf_names.EMBEDDING not in stored:
    raise ValueError(f'{folder} lacks {hf_names.EMBEDDING}')
  return stored


def _files(folder: str) -> list[str]:
  if os.path.isfile(os.path.join(folder, SINGLE)):
    return [SINGLE]
  if not os.path.isfile(os.path.join(folder, INDEX)):
    raise ValueError(f'{folder} has neither {SINGLE} nor {INDEX}: only safetensors '
                     'are read; save the model with transformers to convert it')
  index = read_json(os.path.join(folder, INDEX))
  try:
    return sorted(set(index['weight_map'].values()))
  except (KeyError, TypeError, AttributeError) as error:
    raise ValueError(f'{folder}/{INDEX} has no weight_map') from error


def _check_tied(folder: str, stored: dict[str, Stored]) -> None:
  """Refuse an unembedding that is stored, and other, although config.json ties it."""
  one, other = stored[hf_names.EMBEDDING], stored[hf_names.UNEMBEDDING]
  same = one.shape == other.shape and one.dtype == other.dtype
  for start in range(0, one.shape[0] if same else 0, _ROWS):
    rows = (slice(start, min(start + _ROWS, one.shape[0])),)
    same = same and np.array_equal(one.read(rows), other.read(rows))
  if not same:
    raise ValueError(f'{folder}: {CONFIG} says tie_word_embeddings=true, but '
                     f'{other.name} differs from {one.name}; set it to false')


def read_json(path: str) -> dict[str, Any]:
  """Return a JSON object; a ValueError names the file where it is none."""
  try:
    with open(path, encoding='utf-8') as file:
      found = json.load(file)
  except FileNotFoundError as error:
    raise ValueError(f'{path} is missing') from error
  except ValueError as error:
    raise ValueError(f'{path} is not valid JSON: {error}') from error
  if not isinstance(found, dict):
    raise ValueError(f'{path} holds no JSON object')
  return found
