"""Between Hugging Face's config.json and `PolicyConfig`, both ways.

Reads what transformers 4 writes (`rope_theta` and `rope_scaling` beside each other,
`torch_dtype`) and what transformers 5 does (`rope_parameters`, `dtype`; the decoder of
a vision-language model under `text_config`); absent keys mean what they mean there.
Whatever this decoder would compute otherwise than transformers is refused by name.
Written are the keys of transformers 4, which both read.
"""

from typing import Any, NamedTuple

from lpo_jax.policy.config import DTYPES, PolicyConfig, RopeScaling
from lpo_jax.policy.vision_config import VisionConfig


class _Family(NamedTuple):
  """A `model_type`, and what its class means by absent keys."""

  architecture: str
  kv_heads: int | None  # None: as many as query heads
  head_dim: int | None = None  # None: width / heads
  window: int | None = None  # where `sliding_window` is absent
  layered_window: bool = False  # only with `use_sliding_window`, and by layer
  refused: tuple[str, ...] = ()  # biases that this decoder has not


_FAMILIES = {
  'llama': _Family('LlamaForCausalLM', None, refused=('attention_bias', 'mlp_bias')),
  'mistral': _Family('MistralForCausalLM', 8, window=4096),
  'qwen2': _Family('Qwen2ForCausalLM', 32, window=4096, layered_window=True),
  'qwen3': _Family('Qwen3ForCausalLM', 32, head_dim=128, window=4096,
                   layered_window=True, refused=('attention_bias',)),
  'qwen2_5_vl': _Family('Qwen2_5_VLForConditionalGeneration', 8, window=4096,
                        layered_window=True),
}
_VISION = {  # config.json's `vision_config` -> VisionConfig
  'hidden_size': 'width', 'depth': 'layers', 'num_heads': 'heads',
  'intermediate_size': 'mlp_width', 'patch_size': 'patch_size',
  'temporal_patch_size': 'temporal_patch_size', 'spatial_merge_size': 'merge_size',
  'window_size': 'window_size'}
_REQUIRED = ('vocab_size', 'hidden_size', 'num_hidden_layers', 'num_attention_heads',
             'intermediate_size')
_LLAMA3 = {'factor': 'factor', 'low_freq_factor': 'low_freq_factor',
           'high_freq_factor': 'high_freq_factor',
           'original_max_position_embeddings': 'original_max_position'}


def parse(hf: dict[str, Any]) -> PolicyConfig:
  """Return the PolicyConfig that a config.json describes.

  Its `dtype` and `param_dtype` are both the stored one, float32 where none is named.

  Args:
    hf: the parsed config.json.

  Raises:
    ValueError: another architecture, a missing key, or a value that this decoder does
      not support; names it.
  """
  kind = hf.get('model_type')
  if kind not in _FAMILIES:
    raise ValueError(f'model_type={kind!r} (architectures={hf.get("architectures")}): '
                     f'only {", ".join(_FAMILIES)} are known')
  family = _FAMILIES[kind]
  nested = hf.get('text_config') or {}
  tied = [part.get('tie_word_embeddings', False) for part in (hf, nested)]
  hf = nested | hf | {'tie_word_embeddings': any(tied)}
  _refuse(hf, family)
  heads = hf['num_attention_heads']
  kv_heads = hf.get('num_key_value_heads', family.kv_heads)
  theta, scaling = _rope(hf)
  vision, sections = _vision(hf) if kind == 'qwen2_5_vl' else (None, ())
  dtype = stored_dtype(hf) or 'float32'
  return PolicyConfig(
    vocab_size=hf['vocab_size'], width=hf['hidden_size'],
    layers=hf['num_hidden_layers'], heads=heads, kv_heads=kv_heads or heads,
    head_dim=hf.get('head_dim', family.head_dim) or hf['hidden_size'] // heads,
    mlp_width=hf['intermediate_size'], qkv_bias=kind in ('qwen2', 'qwen2_5_vl'),
    qk_norm=kind == 'qwen3', tied_embeddings=bool(hf.get('tie_word_embeddings', False)),
    norm_eps=float(hf.get('rms_norm_eps', 1e-5 if vision else 1e-6)),
    rope_theta=theta, rope_scaling=scaling, rope_sections=sections,
    sliding_window=_window(hf, family), dtype=dtype, param_dtype=dtype, vision=vision)


def stored_dtype(hf: dict[str, Any]) -> str | None:
  """Return the dtype that config.json names, None where it names none.

  Raises:
    ValueError: a dtype that is none of float32, bfloat16, float16.
  """
  named = hf.get('dtype') or hf.get('torch_dtype')
  if named in (None, 'auto'):
    return None
  named = str(named).removeprefix('torch.')
  if named not in DTYPES:
    raise ValueError(f'torch_dtype={named!r}: choose one of {", ".join(DTYPES)}')
  return named


def describe(config: PolicyConfig) -> dict[str, Any]:
  """Return the config.json of a policy; its switches choose the architecture.

  Raises:
    ValueError: no Hugging Face architecture has this combination of switches.
  """
  if config.qk_norm and config.qkv_bias:
    raise ValueError('policy with qk_norm=True and qkv_bias=True: no Hugging Face '
                     'architecture has both, so it cannot be exported')
  kind = ('qwen2_5_vl' if config.vision else 'qwen3' if config.qk_norm
          else 'qwen2' if config.qkv_bias
          else 'llama' if config.sliding_window is None else 'mistral')
  if config.vision and (config.qk_norm or not config.qkv_bias or config.rope_scaling
                        or config.head_dim * config.heads != config.width):
    raise ValueError('policy with a vision tower: only qkv_bias=True, qk_norm=False, '
                     'rope_scaling=None and heads * head_dim = width can be exported, '
                     'as Qwen2.5-VL')
  hf = {
    'architectures': [_FAMILIES[kind].architecture], 'model_type': kind,
    'vocab_size': config.vocab_size, 'hidden_size': config.width,
    'intermediate_size': config.mlp_width, 'num_hidden_layers': config.layers,
    'num_attention_heads': config.heads, 'num_key_value_heads': config.kv_heads,
    'head_dim': config.head_dim, 'hidden_act': 'silu', 'rms_norm_eps': config.norm_eps,
    'tie_word_embeddings': config.tied_embeddings, 'rope_theta': config.rope_theta,
    'rope_scaling': None, 'sliding_window': config.sliding_window,
    'max_position_embeddings': 32768, 'attention_dropout': 0.0, 'use_cache': True,
    'torch_dtype': config.param_dtype}
  if _FAMILIES[kind].refused:
    hf |= dict.fromkeys(_FAMILIES[kind].refused, False)
  if _FAMILIES[kind].layered_window:
    windowed = config.sliding_window is not None
    hf |= {'use_sliding_window': windowed,
           'max_window_layers': 0 if windowed else config.layers}
  if (scaling := config.rope_scaling) is not None:
    hf['rope_scaling'] = {'rope_type': scaling.kind, 'factor': scaling.factor}
    if scaling.kind == 'llama3':
      hf['rope_scaling'] |= {key: getattr(scaling, ours)
                             for key, ours in _LLAMA3.items()}
      hf['max_position_embeddings'] = int(scaling.factor
                                          * scaling.original_max_position)
  if config.vision:
    hf |= _describe_vision(config)
  return hf


def _describe_vision(config: PolicyConfig) -> dict[str, Any]:
  """Return what config.json says of a vision tower and its place."""
  vision = config.vision
  return {
    'rope_scaling': {'type': 'mrope', 'mrope_section': list(config.rope_sections)},
    'image_token_id': vision.image_token, 'vision_start_token_id': vision.start_token,
    'vision_config': {
      'model_type': 'qwen2_5_vl', 'hidden_act': 'silu', 'in_channels': vision.channels,
      'in_chans': vision.channels, 'out_hidden_size': config.width,
      'fullatt_block_indexes': list(vision.full_blocks),
      **{theirs: getattr(vision, ours) for theirs, ours in _VISION.items()}}}


def _vision(hf: dict[str, Any]) -> tuple[VisionConfig, tuple[int, ...]]:
  """Return the vision tower and the sections of the rotary positions."""
  found = hf.get('vision_config') or {}
  if missing := [key for key in _VISION if not isinstance(found.get(key), int)]:
    raise ValueError(f'vision_config gives no whole number for {", ".join(missing)}')
  rope = found.get('rope_parameters') or {}
  right = {'hidden_act': ('silu', found.get('hidden_act', 'silu')),
           'out_hidden_size': (hf['hidden_size'], found.get('out_hidden_size')),
           'rope_theta': (10_000.0, float(rope.get('rope_theta', 10_000.0))),
           'rope_type': ('axial', rope.get('rope_type', 'axial'))}
  for key, (value, theirs) in right.items():
    if theirs != value:
      raise ValueError(f'vision_config: {key}={theirs!r}, but this tower has only '
                       f'{value!r}')
  sections = {**(hf.get('rope_scaling') or {}), **(hf.get('rope_parameters') or {})}
  return VisionConfig(
    channels=found.get('in_channels', 3),
    full_blocks=tuple(found.get('fullatt_block_indexes', (7, 15, 23, 31))),
    image_token=hf.get('image_token_id', 151655),
    start_token=hf.get('vision_start_token_id', 151652),
    **{ours: found[theirs] for theirs, ours in _VISION.items()},
  ), tuple(sections.get('mrope_section', (16, 24, 24)))


def _refuse(hf: dict[str, Any], family: _Family) -> None:
  """Raise for what this decoder would get wrong."""
  if missing := [key for key in _REQUIRED if not isinstance(hf.get(key), int)]:
    raise ValueError(f'config.json gives no whole number for {", ".join(missing)}')
  architectures = hf.get('architectures') or [family.architecture]
  if architectures != [family.architecture]:
    raise ValueError(f'architectures={architectures}: model_type={hf["model_type"]!r} '
                     f'is supported as {family.architecture} only')
  right = {'hidden_act': 'silu', 'quantization_config': None, 'use_mrope': False,
           **dict.fromkeys(family.refused, False)}
  for key, value in right.items():
    if (found := hf.get(key, value)) not in (value, value or None):
      raise ValueError(f'{key}={found!r}: this decoder has only {key}={value!r}')


def _rope(hf: dict[str, Any]) -> tuple[float, RopeScaling | None]:
  """Return the base of the rotary frequencies and their scaling."""
  nested = hf.get('rope_parameters') or {}
  if any(isinstance(value, dict) for value in nested.values()):
    raise ValueError(f'rope_parameters={nested}: rotary embedding by kind of layer is '
                     'not supported')
  rope = {**(hf.get('rope_scaling') or {}), **nested}
  partial = rope.get('partial_rotary_factor', hf.get('partial_rotary_factor'))
  if partial not in (None, 1, 1.0):
    raise ValueError(f'partial_rotary_factor={partial}: this decoder rotates whole '
                     'heads (1.0)')
  absent = 1e6 if hf['model_type'] == 'qwen2_5_vl' else 10_000.0
  theta = float(rope.get('rope_theta') or hf.get('rope_theta') or absent)
  kind = rope.get('rope_type', rope.get('type', 'default'))
  if kind == 'default' or (kind == 'mrope' and hf['model_type'] == 'qwen2_5_vl'):
    return theta, None
  if kind not in ('linear', 'llama3'):
    raise ValueError(f'rope_type={kind!r}: only default, linear and llama3 are '
                     f'supported (rope_scaling={rope})')
  needed = _LLAMA3 if kind == 'llama3' else {'factor': 'factor'}
  if missing := [key for key in needed if rope.get(key) is None]:
    raise ValueError(f'rope_type={kind!r} without {", ".join(missing)}: '
                     f'rope_scaling={rope}')
  return theta, RopeScaling(kind, **{ours: rope[key] for key, ours in needed.items()})


def _window(hf: dict[str, Any], family: _Family) -> int | None:
  """Return the sliding window, one for all layers."""
  window = hf.get('sliding_window', family.window)
  if not family.layered_window:
    return window
  if not hf.get('use_sliding_window', False) or window is None:
    return None
  layers, full = hf['num_hidden_layers'], hf.get('max_window_layers', 28)
  kinds = hf.get('layer_types') or [
    'full_attention' if i < full else 'sliding_attention' for i in range(layers)]
  if len(set(kinds)) > 1:
    raise ValueError(f'layer_types={kinds}: all layers must have the same window '
                     f'(sliding_window={window}, max_window_layers={full})')
  return window if kinds[0] == 'sliding_attention' else None
