"""config.json means what it means to transformers, or is refused by name."""

import json

import pytest

from lpo_jax import policy as policies
from lpo_jax.policy import hf_config
from tests.parity import checkpoints, images


@pytest.mark.parametrize(('switches', 'kind'), [
  ({'qk_norm': True}, 'qwen3'), ({'qkv_bias': True}, 'qwen2'), ({}, 'llama'),
  ({'sliding_window': 5}, 'mistral'),
  ({'qkv_bias': True, 'sliding_window': 5}, 'qwen2'),
  ({'qk_norm': True, 'sliding_window': 5, 'tied_embeddings': True}, 'qwen3'),
  ({'rope_scaling': policies.RopeScaling('linear', 2.0)}, 'llama'),
  ({'rope_scaling': policies.RopeScaling(), 'rope_theta': 5e5}, 'llama'),
])
def test_switches_choose_the_architecture_and_survive(switches, kind):
  config = policies.PolicyConfig(vocab_size=9, width=8, layers=3, heads=2, kv_heads=1,
                                 head_dim=6, mlp_width=12, **switches)
  hf = hf_config.describe(config)
  assert hf['model_type'] == kind
  assert hf_config.parse(json.loads(json.dumps(hf))).__dict__ == config.__dict__ | {
    'rope_scaling': hf_config.parse(hf).rope_scaling}
  described = hf_config.parse(hf).rope_scaling
  assert (described is None) == (config.rope_scaling is None)
  if described is not None:
    assert (described.kind, described.factor) == (config.rope_scaling.kind,
                                                  config.rope_scaling.factor)


@pytest.mark.parametrize(('family', 'changes', 'message'), [
  ('qwen2', {'model_type': 'gemma2'}, "model_type='gemma2'"),
  ('qwen2', {'model_type': ...}, 'model_type=None'),
  ('qwen2', {'architectures': ['Qwen2ForSequenceClassification']},
   'Qwen2ForSequenceClassification'),
  ('qwen2', {'hidden_size': ...}, 'hidden_size'),
  ('qwen2', {'hidden_act': 'gelu'}, "hidden_act='gelu'"),
  ('qwen2', {'use_mrope': True}, 'use_mrope=True'),
  ('qwen2', {'use_sliding_window': True}, 'layer_types=.*same window'),
  ('qwen3', {'attention_bias': True}, 'attention_bias=True'),
  ('llama3', {'attention_bias': True}, 'attention_bias=True'),
  ('llama3', {'mlp_bias': True}, 'mlp_bias=True'),
  ('llama3', {'quantization_config': {'bits': 4}}, 'quantization_config'),
  ('llama3', {'partial_rotary_factor': 0.5}, 'partial_rotary_factor=0.5'),
  ('llama3', {'rope_scaling': {'rope_type': 'yarn', 'factor': 4.0}},
   "rope_type='yarn'"),
  ('llama3', {'rope_scaling': {'rope_type': 'llama3', 'factor': 4.0}},
   'without low_freq_factor'),
  ('llama3', {'torch_dtype': 'float8_e4m3fn'}, "torch_dtype='float8_e4m3fn'"),
  ('qwen2.5', {'rope_parameters': {'full_attention': {'rope_theta': 1.0}}},
   'by kind of layer'),
])
def test_what_this_decoder_would_get_wrong_is_refused(family, changes, message,
                                                      tmp_path):
  hf = checkpoints.config(family, **changes)
  (tmp_path / 'config.json').write_text(json.dumps(hf))
  with pytest.raises(ValueError, match=message):
    policies.from_pretrained(str(tmp_path))


@pytest.mark.parametrize(('changes', 'message'), [
  ({'vision_config': ...}, 'no whole number for hidden_size, depth'),
  ({'hidden_act': 'gelu'}, "vision_config: hidden_act='gelu'"),
  ({'out_hidden_size': 8}, 'out_hidden_size=8.*24'),
  ({'window_size': None}, 'no whole number for window_size'),
  ({'fullatt_block_indexes': [3]}, 'only vision.layers=3'),
  ({'rope_parameters': {'rope_theta': 5e3}}, 'rope_theta=5000.0'),
  ({'mrope_section': [2, 2, 3]}, 'three parts of the 6 pairs')])
def test_a_tower_that_is_other_is_refused(changes, message):
  hf = images.FAMILIES['qwen2.5_vl']
  if 'mrope_section' in changes:
    hf = hf | {'rope_scaling': {'type': 'mrope', **changes}}
  else:
    tower = {} if 'vision_config' in changes else hf['vision_config'] | changes
    hf = hf | {'vision_config': tower}
  with pytest.raises(ValueError, match=message):
    hf_config.parse(hf)


def test_flat_and_nested_say_the_same():
  flat, nested = (hf_config.parse(hf) for hf in images.FAMILIES.values())
  changes = {name: value for name, value in flat.__dict__.items()
             if value != nested.__dict__[name]}
  assert set(changes) == {'tied_embeddings', 'rope_sections', 'dtype', 'param_dtype'}
