"""The task's face: the verdict is reachable by the names other programs use."""

from lpo_jax import tasks
from lpo_jax.tasks import math_verdict


def test_the_verdict_is_the_one_of_math_verdict():
  assert tasks.math.verify is math_verdict.verify
  assert tasks.math.judge('5', '\\boxed{5}') == (1.0, '')
