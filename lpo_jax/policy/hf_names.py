"""Which tensor of a Hugging Face checkpoint is which parameter of the decoder.

The families share one layout. torch's linear layers hold [out, in], this decoder
[in, out], so every matrix but the embedding is transposed; layers stand apart there
and are stacked on a leading axis here. A vision tower's tensors are named as the hub
has them; transformers 5 writes other prefixes, which `canonical` takes away.
"""

from typing import NamedTuple

import jax

from lpo_jax.policy.config import PolicyConfig
from lpo_jax.policy.transformer import Policy

_WHOLE = {
  'embedding': ('model.embed_tokens.weight', False),
  'final_norm': ('model.norm.weight', False),
  'unembedding': ('lm_head.weight', True),
}
_LAYERED = {
  'attention_norm': ('input_layernorm.weight', False),
  'query': ('self_attn.q_proj.weight', True),
  'key': ('self_attn.k_proj.weight', True),
  'value': ('self_attn.v_proj.weight', True),
  'query_bias': ('self_attn.q_proj.bias', False),
  'key_bias': ('self_attn.k_proj.bias', False),
  'value_bias': ('self_attn.v_proj.bias', False),
  'query_norm': ('self_attn.q_norm.weight', False),
  'key_norm': ('self_attn.k_norm.weight', False),
  'out': ('self_attn.o_proj.weight', True),
  'mlp_norm': ('post_attention_layernorm.weight', False),
  'gate': ('mlp.gate_proj.weight', True),
  'up': ('mlp.up_proj.weight', True),
  'down': ('mlp.down_proj.weight', True),
}
_VISION = {
  'patch': ('visual.patch_embed.proj.weight', True),
  'merge_norm': ('visual.merger.ln_q.weight', False),
  'merge_in': ('visual.merger.mlp.0.weight', True),
  'merge_in_bias': ('visual.merger.mlp.0.bias', False),
  'merge_out': ('visual.merger.mlp.2.weight', True),
  'merge_out_bias': ('visual.merger.mlp.2.bias', False),
}
_VISION_LAYERED = {
  'attention_norm': ('norm1.weight', False),
  'mlp_norm': ('norm2.weight', False),
  **{f'{ours}{bias}': (f'{theirs}.{"bias" if bias else "weight"}', not bias)
     for ours, theirs in (('qkv', 'attn.qkv'), ('out', 'attn.proj'),
                          ('gate', 'mlp.gate_proj'), ('up', 'mlp.up_proj'),
                          ('down', 'mlp.down_proj')) for bias in ('', '_bias')},
}
_PREFIXES = (('model.visual.', 'visual.'), ('model.language_model.', 'model.'))
_ADAPTERS = {  # as PEFT names them
  f'{name}_lora_{part.lower()}':
    (tensor.replace('.weight', f'.lora_{part}.weight'), True)
  for name, (tensor, transposed) in _LAYERED.items() if transposed for part in 'AB'}
UNEMBEDDING, EMBEDDING = _WHOLE['unembedding'][0], _WHOLE['embedding'][0]


class Parameter(NamedTuple):
  """One leaf of a policy and the tensors that make it up."""

  name: str  # of the leaf
  tensors: tuple[str, ...]  # one, or one per layer where the leaf is stacked
  stacked: bool
  transposed: bool
  shape: tuple[int, ...]  # of each tensor, as stored
  ours: tuple[int, ...]  # of each tensor, here

  @property
  def reshaped(self) -> bool:
    """Return whether axes are cut or merged, besides being transposed."""
    return len(self.ours) != len(self.shape)



def turned(tensor, transposed: bool, shape: tuple[int, ...]):
  """Return a tensor as it stands on the other side: here, or where it is stored."""
  if transposed:
    tensor = tensor.reshape(tensor.shape[0], -1).T
  return tensor.reshape(shape)


def is_buffer(tensor: str) -> bool:
  """Return whether a stored tensor is derived, not learned: old rotary frequencies."""
  return tensor.endswith('rotary_emb.inv_freq')


def canonical(tensor: str) -> str:
  """Return the hub's name of a stored tensor of a vision-language model."""
  for theirs, name in _PREFIXES:
    if tensor.startswith(theirs):
      return name + tensor.removeprefix(theirs)
  return tensor


def parameters(policy: Policy) -> list[Parameter]:
  """Return one Parameter per leaf of a policy, real or abstract, in leaf order.

  Raises:
    ValueError: a parameter without a place in this layout; names it.
  """
  return [_parameter(path, leaf, policy.config)
          for path, leaf in jax.tree_util.tree_leaves_with_path(policy)]


def adapters(trained: Policy) -> list[Parameter]:
  """Return one Parameter per adapter of a policy, named as PEFT does."""
  found = [_parameter(path, leaf, trained.config, _ADAPTERS)
           for path, leaf in jax.tree_util.tree_leaves_with_path(trained)]
  return [parameter._replace(tensors=tuple(
    f'base_model.model.{tensor}' for tensor in parameter.tensors))
    for parameter in found]


def module(name: str) -> str:
  """Return transformers' name of the module that holds a block's matrix."""
  return _LAYERED[name][0].split('.')[-2]


def _parameter(path, leaf, config: PolicyConfig, layered=_LAYERED) -> Parameter:
  names = [getattr(key, 'name', None) for key in path]
  whole, prefix, layers = _WHOLE, 'model.layers', config.layers
  if visual := names[0] == 'vision':
    whole, layered, names = _VISION, _VISION_LAYERED, names[1:]
    prefix, layers = 'visual.blocks', config.vision.layers
  stacked, name = names[0] == 'blocks', names[-2] if len(names) > 1 else None
  known = layered if stacked and len(names) == 3 else whole
  if name not in known:
    raise ValueError(f'parameter {jax.tree_util.keystr(path)} has no place in a '
                     'Hugging Face checkpoint')
  tensor, transposed = known[name]
  ours = tuple(leaf.shape)[1 if stacked else 0:]
  tensors = (tuple(f'{prefix}.{i}.{tensor}' for i in range(layers))
             if stacked else (tensor,))
  shape = ours[::-1] if transposed else ours
  if visual:
    shape = _stored_shape(name, ours, config) or shape
    name = f'vision.{name}'
  return Parameter(name, tensors, stacked, transposed, shape, ours)


def _stored_shape(name: str, ours: tuple[int, ...], config: PolicyConfig):
  """Return the stored shape where it is not ours, maybe transposed; else None."""
  size = config.vision.patch_size
  return {
    'patch': (config.vision.width, config.vision.channels,
              config.vision.temporal_patch_size, size, size),
    'qkv': (3 * config.vision.width, config.vision.width),
    'qkv_bias': (3 * config.vision.width,),
  }.get(name)
