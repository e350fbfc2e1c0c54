"""Tiny checkpoints of Qwen2.5-VL and prompts with images, drawn by NumPy.

Like `checkpoints`: the same bytes everywhere. One family is written as the hub has it
(transformers 4: flat config.json, `visual.` and `model.` prefixes), one as version 5
writes it (nested parts, `model.visual.` and `model.language_model.`), tied and untied.
"""

import numpy as np

from tests.parity import checkpoints

IMAGE, START, END = 40, 41, 42  # tokens
PATCH, MERGE = 4, 2
GRIDS = (((1, 4, 6), (1, 10, 4)), (), ((1, 2, 2),), ((1, 6, 6),))  # of each row
TEXTS = ((3, 2, 4), (9,), (1, 5), (2, 3))  # words before, between and after images
WIDTH = 32
_VISION = {
  'depth': 3, 'hidden_size': 16, 'hidden_act': 'silu', 'intermediate_size': 20,
  'num_heads': 2, 'out_hidden_size': 24, 'patch_size': PATCH, 'spatial_merge_size': 2,
  'temporal_patch_size': 2, 'window_size': 16, 'fullatt_block_indexes': [1]}
_TEXT = {
  'hidden_size': 24, 'intermediate_size': 40, 'num_hidden_layers': 2,
  'num_attention_heads': 2, 'num_key_value_heads': 1, 'hidden_act': 'silu',
  'rms_norm_eps': 1e-6, 'vocab_size': checkpoints.VOCAB, 'use_sliding_window': False,
  'max_window_layers': 2, 'sliding_window': 32768, 'max_position_embeddings': 512}
_TOKENS = {'image_token_id': IMAGE, 'vision_start_token_id': START,
           'vision_end_token_id': END, 'video_token_id': 43}
_SECTIONS = [2, 2, 2]

FAMILIES = {
  'qwen2.5_vl': _TEXT | _TOKENS | {
    'architectures': ['Qwen2_5_VLForConditionalGeneration'],
    'model_type': 'qwen2_5_vl', 'eos_token_id': checkpoints.EOS, 'rope_theta': 1e6,
    'rope_scaling': {'type': 'mrope', 'mrope_section': _SECTIONS},
    'tie_word_embeddings': True, 'torch_dtype': 'bfloat16',
    'vision_config': _VISION | {'in_chans': 3, 'spatial_patch_size': PATCH}},
  'qwen2.5_vl_untied': _TOKENS | {
    'architectures': ['Qwen2_5_VLForConditionalGeneration'],
    'model_type': 'qwen2_5_vl', 'tie_word_embeddings': False, 'dtype': 'float32',
    'text_config': _TEXT | {
      'model_type': 'qwen2_5_vl_text', 'dtype': 'float32',
      'eos_token_id': checkpoints.EOS, 'layer_types': ['full_attention'] * 2,
      'rope_parameters': {'mrope_section': [1, 3, 2], 'rope_theta': 1e6,
                          'rope_type': 'default'}},
    'vision_config': _VISION | {
      'model_type': 'qwen2_5_vl_vision', 'in_channels': 3, 'dtype': 'float32',
      'rope_parameters': {'rope_theta': 10000.0, 'rope_type': 'axial'}}},
}


def tensors(family: str) -> dict[str, np.ndarray]:
  """Return a family's weights by name."""
  hf = FAMILIES[family]
  text, vision = hf.get('text_config', hf), hf['vision_config']
  flat = 'text_config' not in hf
  language = checkpoints.tensors(
    text | {'model_type': 'qwen2', 'torch_dtype': 'float32',
            'tie_word_embeddings': hf['tie_word_embeddings']}, seed=family)
  width, inner, out = (vision[key] for key in ('hidden_size', 'intermediate_size',
                                               'out_hidden_size'))
  shapes = {'patch_embed.proj.weight': (width, 3, 2, PATCH, PATCH),
            'merger.ln_q.weight': (width,),
            'merger.mlp.0.weight': (4 * width, 4 * width), 'merger.mlp.0.bias': (64,),
            'merger.mlp.2.weight': (out, 4 * width), 'merger.mlp.2.bias': (out,)}
  for i in range(vision['depth']):
    layer = {'norm1.weight': (width,), 'norm2.weight': (width,)}
    for name, rows, columns in (
        ('attn.qkv', 3 * width, width), ('attn.proj', width, width),
        ('mlp.gate_proj', inner, width), ('mlp.up_proj', inner, width),
        ('mlp.down_proj', width, inner)):
      layer |= {f'{name}.weight': (rows, columns), f'{name}.bias': (rows,)}
    shapes |= {f'blocks.{i}.{name}': shape for name, shape in layer.items()}
  visual = {name: draw(name, shape) for name, shape in shapes.items()}
  if flat:
    found = language | {f'visual.{name}': value for name, value in visual.items()}
  else:
    found = {name.replace('model.', 'model.language_model.', 1): value
             for name, value in language.items()}
    found |= {f'model.visual.{name}': value for name, value in visual.items()}
  dtype = checkpoints.dtype_of(hf)
  return {name: value.astype(dtype) for name, value in found.items()}


def write(folder, family: str, shards: int = 1, **changes) -> str:
  """Write a family's checkpoint; return the folder."""
  return checkpoints.write(folder, FAMILIES[family] | changes, shards, tensors(family))


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """Return numbers that are a function of name and shape, fit for a layer."""
  value = checkpoints.draw(name, (shape[0], int(np.prod(shape[1:]))) if len(shape) > 2
                           else shape)
  return value.reshape(shape).astype(np.float32)


def batch(padding: str) -> tuple[np.ndarray, np.ndarray]:
  """Return tokens and mask [4, 32] of prompts with two, no, one and one image."""
  rng = np.random.default_rng(11)
  tokens = np.zeros((len(GRIDS), WIDTH), np.int32)
  mask = np.zeros(tokens.shape, bool)
  for row, (grids, words) in enumerate(zip(GRIDS, TEXTS, strict=True)):
    ids = list(rng.integers(2, IMAGE, words[0]))
    for (_, high, wide), more in zip(grids, words[1:], strict=True):
      ids += [START, *[IMAGE] * (high * wide // MERGE**2), END,
              *rng.integers(2, IMAGE, more)]
    place = slice(WIDTH - len(ids), None) if padding == 'left' else slice(len(ids))
    tokens[row, place], mask[row, place] = ids, True
  return tokens, mask


def pictures() -> tuple[np.ndarray, np.ndarray]:
  """Return patches f32[N, patch_dim] and grids i32[images, 3] of all rows."""
  grid = np.array([g for row in GRIDS for g in row], np.int32)
  count = int(np.prod(grid, axis=1).sum())
  rng = np.random.default_rng(5)
  return rng.normal(size=(count, 3 * 2 * PATCH**2)).astype(np.float32), grid


def by_row() -> tuple[np.ndarray, np.ndarray]:
  """Return the same as `types.Images` has them: [B, M, patch_dim], [B, I, 3]."""
  patches, _ = pictures()
  counts = [sum(int(np.prod(g)) for g in row) for row in GRIDS]
  rows = np.zeros((len(GRIDS), max(counts), patches.shape[1]), np.float32)
  grid = np.zeros((len(GRIDS), max(map(len, GRIDS)), 3), np.int32)
  start = 0
  for row, (count, grids) in enumerate(zip(counts, GRIDS, strict=True)):
    rows[row, :count] = patches[start:start + count]
    start += count
    for i, g in enumerate(grids):
      grid[row, i] = g
  return rows, grid
