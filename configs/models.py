"""Policies by name: sizes and switches of each decoder.

Small ones are trained from scratch; `vocab_size` 116 is the embedded vocabulary's.
"""

from lpo_jax.policy import PolicyConfig

POLICIES = {
  # The demonstration policy: 0.6 M parameters.
  'countdown_small': PolicyConfig(
    vocab_size=116, width=128, layers=4, heads=4, kv_heads=2, head_dim=32,
    mlp_width=256, qk_norm=True),
  # Smaller still, for tests.
  'countdown_tiny': PolicyConfig(
    vocab_size=116, width=32, layers=2, heads=2, kv_heads=1, head_dim=16,
    mlp_width=64, qk_norm=True),
  # Qwen3's shape at benchmark size: 4.85 M parameters.
  'bench': PolicyConfig(
    vocab_size=512, width=256, layers=6, heads=8, kv_heads=4, head_dim=32,
    mlp_width=768, qk_norm=True, tied_embeddings=True, rope_theta=1e6),
}
