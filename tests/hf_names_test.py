"""Every stored tensor has one place, every parameter a name."""

import numpy as np
import pytest

from lpo_jax import policy as policies
from lpo_jax.policy import hf_names
from tests import tiny
from tests.parity import checkpoints


@pytest.mark.parametrize('family', checkpoints.FAMILIES)
def test_every_tensor_stands_transposed_in_its_layer(family, tmp_path):
  hf = checkpoints.config(family)
  weights = checkpoints.tensors(hf)
  policy = policies.from_pretrained(checkpoints.write(tmp_path, hf))
  np.testing.assert_array_equal(policy.embedding[...],
                                weights['model.embed_tokens.weight'])
  for ours, theirs in (('query', 'self_attn.q_proj'), ('key', 'self_attn.k_proj'),
                       ('value', 'self_attn.v_proj'), ('out', 'self_attn.o_proj'),
                       ('gate', 'mlp.gate_proj'), ('up', 'mlp.up_proj'),
                       ('down', 'mlp.down_proj')):
    for layer in range(2):
      np.testing.assert_array_equal(
        getattr(policy.blocks, ours)[...][layer],
        weights[f'model.layers.{layer}.{theirs}.weight'].T, err_msg=ours)
  assert hasattr(policy, 'unembedding') != hf.get('tie_word_embeddings', False)


def test_a_parameter_without_a_place_is_named():
  policy = tiny.policy().unstack()  # a copy
  policy.blocks = tiny.policy().blocks
  policy.adapter = policy.final_norm
  with pytest.raises(ValueError, match='adapter.* has no place'):
    hf_names.parameters(policy)


def test_unstacked_blocks_are_refused():
  with pytest.raises(ValueError, match='blocks.* has no place'):
    hf_names.parameters(tiny.policy().unstack())


def test_names_are_distinct_and_shapes_are_those_stored():
  hf = checkpoints.config('qwen2')
  policy = tiny.shapes(policies.PolicyConfig(
    vocab_size=48, width=24, layers=2, heads=4, kv_heads=2, head_dim=6, mlp_width=40,
    qkv_bias=True))
  found = {name: parameter.shape for parameter in hf_names.parameters(policy)
           for name in parameter.tensors}
  assert found == {name: w.shape for name, w in checkpoints.tensors(hf).items()}
