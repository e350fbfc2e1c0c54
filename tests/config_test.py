"""The policy's configuration: what it refuses, and what it counts."""

import dataclasses

import jax
import pytest

from configs import models
from lpo_jax import policy as policies
from tests import tiny


@pytest.mark.parametrize(('wrong', 'value', 'remedy'), [
  (dict(kv_heads=3), 'kv_heads=3 does not divide heads=4', 'whole number'),
  (dict(head_dim=7), 'head_dim=7', 'need it even'),
  (dict(dtype='float8'), "policy.dtype='float8'", 'float32, bfloat16, float16'),
  (dict(param_dtype='int8'), "policy.param_dtype='int8'", 'float32, bfloat16, float16'),
  (dict(remat='some'), "policy.remat='some'", 'none, dots, full'),
  (dict(sliding_window=0), 'policy.sliding_window=0', 'or None'),
])
def test_error_names_the_value_and_the_remedy(wrong, value, remedy):
  with pytest.raises(ValueError) as error:
    policies.PolicyConfig(**{**tiny.SIZES, **wrong})
  assert value in str(error.value)
  assert remedy in str(error.value)


def test_unknown_rope_scaling_names_the_value_and_the_remedy():
  with pytest.raises(ValueError, match="kind='yarn': choose linear or llama3"):
    policies.RopeScaling('yarn')


@pytest.mark.parametrize('switches', [
  dict(), dict(tied_embeddings=True), dict(kv_heads=1), dict(heads=2, head_dim=4),
  dict(qkv_bias=True, qk_norm=True)])
def test_matmul_params_are_the_matrices_of_a_real_policy(switches):
  policy = tiny.shapes(policies.PolicyConfig(**{**tiny.SIZES, **switches}))
  matrices = [leaf.size for leaf in jax.tree.leaves(policy.blocks) if leaf.ndim == 3]
  output = policy.embedding if policy.config.tied_embeddings else policy.unembedding
  count = sum(matrices) + jax.tree.leaves(output)[0].size
  assert policy.config.matmul_params_per_token == count


@pytest.mark.parametrize('name', models.POLICIES)
def test_named_policies_are_frozen_and_hashable(name):
  config = models.POLICIES[name]
  hash(config)  # a policy's configuration is part of a compiled program's identity
  with pytest.raises(dataclasses.FrozenInstanceError):
    config.width = 1
