"""Policies to Hugging Face folders, one tensor at a time.

A safetensors file is a header that names every tensor's place, then their bytes. The
header follows from shapes alone, so each tensor is gathered, appended and forgotten:
host memory holds one. The folder is written under another name and renamed when it is
whole, so that a kill leaves no half of one. Adapters are merged into their matrices on
the way, and stand in a folder of their own in PEFT's layout: beside config.json they
would be applied twice.
"""

import json
import os
import pathlib
import shutil
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from lpo_jax.policy import hf_config, hf_names, lora, pretrained
from lpo_jax.policy.config import Lora, PolicyConfig
from lpo_jax.policy.transformer import Policy

GENERATION = 'generation_config.json'
ADAPTER = 'adapter'  # folder
_OF_IMAGES = ('preprocessor_config.json', 'video_preprocessor_config.json',
              'chat_template.json')  # how transformers reads images; kept as they are
SHARD_BYTES = 4 * 10**9


def save_pretrained(policy: Policy, path: str, *, tokenizer=None, source: str = '',
                    base: str = '', max_shard_bytes: int = SHARD_BYTES) -> None:
  """Write a folder that transformers loads with the policy's logits.

  Every process calls it; the first one writes.

  Args:
    policy: stacked, on any mesh.
    path: a new or empty folder.
    tokenizer: also write its files, and its stop tokens where `source` has none.
    source: the folder that the weights came from: its config.json is kept if it
      describes this policy, and its generation_config.json; of a policy that reads
      images what says how, too.
    base: the model that adapters were trained on, for PEFT: a folder or hub id.
    max_shard_bytes: of a file's tensors; a larger tensor gets a file of its own.

  Raises:
    ValueError: the folder is not empty, or no Hugging Face architecture has this
      policy's switches.
  """
  path = pathlib.Path(path).absolute()
  check_empty(path)
  config = _config(policy.config, source)
  files = _plan(policy, max_shard_bytes)
  adapters = _adapters(policy)
  writes = jax.process_index() == 0
  room = path.with_name(f'.{path.name}.partial')
  if writes:
    shutil.rmtree(room, ignore_errors=True)  # left by a kill
    (room / ADAPTER if adapters else room).mkdir(parents=True)
  for name, tensors in files.items():
    _write_tensors(room / name if writes else None, tensors)
  if adapters:
    _write_tensors(room / ADAPTER / 'adapter_model.safetensors' if writes else None,
                   adapters)
  if writes:
    if adapters:
      _write_json(room / ADAPTER / 'adapter_config.json',
                  _adapter_config(policy.config.lora, base))
    if len(files) > 1:
      _write_json(room / pretrained.INDEX, _index(files))
    if tokenizer is not None:
      tokenizer.save(str(room))
    _write_json(room / pretrained.CONFIG, config)
    _write_json(room / GENERATION, _generation(tokenizer, source))
    for name in _OF_IMAGES:
      if policy.config.vision and os.path.isfile(os.path.join(source, name)):
        shutil.copyfile(os.path.join(source, name), room / name)
    os.replace(room, path)
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices('save_pretrained')


def check_empty(path: str | os.PathLike) -> None:
  """Raise a ValueError unless `path` is a new or empty folder."""
  path = pathlib.Path(path)
  if path.exists() and not (path.is_dir() and not any(path.iterdir())):
    raise ValueError(f'{str(path)!r} is not an empty folder: export to a new one')


class _Tensor(NamedTuple):
  """One tensor of the export, still on the devices."""

  name: str
  leaf: jax.Array
  layer: int | None
  parameter: hf_names.Parameter
  adapter: tuple | None = None  # A, B and their scale, to be merged into it

  @property
  def shape(self) -> tuple[int, ...]:
    return self.parameter.shape

  @property
  def bytes(self) -> int:
    return int(np.prod(self.shape)) * self.leaf.dtype.itemsize

  def gather(self) -> np.ndarray:
    """Return it on the host, as it is stored."""
    array = (self.leaf if self.layer is None
             else _layer(self.leaf, self.layer, self.adapter))
    if jax.process_count() > 1:
      array = multihost_utils.process_allgather(array, tiled=True)
    array = np.asarray(jax.device_get(array))
    return np.ascontiguousarray(hf_names.turned(array, self.parameter.transposed,
                                                self.shape))


@jax.jit
def _layer(leaf, layer, adapter):
  def one(x):
    return jax.lax.dynamic_index_in_dim(x, layer, keepdims=False)

  if adapter is None:
    return one(leaf)
  down, up, scale = adapter
  return lora.merge(one(leaf), one(down), one(up), scale)


def _plan(policy: Policy, max_shard_bytes: int) -> dict[str, list[_Tensor]]:
  """Return file name -> its tensors."""
  if max_shard_bytes < 1:
    raise ValueError(f'max_shard_bytes={max_shard_bytes}: must be at least 1')
  shards, room, config = [], 0, policy.config
  if config.lora is not None:
    policy, adapted = lora.remove(policy), policy.blocks
  for parameter, leaf in zip(hf_names.parameters(policy), jax.tree.leaves(policy),
                             strict=True):
    adapter = None
    if config.lora is not None and parameter.name in config.lora.targets:
      adapter = (*(getattr(adapted, f'{parameter.name}_lora_{part}')[...]
                   for part in 'ab'), config.lora.scale)
    for layer, name in enumerate(parameter.tensors):
      tensor = _Tensor(name, leaf, layer if parameter.stacked else None, parameter,
                       adapter)
      if not shards or tensor.bytes > room:
        shards.append([])
        room = max_shard_bytes
      shards[-1].append(tensor)
      room -= tensor.bytes
  if len(shards) == 1:
    return {pretrained.SINGLE: shards[0]}
  return {f'model-{i + 1:05d}-of-{len(shards):05d}.safetensors': tensors
          for i, tensors in enumerate(shards)}


def _adapters(policy: Policy) -> list[_Tensor]:
  """Return the adapters' tensors; none without adapters."""
  if policy.config.lora is None:
    return []
  trained, _ = lora.split(policy)
  return [_Tensor(name, leaf, layer, parameter)
          for parameter, leaf in zip(hf_names.adapters(trained),
                                     jax.tree.leaves(trained), strict=True)
          for layer, name in enumerate(parameter.tensors)]


def _write_tensors(path: pathlib.Path | None, tensors: list[_Tensor]) -> None:
  """Gather tensors into one safetensors file; no path: gather only."""
  header, offset = {'__metadata__': {'format': 'pt'}}, 0
  for tensor in tensors:
    header[tensor.name] = {
      'dtype': pretrained.STORED[tensor.leaf.dtype.name], 'shape': tensor.shape,
      'data_offsets': [offset, offset + tensor.bytes]}
    offset += tensor.bytes
  if path is None:
    for tensor in tensors:
      tensor.gather()
    return
  text = json.dumps(header).encode()
  text += b' ' * (-len(text) % 8)  # the data starts at a multiple of eight bytes
  with open(path, 'wb') as file:
    file.write(len(text).to_bytes(8, 'little') + text)
    for tensor in tensors:
      file.write(tensor.gather().reshape(-1).view(np.uint8))
    file.flush()
    os.fsync(file.fileno())


def _index(files: dict[str, list[_Tensor]]) -> dict:
  return {
    'metadata': {'total_size': sum(t.bytes for ts in files.values() for t in ts)},
    'weight_map': {tensor.name: name for name, tensors in files.items()
                   for tensor in tensors}}


def _config(config: PolicyConfig, source: str) -> dict:
  """Return config.json: the source's where it describes this policy, else ours."""
  ours = hf_config.describe(config)
  if source:
    theirs = pretrained.read_json(os.path.join(source, pretrained.CONFIG))
    stored = {'torch_dtype': config.param_dtype}
    if hf_config.describe(hf_config.parse(theirs)) | stored == ours:
      return _without_dtypes(theirs) | stored
  return ours


def _without_dtypes(hf: dict) -> dict:
  """Return a config.json that leaves out dtypes, its parts' too."""
  return {name: _without_dtypes(value) if isinstance(value, dict) else value
          for name, value in hf.items() if name not in ('dtype', 'torch_dtype')}


def _adapter_config(config: Lora, base: str) -> dict:
  """Return adapter_config.json, which PEFT reads."""
  return {
    'peft_type': 'LORA', 'task_type': 'CAUSAL_LM', 'inference_mode': True,
    'base_model_name_or_path': base or None, 'r': config.rank,
    'lora_alpha': config.alpha, 'lora_dropout': 0.0, 'bias': 'none',
    'fan_in_fan_out': False,
    'target_modules': sorted(hf_names.module(name) for name in config.targets)}


def _generation(tokenizer, source: str) -> dict:
  """Return generation_config.json: the source's, else the tokenizer's tokens."""
  path = os.path.join(source, GENERATION)
  if source and os.path.isfile(path):
    return pretrained.read_json(path)
  if tokenizer is None:
    return {}
  return {'eos_token_id': list(tokenizer.stop_tokens), 'pad_token_id': tokenizer.pad_id}


def _write_json(path: pathlib.Path, value: dict) -> None:
  path.write_text(json.dumps(value, indent=2) + '\n', encoding='utf-8')
