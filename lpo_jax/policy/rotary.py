"""Rotary position embedding: angles from positions, and the rotation (Su et al. 2021).

Pairs are (i, i + d / 2), as in GPT-NeoX and every Hugging Face checkpoint. Frequencies
and angles are float32 whatever the model's dtype: at position 30 000 a bfloat16 angle
would be wrong by whole turns.
"""

import jax
import jax.numpy as jnp
import numpy as np

from lpo_jax.policy.config import PolicyConfig
from lpo_jax.types import Array


def frequencies(config: PolicyConfig) -> np.ndarray:
  """Return the turns of each pair in radians a position, f32[head_dim / 2]."""
  frequency = config.rope_theta ** -(np.arange(0, config.head_dim, 2) / config.head_dim)
  if (scaling := config.rope_scaling) is not None:
    slow = frequency / scaling.factor
    if scaling.kind == 'linear':
      frequency = slow
    else:  # llama3: keep short wavelengths, stretch long ones, blend between
      turns = scaling.original_max_position * frequency / (2 * np.pi)
      low, high = scaling.low_freq_factor, scaling.high_freq_factor
      blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
      frequency = (1 - blend) * slow + blend * frequency
  return frequency.astype(np.float32)


def angles(positions: Array, config: PolicyConfig,
           limit: int | None = None) -> tuple[Array, Array]:
  """Return cos and sin of the rotary angles, f32[..., head_dim / 2].

  Args:
    positions: [...], from 0.
    config: of the policy.
    limit: a number above every position, if one is known. Then they are looked up in
      a constant table; otherwise XLA would compute them again in every layer and head.
  """
  frequency = frequencies(config)
  if limit is not None:
    table = np.arange(limit, dtype=np.float32)[:, None] * frequency
    return jnp.asarray(np.cos(table))[positions], jnp.asarray(np.sin(table))[positions]
  frequency = frequency.reshape((1,) * jnp.ndim(positions) + frequency.shape)
  angle = positions[..., None].astype(jnp.float32) * frequency
  return jnp.cos(angle), jnp.sin(angle)


def sectioned_angles(positions: Array, config: PolicyConfig,
                     limit: int | None = None) -> tuple[Array, Array]:
  """Return cos and sin of three-part positions, f32[..., head_dim / 2].

  Of a head's pairs the first `rope_sections[0]` turn by the frame, the next by the row,
  the rest by the column (Qwen2-VL, arXiv:2409.12191).

  Args:
    positions: i32[3, ...].
    config: of the policy.
    limit: see `angles`.
  """
  def choose(x):
    cuts = np.cumsum(config.rope_sections)[:-1].tolist()
    return jnp.concatenate([part[i] for i, part in enumerate(
      jnp.split(x, cuts, axis=-1))], axis=-1)

  cos, sin = angles(positions, config, limit)
  return choose(cos), choose(sin)


@jax.custom_vjp
def rotate(x: Array, cos: Array, sin: Array) -> Array:
  """Rotate x [..., heads, d] by angles [..., d / 2], halves paired (GPT-NeoX form).

  Its gradient is the rotation back; none flows into the angles.
  """
  a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  cos, sin = cos[..., None, :], sin[..., None, :]
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)


def _forward(x, cos, sin):
  return rotate(x, cos, sin), (cos, sin)


def _backward(angles, dy):
  cos, sin = angles
  return rotate(dy, cos, -sin), None, None


rotate.defvjp(_forward, _backward)
