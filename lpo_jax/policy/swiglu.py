"""The gated activation of the MLP (Shazeer 2020, arXiv:2002.05202) and its gradient.

  h = g sigmoid(g) u        du = dh g sigmoid(g)
                            dg = dh u sigmoid(g) (1 + g (1 - sigmoid(g)))

Written out so that the backward pass keeps g and u alone, and reads them once: JAX's
own rule keeps four arrays of the MLP's width, the widest there are.
"""

import jax

from lpo_jax.types import Array


@jax.custom_vjp
def swiglu(gate: Array, up: Array) -> Array:
  """Return silu(gate) * up; all of one shape and dtype."""
  return jax.nn.silu(gate) * up


def _forward(gate, up):
  return swiglu(gate, up), (gate, up)


def _backward(saved, dy):
  gate, up = saved
  sigmoid = jax.nn.sigmoid(gate)
  slope = sigmoid * (1 + gate * (1 - sigmoid))
  return dy * up * slope, dy * gate * sigmoid


swiglu.defvjp(_forward, _backward)
