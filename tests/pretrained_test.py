"""Checkpoints come in whole, to the right places, or not at all, with a clear error."""

import json
import pathlib

import jax
import ml_dtypes
import numpy as np
import pytest

from lpo_jax import policy as policies
from lpo_jax import sharding
from lpo_jax.policy import pretrained
from tests import tiny
from tests.parity import checkpoints


@pytest.mark.parametrize('shape', [(1, 1, 1), (2, 2, 2), (1, 4, 2)])
def test_shards_and_meshes_change_no_weight(shape, tmp_path):
  one = policies.from_pretrained(checkpoints.make(tmp_path / 'one', 'llama3'))
  mesh = sharding.make_mesh(shape)
  two = policies.from_pretrained(checkpoints.make(tmp_path / 'two', 'llama3', 5), mesh)
  tiny.assert_same(one, two)
  for leaf, place in zip(jax.tree.leaves(two),
                         jax.tree.leaves(sharding.state_shardings(two, mesh)),
                         strict=True):
    assert leaf.sharding.is_equivalent_to(place, leaf.ndim)


def test_each_device_reads_only_its_slice(tmp_path, monkeypatch):
  folder = checkpoints.make(tmp_path, 'llama3')
  read, sizes = pretrained.Stored.read, []

  def spy(self, index):
    found = read(self, index)
    sizes.append((self.name, found.shape))
    return found

  monkeypatch.setattr(pretrained.Stored, 'read', spy)
  policies.from_pretrained(folder, sharding.make_mesh((2, 2, 2)))
  query = [size for name, size in sizes if name == 'model.layers.1.self_attn.q_proj'
           '.weight']
  assert query == [(12, 12)] * 4  # fsdp x tensor, once for both halves of `data`


@pytest.mark.parametrize('dtype', ['bfloat16', np.float16, jax.numpy.float32])
def test_the_dtype_can_be_overridden(dtype, tmp_path):
  policy = policies.from_pretrained(checkpoints.make(tmp_path), dtype=dtype)
  assert {leaf.dtype for leaf in jax.tree.leaves(policy)} == {jax.numpy.dtype(dtype)}
  assert policy.config.dtype == policy.config.param_dtype == jax.numpy.dtype(dtype).name


@pytest.mark.parametrize('named', ['bfloat16', None])
def test_the_stored_dtype_is_kept(named, tmp_path):
  folder = checkpoints.make(tmp_path, 'deepseek_qwen')
  hf = checkpoints.config('deepseek_qwen', torch_dtype=named or ...)
  (tmp_path / 'config.json').write_text(json.dumps(hf))
  policy = policies.from_pretrained(folder)
  assert policy.config.param_dtype == 'bfloat16'
  assert policy.embedding[...].dtype == ml_dtypes.bfloat16


def drop(name):
  return lambda weights: weights.pop(name)


def reshape(name):
  return lambda weights: weights.update({name: weights[name][:, :-1].copy()})


def add(name, like):
  return lambda weights: weights.update({name: weights[like] + 1})


@pytest.mark.parametrize(('family', 'change', 'message'), [
  ('qwen2', drop('model.layers.1.self_attn.q_proj.bias'),
   'lacks model.layers.1.self_attn.q_proj.bias'),
  ('qwen2', drop('lm_head.weight'), 'lacks lm_head.weight'),
  ('qwen2', drop('model.embed_tokens.weight'), 'lacks model.embed_tokens.weight'),
  ('llama3', add('model.layers.0.self_attn.q_proj.bias', 'model.norm.weight'),
   'has not: model.layers.0.self_attn.q_proj.bias'),
  ('llama3', add('model.layers.2.input_layernorm.weight', 'model.norm.weight'),
   'has not: model.layers.2.input_layernorm.weight'),
  ('qwen3', reshape('model.layers.0.mlp.up_proj.weight'),
   r'up_proj.weight has shape \(40, 23\), but config.json asks for \(40, 24\)'),
  ('qwen3', add('lm_head.weight', 'model.embed_tokens.weight'),
   'tie_word_embeddings=true, but lm_head.weight differs'),
  ('llama3', lambda w: w.update({'model.norm.weight': np.zeros(24, np.int8)}),
   'model.norm.weight is stored as I8'),
])
@pytest.mark.parametrize('shards', [1, 3])
def test_tensors_that_do_not_fit_are_named(family, change, message, shards, tmp_path):
  with pytest.raises(ValueError, match=message):
    policies.from_pretrained(checkpoints.make(tmp_path, family, shards, change))


def test_a_stored_copy_of_the_tied_embedding_and_old_buffers_are_harmless(tmp_path):
  def change(weights):
    weights['lm_head.weight'] = weights['model.embed_tokens.weight'].copy()
    weights['model.layers.0.self_attn.rotary_emb.inv_freq'] = np.ones(3, np.float32)

  tiny.assert_same(
    policies.from_pretrained(checkpoints.make(tmp_path / 'a', 'qwen3')),
    policies.from_pretrained(checkpoints.make(tmp_path / 'b', 'qwen3', 2, change)))


@pytest.mark.parametrize('keep', [4, 200, -1])
def test_a_truncated_file_is_named(keep, tmp_path):
  folder = checkpoints.make(tmp_path)
  path = pathlib.Path(folder, 'model.safetensors')
  path.write_bytes(path.read_bytes()[:keep])
  with pytest.raises(ValueError, match='model.safetensors is damaged or cut short'):
    policies.from_pretrained(folder)


@pytest.mark.parametrize(('gone', 'message'), [
  ('config.json', 'config.json is missing'),
  ('model-00002-of-00003.safetensors', '00002-of-00003.safetensors, which is not'),
  ('model.safetensors.index.json', 'neither model.safetensors nor'),
])
def test_a_missing_file_is_named(gone, message, tmp_path):
  folder = checkpoints.make(tmp_path, shards=3)
  pathlib.Path(folder, gone).unlink()
  with pytest.raises(ValueError, match=message):
    policies.from_pretrained(folder)


def test_nothing_is_compiled_for_a_checkpoint_that_does_not_fit(tmp_path):
  compiled = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: compiled.append(event)
    if event.endswith('backend_compile_duration') else None)
  with pytest.raises(ValueError):
    policies.from_pretrained(
      checkpoints.make(tmp_path, change=drop('model.layers.1.mlp.up_proj.weight')))
  assert not compiled
