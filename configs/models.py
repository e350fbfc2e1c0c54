"""Policies by name: sizes and switches of each decoder.

Small ones are trained from scratch; `vocab_size` 116 is the embedded vocabulary's. The
backbones stand at their published sizes, with random weights: for `--mode=compile` and
benchmarks. Their weights come from a Hugging Face folder or hub id, `policy.path`.
"""

import dataclasses

from lpo_jax.policy import PolicyConfig, RopeScaling, VisionConfig

_QWEN3 = PolicyConfig(
  vocab_size=151936, width=2048, layers=28, heads=16, kv_heads=8, head_dim=128,
  mlp_width=6144, qk_norm=True, tied_embeddings=True, rope_theta=1e6, norm_eps=1e-6,
  dtype='bfloat16')
_QWEN25 = PolicyConfig(
  vocab_size=151936, width=1536, layers=28, heads=12, kv_heads=2, head_dim=128,
  mlp_width=8960, qkv_bias=True, tied_embeddings=True, rope_theta=1e6, norm_eps=1e-6,
  dtype='bfloat16')
_LLAMA = PolicyConfig(
  vocab_size=128256, width=4096, layers=32, heads=32, kv_heads=8, head_dim=128,
  mlp_width=14336, tied_embeddings=False, rope_theta=5e5, norm_eps=1e-5,
  rope_scaling=RopeScaling('llama3', factor=8.0, low_freq_factor=1.0,
                           high_freq_factor=4.0, original_max_position=8192),
  dtype='bfloat16')

POLICIES = {
  # The demonstration policy: 0.6 M parameters.
  'countdown_small': PolicyConfig(
    vocab_size=116, width=128, layers=4, heads=4, kv_heads=2, head_dim=32,
    mlp_width=256, qk_norm=True),
  # A quarter of it, 0.16 M: does what is found hold at another size?
  'countdown_narrow': PolicyConfig(
    vocab_size=116, width=64, layers=4, heads=4, kv_heads=2, head_dim=16, mlp_width=128,
    qk_norm=True),
  # Smaller still, for tests.
  'countdown_tiny': PolicyConfig(
    vocab_size=116, width=32, layers=2, heads=2, kv_heads=1, head_dim=16,
    mlp_width=64, qk_norm=True),
  # The same with the vocabulary of experiments/samples/bytes.
  'bytes_tiny': PolicyConfig(
    vocab_size=260, width=64, layers=2, heads=2, kv_heads=1, head_dim=32,
    mlp_width=128, qk_norm=True),
  # Reads drawn figures, with the vocabulary of experiments/samples/figures.
  'figures_small': PolicyConfig(
    vocab_size=64, width=64, layers=2, heads=4, kv_heads=2, head_dim=16, mlp_width=128,
    qkv_bias=True, tied_embeddings=True, rope_sections=(2, 3, 3),
    vision=VisionConfig(width=64, layers=2, heads=4, mlp_width=128, patch_size=24,
                        temporal_patch_size=1, merge_size=1, window_size=48,
                        full_blocks=(1,), image_token=3, start_token=2)),
  # Qwen3's shape at benchmark size: 4.85 M parameters.
  'bench': PolicyConfig(
    vocab_size=512, width=256, layers=6, heads=8, kv_heads=4, head_dim=32,
    mlp_width=768, qk_norm=True, tied_embeddings=True, rope_theta=1e6, unroll=True),
  'qwen3_0.6b': dataclasses.replace(_QWEN3, width=1024, mlp_width=3072),
  'qwen3_1.7b': _QWEN3,
  'qwen3_4b': dataclasses.replace(_QWEN3, width=2560, layers=36, heads=32,
                                  mlp_width=9728),
  'qwen3_8b': dataclasses.replace(_QWEN3, width=4096, layers=36, heads=32,
                                  mlp_width=12288, tied_embeddings=False),
  'qwen3_14b': dataclasses.replace(_QWEN3, width=5120, layers=40, heads=40,
                                   mlp_width=17408, tied_embeddings=False),
  'qwen2.5_1.5b': _QWEN25,
  'qwen2.5_vl_3b': dataclasses.replace(
    _QWEN25, width=2048, layers=36, heads=16, mlp_width=11008,
    rope_sections=(16, 24, 24), vision=VisionConfig()),
  'qwen2.5_7b': dataclasses.replace(_QWEN25, vocab_size=152064, width=3584, heads=28,
                                    kv_heads=4, mlp_width=18944,
                                    tied_embeddings=False),
  'deepseek_r1_qwen_1.5b': dataclasses.replace(_QWEN25, tied_embeddings=False,
                                               rope_theta=1e4),
  'llama3.1_8b': _LLAMA,
  'mistral_7b_v0.1': dataclasses.replace(_LLAMA, vocab_size=32000, rope_theta=1e4,
                                         rope_scaling=None, sliding_window=4096),
}
