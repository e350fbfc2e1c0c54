"""Attention over parts equals one softmax over all their keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpo_jax.policy import attention

_B, _K, _N, _D = 2, 3, 4, 4
_attend = jax.jit(attention.attend)


def _normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _part(seed, heads, size, shared=False):
  """Return a part of `size` keys, about a third of them masked, never the first."""
  lead = (_B, heads) if shared else (_B * _K, heads)
  mask = np.random.default_rng(seed).uniform(size=(_B, _K, _N, size)) < 0.7
  mask[..., 0] = True
  keys, values = (_normal(seed + i, *lead, size, _D) for i in (1, 2))
  if shared:
    return attention.Part(keys, values, mask)
  return attention.Own(np.swapaxes(keys, -1, -2), values, mask)


def _queries(heads, group):
  return _normal(9, _B, _K, _N, heads, group, _D)


def _repeat(part):
  """Return a shared part as K equal copies, keys in slots."""
  if isinstance(part, attention.Own):
    return part
  keys, values = (jnp.repeat(x, _K, axis=0) for x in part[:2])
  return attention.Own(jnp.swapaxes(keys, -1, -2), values, part.mask)


def _one_softmax(queries, parts, xp=jnp):
  """Return attention over the parts' keys laid end to end."""
  keys, values, mask = zip(*(_repeat(part)[:3] for part in parts), strict=True)
  keys, values = xp.concatenate(keys, axis=3), xp.concatenate(values, axis=2)
  keys, values = (x.reshape(_B, _K, *x.shape[1:]) for x in (keys, values))
  mask = xp.concatenate([xp.broadcast_to(m, (_B, _K, _N, m.shape[-1])) for m in mask],
                        axis=3)
  scores = xp.einsum('bknhgd,bkhds->bknhgs', queries, keys) / queries.shape[-1] ** 0.5
  scores = xp.where(mask[:, :, :, None, None], scores, -xp.inf)
  weights = xp.exp(scores - scores.max(-1, keepdims=True))
  weights = weights / weights.sum(-1, keepdims=True)
  return xp.einsum('bknhgs,bkhsd->bknhgd', weights, values)


def _float64(tree):
  return jax.tree.map(
    lambda x: x if x.dtype == bool else np.asarray(x, np.float64), tree)


@pytest.mark.parametrize(('heads', 'group'), [(1, 1), (1, 3), (2, 1), (2, 2)])
def test_parts_merged_equal_one_softmax_in_float64(heads, group):
  queries = _queries(heads, group)
  parts = (_part(0, heads, 5, shared=True), _part(3, heads, 2), _part(6, heads, 4))
  expected = _one_softmax(_float64(queries), _float64(parts), np)
  np.testing.assert_allclose(_attend(queries, parts), expected, rtol=1e-5, atol=1e-5)


def test_huge_scores_stay_exact():
  rng = np.random.default_rng(0)
  queries = (2.0 * rng.integers(-99, 100, (_B, _K, _N, 1, 1, _D))).astype(np.float32)
  parts = tuple(part._replace(keys=np.round(40 * part.keys)) for part in
                (_part(0, 1, 5, shared=True), _part(3, 1, 4)))
  parts = (*parts, parts[0]._replace(values=-parts[0].values[:, :, ::-1]))  # ties
  scores = np.einsum('bknhgd,bhsd->bknhgs', queries, parts[0].keys) / 2
  assert np.abs(scores).max() > 1e4
  expected = _one_softmax(_float64(queries), _float64(parts), np)
  np.testing.assert_allclose(_attend(queries, parts), expected, rtol=1e-5, atol=1e-5)


def test_gradients_equal_those_of_one_softmax():
  queries, parts = _queries(2, 2), (_part(0, 2, 5, shared=True), _part(3, 2, 4))
  masks, weight = [part.mask for part in parts], _normal(5, *queries.shape)
  kinds = attention.Part, attention.Own

  def loss(attend, queries, arrays):
    parts = [kind(*kv, m) for kind, kv, m in zip(kinds, arrays, masks, strict=True)]
    return jnp.sum(weight * attend(queries, tuple(parts)))

  arrays = [part[:2] for part in parts]
  got, expected = (
    jax.jit(jax.grad(lambda *xs, f=f: loss(f, *xs), argnums=(0, 1)))(queries, arrays)
    for f in (attention.attend, _one_softmax))
  for a, b in zip(*map(jax.tree.leaves, (got, expected)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_shared_part_equals_its_repetition():
  queries, own = _queries(2, 2), _part(3, 2, 4)
  shared = _part(0, 2, 5, shared=True)
  np.testing.assert_allclose(
    _attend(queries, (shared, own)), _attend(queries, (_repeat(shared), own)),
    rtol=1e-6, atol=1e-6)


def test_order_of_keys_and_of_parts_does_not_matter():
  queries, parts = _queries(2, 2), (_part(0, 2, 5, shared=True), _part(3, 2, 4))
  order = np.array([3, 0, 2, 1])
  keys, values, mask = parts[1][:3]
  permuted = attention.Own(keys[..., order], values[..., order, :],
                           mask[..., order])
  np.testing.assert_allclose(_attend(queries, parts),
                             _attend(queries, (permuted, parts[0])),
                             rtol=1e-5, atol=1e-6)


def test_masked_keys_have_no_influence():
  queries, part = _queries(1, 2), _part(3, 1, 4)
  hidden = np.zeros_like(part.mask)
  hidden[..., 2] = True
  part = part._replace(mask=part.mask & ~hidden)
  changed = part._replace(keys=part.keys.copy(), values=part.values.copy())
  changed.keys[..., 2], changed.values[..., 2, :] = 1e4, 1e4
  np.testing.assert_array_equal(_attend(queries, (part,)), _attend(queries, (changed,)))


def test_result_has_the_dtype_of_the_queries():
  part = _part(3, 1, 4)
  queries, keys, values = (
    x.astype(jnp.bfloat16) for x in (_queries(1, 2), part.keys, part.values))
  low = _attend(queries, (part._replace(keys=keys, values=values),))
  assert low.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.asarray(low, np.float32),
                             _attend(_queries(1, 2), (part,)), atol=0.05)


def test_slots_that_count_in_scales_are_those_spread_out():
  queries, shared, own = _queries(2, 3), _part(0, 2, 5, shared=True), _part(3, 2, 4)
  scales = [np.abs(_normal(5 + i, _B * _K, 2, *shape)) for i, shape in
            enumerate(((1, 4), (4, 1)))]
  keys, values = (np.round(9 * x).astype(np.int8) for x in own[:2])
  wide = attention.Own(keys * scales[0], values * scales[1], own.mask)
  np.testing.assert_allclose(
    _attend(queries, (shared, attention.Own(keys, values, own.mask, *scales))),
    _attend(queries, (shared, wide)), rtol=1e-5, atol=1e-5)
