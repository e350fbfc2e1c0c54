"""Which tensor of a Hugging Face checkpoint is which parameter of the decoder.

The four families share one layout. torch's linear layers hold [out, in], this decoder
[in, out], so every matrix but the embedding is transposed; layers stand apart there
and are stacked on a leading axis here.
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


def is_buffer(tensor: str) -> bool:
  """Return whether a stored tensor is derived, not learned: old rotary frequencies."""
  return tensor.endswith('rotary_emb.inv_freq')


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
  stacked, name = names[0] == 'blocks', names[-2] if len(names) > 1 else None
  known = layered if stacked and len(names) == 3 else _WHOLE
  if name not in known:
    raise ValueError(f'parameter {jax.tree_util.keystr(path)} has no place in a '
                     'Hugging Face checkpoint')
  tensor, transposed = known[name]
  shape = tuple(leaf.shape)[1 if stacked else 0:]
  tensors = (tuple(f'model.layers.{i}.{tensor}' for i in range(config.layers))
             if stacked else (tensor,))
  shape = shape[::-1] if transposed else shape
  return Parameter(name, tensors, stacked, transposed, shape)
