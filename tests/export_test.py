"""Exports are whole or not there, bounded, and what another reader expects."""

import json

import numpy as np
import pytest
import safetensors

from lpo_jax import policy as policies
from lpo_jax import sharding
from lpo_jax.policy import pretrained
from tests import tiny
from tests.parity import checkpoints, images


def test_an_export_is_read_back_bit_for_bit(tmp_path):
  policy = policies.from_pretrained(checkpoints.make(tmp_path / 'in', 'qwen3'))
  out = tmp_path / 'out'
  policies.save_pretrained(policy, str(out))
  again = policies.from_pretrained(str(out))
  assert again.config == policy.config
  tiny.assert_same(policy, again)
  assert {file.name for file in out.iterdir()} == {
    'config.json', 'generation_config.json', 'model.safetensors'}
  assert not list(tmp_path.glob('.*'))


def test_an_export_from_a_mesh_is_cut_into_bounded_files(tmp_path):
  folder = checkpoints.make(tmp_path / 'in', 'deepseek_llama')
  policy = policies.from_pretrained(folder, sharding.make_mesh((2, 2, 2)))
  out = tmp_path / 'out'
  policies.save_pretrained(policy, str(out), max_shard_bytes=6000)
  files = sorted(out.glob('*.safetensors'))
  index = json.loads((out / pretrained.INDEX).read_text())
  assert len(files) > 3
  named = {}
  for file in files:
    with safetensors.safe_open(file, 'numpy') as opened:  # an independent reader
      held = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    assert sum(array.nbytes for array in held.values()) <= 6000
    named |= dict.fromkeys(held, file.name)
    for name, array in held.items():
      expected = checkpoints.tensors(checkpoints.config('deepseek_llama'))[name]
      assert array.dtype == expected.dtype
      np.testing.assert_array_equal(array, expected)
  assert index['weight_map'] == named
  tiny.assert_same(policies.from_pretrained(str(out)), policies.from_pretrained(folder))


def test_a_killed_export_leaves_no_folder_and_does_not_hinder_the_next(
    tmp_path, monkeypatch):
  policy = policies.from_pretrained(checkpoints.make(tmp_path / 'in'))
  out = tmp_path / 'out'

  class Killed(BaseException):
    pass

  def kill(*_):
    raise Killed

  with monkeypatch.context() as patch:
    patch.setattr('lpo_jax.policy.export._write_json', kill)
    with pytest.raises(Killed):
      policies.save_pretrained(policy, str(out))
  assert not out.exists()
  policies.save_pretrained(policy, str(out))
  tiny.assert_same(policies.from_pretrained(str(out)), policy)
  assert not list(tmp_path.glob('.*'))


def test_an_export_does_not_overwrite(tmp_path):
  policy = policies.from_pretrained(checkpoints.make(tmp_path / 'in'))
  with pytest.raises(ValueError, match='in. is not an empty folder'):
    policies.save_pretrained(policy, str(tmp_path / 'in'))


def test_an_export_keeps_what_its_source_says(tmp_path):
  folder = checkpoints.make(tmp_path / 'in', 'llama3', max_position_embeddings=777)
  (tmp_path / 'in' / 'generation_config.json').write_text('{"eos_token_id": [5, 6]}')
  policy = policies.from_pretrained(folder, dtype='bfloat16')
  policies.save_pretrained(policy, str(tmp_path / 'out'), source=folder)
  kept = json.loads((tmp_path / 'out' / 'config.json').read_text())
  assert kept == checkpoints.config('llama3', max_position_embeddings=777,
                                    torch_dtype='bfloat16')
  generation = json.loads((tmp_path / 'out' / 'generation_config.json').read_text())
  assert generation == {'eos_token_id': [5, 6]}


def test_an_architecture_nobody_has_is_not_exported(tmp_path):
  policy = tiny.policy(qkv_bias=True, qk_norm=True)
  with pytest.raises(ValueError, match='qk_norm=True and qkv_bias=True'):
    policies.save_pretrained(policy, str(tmp_path / 'out'))
  assert not (tmp_path / 'out').exists()


def test_what_says_how_images_are_read_is_kept(tmp_path):
  folder = images.write(tmp_path / 'in', 'qwen2.5_vl')
  said = {'min_pixels': 3136, 'max_pixels': 12845056}
  (tmp_path / 'in' / 'preprocessor_config.json').write_text(json.dumps(said))
  policies.save_pretrained(policies.from_pretrained(folder), tmp_path / 'out',
                           source=folder)
  out = tmp_path / 'out'
  assert json.loads((out / 'preprocessor_config.json').read_text()) == said
  assert {file.name for file in out.iterdir()} == {
    'config.json', 'generation_config.json', 'model.safetensors',
    'preprocessor_config.json'}
