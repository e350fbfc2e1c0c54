"""The table names every baseline once, with choices that the mathematics knows."""

import numpy as np
import pytest

from lpo_jax import baselines, methods
from lpo_jax.types import Group


@pytest.mark.parametrize('name', methods.METHODS)
def test_a_method_is_whole(name):
  method = methods.METHODS[name]
  assert method.aggregation in baselines.AGGREGATIONS
  assert 0 < method.clip_low <= 1 and 0 < method.clip_high
  group = Group(None, None, None, np.array([1.0, 0, 0, 1, 0], np.float32), None,
                batch_mean=np.float32(0.3), batch_std=np.float32(0.5), step=0)
  advantage = np.asarray(method.advantage(group))
  assert advantage.shape == (5,) and advantage[0] > 0 > advantage[1]
  np.testing.assert_allclose(advantage.sum(), 0, atol=1e-5)
