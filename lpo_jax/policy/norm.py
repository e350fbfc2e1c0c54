"""Root-mean-square normalisation (Zhang and Sennrich 2019) and its gradient.

  n = x / sqrt(mean(x^2) + eps)       y = n w
  dx = (g - n mean(g n)) / sqrt(..)   with g = w dy,       dw = sum dy n

Written out because the means are products of two vectors, which run ten times faster
on CPU as matrix products than as the fused reductions that JAX's own rule leaves.
All in float32; the result has the dtype of x.
"""

import functools

import jax
import jax.numpy as jnp

from lpo_jax.types import Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def rms_norm(x: Array, weight: Array, eps: float) -> Array:
  """Normalise the last axis by its root mean square.

  Args:
    x: [..., D].
    weight: [D].
    eps: added to the mean square.
  """
  return _forward(x, weight, eps)[0]


def _forward(x, weight, eps):
  y = x.astype(jnp.float32)
  scale = jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
  y = y * scale * _along_last(weight, y.ndim)
  return y.astype(x.dtype), (x, scale, weight)


def _backward(eps, saved, dy):
  x, scale, weight = saved
  dy = dy.astype(jnp.float32)
  normal = x.astype(jnp.float32) * scale
  slope = dy * _along_last(weight, dy.ndim)
  mean = vector_product(slope, normal)[..., None] / x.shape[-1]
  dweight = jnp.sum(dy * normal, axis=tuple(range(dy.ndim - 1)))
  return (((slope - normal * mean) * scale).astype(x.dtype),
          dweight.astype(weight.dtype))


rms_norm.defvjp(_forward, _backward)


def vector_product(a: Array, b: Array) -> Array:
  """Return f32[...], the products of vectors along the last axes of [..., D]."""
  return jnp.einsum('...d,...d->...', a, b, precision='highest',
                    preferred_element_type=jnp.float32)


def _along_last(vector: Array, ndim: int) -> Array:
  return vector.astype(jnp.float32).reshape((1,) * (ndim - 1) + vector.shape)
