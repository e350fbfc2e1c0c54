"""What is cut up comes back, each piece once; short responses share microbatches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import shapes
from lpo_jax import cut, sharding
from lpo_jax.types import Rollouts
from tests import tiny

_LENGTHS, _SAMPLES, _WIDTH = (1, 6, 3, 3, 2, 5, 4, 1), 4, 5
_KEEP = np.array([1, 1, 0, 1, 1, 1, 1, 0], bool)
_CUTS = pytest.mark.parametrize('micro', [(1, 0), (2, 0), (2, 2)], ids=str)


def _rollouts() -> Rollouts:
  return tiny.rollouts(_LENGTHS, _SAMPLES, _WIDTH, 14, 0)


def _plan(micro, pack, keep=_KEEP):
  return cut.plan(_rollouts(), jnp.asarray(keep), *micro, pack)


@pytest.mark.parametrize(('micro', 'shards'), [
  ((1, 0), 1), ((2, 0), 1), ((2, 2), 1), ((2, 0), 2), ((2, 2), 2)], ids=str)
@pytest.mark.parametrize('pack', [1, 3])
def test_what_is_cut_comes_back(micro, pack, shards):
  x = np.random.default_rng(0).normal(size=(8, _SAMPLES, 2)).astype(np.float32)
  with jax.set_mesh(sharding.make_mesh((1, shards, 1))):
    units = _plan(micro, pack)
    back = units.join(units.responses(jnp.asarray(x)))
  np.testing.assert_array_equal(back, x if pack == 1 else x * _KEEP[:, None, None])


@_CUTS
def test_a_response_keeps_its_prompt_and_its_place(micro):
  rollouts, taken = _rollouts(), micro[1] or _SAMPLES
  units = _plan(micro, 3)
  found = units(rollouts)
  here = np.asarray(units.prompts(jnp.asarray(_KEEP)))
  names = np.asarray(units.prompts(jnp.arange(8)))
  seen = []
  for unit, place in zip(*np.nonzero(here), strict=True):
    group = names[unit, place]
    np.testing.assert_array_equal(found.prompt[unit, place], rollouts.prompt[group])
    cuts = rollouts.response[group].reshape(-1, taken, _WIDTH)
    where = [i for i, part in enumerate(cuts)
             if np.array_equal(part, found.response[unit, place])]
    seen.append((int(group), where[0]))
  assert sorted(seen) == [(group, i) for group in np.flatnonzero(_KEEP)
                          for i in range(_SAMPLES // taken)]
  assert not found.prompt_mask[~here].any() and not found.response_mask[~here].any()


@_CUTS
def test_a_microbatch_never_holds_more_tokens_than_it_has_places(micro):
  for seed in range(5):
    rng = np.random.default_rng(seed)
    mask = np.arange(_WIDTH) < rng.integers(1, _WIDTH + 1, (8, _SAMPLES, 1))
    rollouts = _rollouts().replace(response_mask=mask)
    units = cut.plan(rollouts, jnp.ones(8, bool), *micro, 3)
    found = units(rollouts)
    own = np.asarray(found.response_mask.sum((1, 2, 3)))
    assert (own + found.prompt_mask.sum((1, 2)) <= units.room[0]).all()
    assert (own <= units.room[1]).all()


@pytest.mark.parametrize('micro', [1, 2])
def test_a_heavy_tail_leaves_under_a_tenth_of_the_places_empty(micro):
  lengths = shapes.heavy_tailed(64, 8, 256)
  mask = np.arange(256) < lengths[..., None]
  rollouts = Rollouts(np.zeros((64, 32), np.int32), np.ones((64, 32), bool),
                      np.zeros(mask.shape, np.int32), mask, np.zeros(mask.shape))
  units = cut.plan(rollouts, jnp.ones(64, bool), micro, 0, 6)
  live = int(np.asarray(units.prompts(jnp.ones(64, bool))).any(1).sum())
  padding = 1 - (lengths.sum() + 64 * 32) / (live * units.places)
  assert padding < 0.1 < 1 - (lengths.sum() + 64 * 32) / (64 // micro * units.places)
