"""The matrix product of every layer, with its gradients in the order matmuls like.

JAX's own rule for the weight's gradient gives (dy^T x)^T, for which XLA on CPU first
writes transposed copies of activations: a quarter of the time of an update. Here

  y = x W        dx = dy W^T        dW = x^T dy

are each one product over rows [B K N, D] as they lie in memory, see `over_rows`.
Weights are cast to the dtype of x; sums are float32 inside the product.
"""

import functools

import jax
import jax.numpy as jnp

from lpo_jax.types import Array


@jax.custom_vjp
def linear(x: Array, weight: Array) -> Array:
  """Return x W.

  Args:
    x: [..., D].
    weight: [D, F], of any float dtype.

  Returns:
    [..., F] in the dtype of `x`.
  """
  return x @ weight.astype(x.dtype)


def _forward(x, weight):
  return linear(x, weight), (x, weight)


def _backward(saved, dy):
  x, weight = saved
  dx = jax.lax.dot_general(
    dy, weight.astype(dy.dtype), (((dy.ndim - 1,), (1,)), ((), ())))
  dw = over_rows(x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1]))
  return dx, dw.astype(weight.dtype)


linear.defvjp(_forward, _backward)


def turned(x: Array, weight: Array, dtype=None) -> Array:
  """Return x W, given W^T, for the few rows of a decoding step on a CPU.

  As (W^T x^T)^T: for x W each call lays all of W out anew for the fast product, which
  takes up to as long as the product itself where rows are few. W^T lies right as it
  is, and x^T is small.

  Args:
    x: [..., D].
    weight: [F, D], of any float dtype.
    dtype: of the sums and the result; None for that of `x`.

  Returns:
    [..., F].
  """
  rows, weight = x.reshape(-1, x.shape[-1]), weight.astype(x.dtype)
  product = functools.partial(jnp.matmul, preferred_element_type=dtype)
  if len(rows) == 1:
    y = product(rows, weight.T)
  else:  # the barriers keep XLA from turning the product back
    own = jax.lax.optimization_barrier
    y = own(product(weight, own(rows.T))).T
  return y.reshape(*x.shape[:-1], -1)


def over_rows(x: Array, y: Array) -> Array:
  """Return x^T y, a sum over the rows of both.

  On CPU a transposed copy of the narrower one is written first: XLA's fast products are
  those whose left factor lies row by row, and the copy costs less than they save.

  Args:
    x: [..., M, D].
    y: [..., M, F], of the same dtype.

  Returns:
    f32[..., D, F].
  """
  return jax.lax.platform_dependent(x, y, cpu=_turned_first, default=_in_place)


def _in_place(x, y):
  return jnp.einsum('...md,...mf->...df', x, y, preferred_element_type=jnp.float32)


def _turned_first(x, y):
  if x.shape[-1] > 2 * y.shape[-1]:  # else x, which other products share
    return jax.lax.optimization_barrier(_turned_first(y, x)).mT
  return jnp.matmul(jax.lax.optimization_barrier(x.mT), y,
                    preferred_element_type=jnp.float32)
