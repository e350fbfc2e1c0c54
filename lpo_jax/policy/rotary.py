"""Rotary position embedding: angles from positions, and the rotation (Su et al. 2021).

Pairs are (i, i + d / 2), as in GPT-NeoX and every Hugging Face checkpoint. Frequencies
and angles are float32 whatever the model's dtype: at position 30 000 a bfloat16 angle
would be wrong by whole turns.
"""

import jax.numpy as jnp

from lpo_jax.policy.config import PolicyConfig
from lpo_jax.types import Array


def angles(positions: Array, config: PolicyConfig) -> tuple[Array, Array]:
  """Return cos and sin of the rotary angles, f32[..., head_dim / 2]."""
  exponent = jnp.arange(0, config.head_dim, 2, dtype=jnp.float32) / config.head_dim
  frequency = config.rope_theta ** -exponent
  if (scaling := config.rope_scaling) is not None:
    slow = frequency / scaling.factor
    if scaling.kind == 'linear':
      frequency = slow
    else:  # llama3: keep short wavelengths, stretch long ones, blend between
      turns = scaling.original_max_position * frequency / (2 * jnp.pi)
      low, high = scaling.low_freq_factor, scaling.high_freq_factor
      blend = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
      frequency = (1 - blend) * slow + blend * frequency
  frequency = frequency.reshape((1,) * positions.ndim + frequency.shape)
  angles = positions[..., None].astype(jnp.float32) * frequency
  return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Array, cos: Array, sin: Array) -> Array:
  """Rotate x [..., heads, d] by angles [..., d / 2], halves paired (GPT-NeoX form)."""
  a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  cos, sin = cos[..., None, :], sin[..., None, :]
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)
