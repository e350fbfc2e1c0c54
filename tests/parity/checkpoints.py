"""Tiny checkpoints of every family, drawn by NumPy: the same bytes everywhere.

Each has the config.json its family really ships, in small: `rope_theta` beside
`rope_scaling` as transformers 4 writes it, or `rope_parameters` as transformers 5
does. Weights are a pure function of the family and the tensor's name.
"""

import json
import pathlib
import zlib

import ml_dtypes
import numpy as np
import safetensors.numpy

VOCAB, EOS = 48, 47
LENGTHS, WIDTH, NEW = (16, 9, 5), 16, 8  # prompts, and tokens generated after them
_SIZES = {'vocab_size': VOCAB, 'hidden_size': 24, 'intermediate_size': 40,
          'num_hidden_layers': 2, 'num_attention_heads': 4, 'num_key_value_heads': 2,
          'hidden_act': 'silu', 'bos_token_id': 1, 'eos_token_id': EOS,
          'max_position_embeddings': 512, 'attention_dropout': 0.0, 'use_cache': True,
          'initializer_range': 0.02}
_LLAMA3 = {'rope_type': 'llama3', 'factor': 8.0, 'low_freq_factor': 1.0,
           'high_freq_factor': 4.0, 'original_max_position_embeddings': 16}
_ROPE = {'rope_theta': 1e6, 'rope_type': 'default'}
_QWEN2 = {'architectures': ['Qwen2ForCausalLM'], 'model_type': 'qwen2'}
_QWEN3 = {'architectures': ['Qwen3ForCausalLM'], 'model_type': 'qwen3'}
_LLAMA = {'architectures': ['LlamaForCausalLM'], 'model_type': 'llama',
          'attention_bias': False, 'mlp_bias': False, 'pretraining_tp': 1}
_MISTRAL = {'architectures': ['MistralForCausalLM'], 'model_type': 'mistral'}
_FULL = ['full_attention'] * 2

FAMILIES = {
  'qwen2': _QWEN2 | {
    'rms_norm_eps': 1e-6, 'rope_theta': 1e6, 'sliding_window': 4,
    'use_sliding_window': False, 'max_window_layers': 1, 'tie_word_embeddings': False,
    'torch_dtype': 'float32'},
  'qwen2.5': _QWEN2 | {
    'rms_norm_eps': 1e-6, 'rope_parameters': _ROPE,
    'sliding_window': None, 'use_sliding_window': False, 'layer_types': _FULL,
    'max_window_layers': 2, 'tie_word_embeddings': True, 'dtype': 'float32'},
  'qwen2_window': _QWEN2 | {
    'rms_norm_eps': 1e-6, 'rope_theta': 1e4, 'sliding_window': 4,
    'use_sliding_window': True, 'max_window_layers': 0, 'tie_word_embeddings': False,
    'torch_dtype': 'float32'},
  'qwen3': _QWEN3 | {
    'rms_norm_eps': 1e-6, 'rope_theta': 1e6, 'rope_scaling': None, 'head_dim': 8,
    'attention_bias': False, 'sliding_window': None, 'use_sliding_window': False,
    'max_window_layers': 2, 'tie_word_embeddings': True, 'torch_dtype': 'float32'},
  'qwen3_untied': _QWEN3 | {
    'rms_norm_eps': 1e-6, 'rope_parameters': _ROPE,
    'head_dim': 16, 'attention_bias': False, 'layer_types': _FULL,
    'use_sliding_window': False, 'max_window_layers': 2, 'tie_word_embeddings': False,
    'dtype': 'float32'},
  'deepseek_qwen': _QWEN2 | {
    'rms_norm_eps': 1e-6, 'rope_theta': 10000, 'sliding_window': 4096,
    'use_sliding_window': False, 'max_window_layers': 21, 'use_mrope': False,
    'tie_word_embeddings': False, 'torch_dtype': 'bfloat16'},
  'deepseek_llama': _LLAMA | {
    'rms_norm_eps': 1e-5, 'rope_theta': 500000.0, 'rope_scaling': _LLAMA3,
    'tie_word_embeddings': False, 'torch_dtype': 'bfloat16'},
  'llama3': _LLAMA | {
    'rms_norm_eps': 1e-5, 'rope_theta': 500000.0, 'rope_scaling': _LLAMA3,
    'eos_token_id': [EOS, EOS - 1], 'tie_word_embeddings': False,
    'torch_dtype': 'float32'},
  'llama3.2': _LLAMA | {
    'rms_norm_eps': 1e-5, 'rope_parameters': _LLAMA3 | {'rope_theta': 500000.0},
    'head_dim': 6, 'tie_word_embeddings': True, 'dtype': 'float32'},
  'llama_linear': _LLAMA | {
    'rms_norm_eps': 1e-5, 'rope_theta': 10000.0,
    'rope_scaling': {'type': 'linear', 'factor': 4.0}, 'torch_dtype': 'float16'},
  'mistral': _MISTRAL | {
    'rms_norm_eps': 1e-5, 'rope_theta': 10000.0, 'sliding_window': 6,
    'tie_word_embeddings': False, 'torch_dtype': 'float32'},
  'mistral_full': _MISTRAL | {
    'rms_norm_eps': 1e-5, 'rope_parameters': _ROPE,
    'head_dim': 8, 'sliding_window': None, 'tie_word_embeddings': False,
    'dtype': 'float32'},
}


def config(family: str, **changes) -> dict:
  """Return a family's config.json; a change to `...` removes the key."""
  merged = _SIZES | FAMILIES[family] | changes
  return {key: value for key, value in merged.items() if value is not ...}


def tensors(hf: dict, seed: str = '') -> dict[str, np.ndarray]:
  """Return the weights of a config.json, by name, in its dtype."""
  width, inner = hf['hidden_size'], hf['intermediate_size']
  head = hf.get('head_dim') or width // hf['num_attention_heads']
  queries = hf['num_attention_heads'] * head
  keys = hf['num_key_value_heads'] * head
  shapes = {'model.embed_tokens.weight': (hf['vocab_size'], width),
            'model.norm.weight': (width,)}
  if not hf.get('tie_word_embeddings', False):
    shapes['lm_head.weight'] = (hf['vocab_size'], width)
  for i in range(hf['num_hidden_layers']):
    layer = {'input_layernorm.weight': (width,), 'mlp.down_proj.weight': (width, inner),
             'mlp.gate_proj.weight': (inner, width),
             'mlp.up_proj.weight': (inner, width),
             'post_attention_layernorm.weight': (width,),
             'self_attn.o_proj.weight': (width, queries)}
    for name, columns in (('q', queries), ('k', keys), ('v', keys)):
      layer[f'self_attn.{name}_proj.weight'] = (columns, width)
      if hf['model_type'] == 'qwen2':
        layer[f'self_attn.{name}_proj.bias'] = (columns,)
    if hf['model_type'] == 'qwen3':
      layer |= {'self_attn.q_norm.weight': (head,), 'self_attn.k_norm.weight': (head,)}
    shapes |= {f'model.layers.{i}.{name}': shape for name, shape in layer.items()}
  return {name: draw(f'{seed}{name}', shape).astype(dtype_of(hf))
          for name, shape in shapes.items()}


def write(folder, hf: dict, shards: int = 1, weights: dict | None = None) -> str:
  """Write a checkpoint, in one file or sharded with an index; return the folder."""
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'config.json').write_text(json.dumps(hf))
  weights = tensors(hf) if weights is None else weights
  if shards == 1:
    safetensors.numpy.save_file(weights, folder / 'model.safetensors', {'format': 'pt'})
    return str(folder)
  names, where = list(weights), {}
  for i in range(shards):
    file = f'model-{i + 1:05d}-of-{shards:05d}.safetensors'
    part = {name: weights[name] for name in names[i::shards]}
    safetensors.numpy.save_file(part, folder / file, {'format': 'pt'})
    where |= dict.fromkeys(part, file)
  (folder / 'model.safetensors.index.json').write_text(json.dumps(
    {'metadata': {'total_size': sum(w.nbytes for w in weights.values())},
     'weight_map': where}))
  return str(folder)


def make(folder, family: str = 'qwen2', shards: int = 1, change=None, **changes) -> str:
  """Write a family's checkpoint, its weights (a dict) changed in place; return it."""
  hf = config(family, **changes)
  weights = tensors(hf)
  if change:
    change(weights)
  return write(folder, hf, shards, weights)


def batch(padding: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Return tokens, positions and mask [3, 16], padded on the 'left' or 'right'."""
  tokens = np.random.default_rng(7).integers(2, EOS - 1, (len(LENGTHS), WIDTH))
  place, lengths = np.arange(WIDTH), np.array(LENGTHS)[:, None]
  mask = place >= WIDTH - lengths if padding == 'left' else place < lengths
  if padding == 'left':  # the same text in both
    tokens = np.stack([np.roll(row, WIDTH - n) for row, n in
                       zip(tokens, LENGTHS, strict=True)])
  positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
  return tokens.astype(np.int32), positions.astype(np.int32), mask


def dtype_of(hf: dict) -> np.dtype:
  """Return the dtype that a config.json names."""
  name = hf.get('dtype') or hf.get('torch_dtype') or 'float32'
  return np.dtype(ml_dtypes.bfloat16 if name == 'bfloat16' else name)


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """Return numbers that are a function of name and shape, fit for a layer."""
  rng = np.random.default_rng(zlib.crc32(name.encode()))
  if 'norm' in name:
    return 1 + 0.2 * rng.normal(size=shape)
  if 'embed' in name:  # small, so that the norms' epsilon shows
    return 0.03 * rng.normal(size=shape)
  return rng.normal(size=shape) * (0.3 if 'bias' in name else shape[-1] ** -0.5)
