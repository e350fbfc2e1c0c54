"""One token against NumPy: what is kept, its log-probability, and whose noise it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpo_jax import choices

_LOGITS = np.random.default_rng(0).normal(size=(2, 3, 11)).astype(np.float32)
_KEYS = jax.vmap(jax.random.split, (0, None))(jax.random.split(jax.random.key(0), 2), 3)


def _choose(position=0, **wanted):
  wanted = dict(temperature=1.0, stop_tokens=(), top_k=0, top_p=1.0) | wanted
  choice, settings = choices.settings(**wanted)
  return map(np.asarray, choices.choose(
    _KEYS, jnp.int32(position), jnp.asarray(_LOGITS), choice, **settings))


@pytest.mark.parametrize('wanted', [
  dict(), dict(temperature=0.5), dict(top_k=2), dict(top_p=0.6),
  dict(temperature=2.0, top_k=5, top_p=0.9)], ids=str)
def test_log_probabilities_are_those_of_what_is_kept(wanted):
  token, logprob = _choose(**wanted)
  for row in np.ndindex(2, 3):
    probs = np.exp(_LOGITS[row] / wanted.get('temperature', 1.0))
    order = np.argsort(-probs)[:wanted.get('top_k') or 11]
    probs = probs[order] / probs[order].sum()
    count = np.searchsorted(np.cumsum(probs), wanted.get('top_p', 1.0)) + 1
    kept = dict(zip(order[:count], probs[:count] / probs[:count].sum(), strict=False))
    assert token[row] in kept
    np.testing.assert_allclose(logprob[row], np.log(kept[token[row]]), atol=1e-5)


def test_noise_is_of_the_row_and_the_position():
  (token, _), (again, _), (later, _) = (_choose(position, temperature=9.0)
                                        for position in (0, 0, 1))
  np.testing.assert_array_equal(token, again)
  assert (token != later).any() and len(set(token.ravel())) > 1


def test_temperature_0_takes_the_most_likely():
  token, logprob = _choose(temperature=0)
  np.testing.assert_array_equal(token, _LOGITS.argmax(-1))
  assert not logprob.any()
