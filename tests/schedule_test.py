"""Schedules begin, move and end where they say, and refuse what cannot be."""

import math

import jax
import pytest

from lpo_jax import schedule


@pytest.mark.parametrize('shape', schedule.SHAPES)
def test_a_schedule_goes_from_start_to_end_and_stays(shape):
  value = jax.jit(schedule.Schedule(0.2, 1.0, 10, shape))
  found = [float(value(step)) for step in range(15)]
  assert found[0] == pytest.approx(0.2) and found[10:] == pytest.approx([1.0] * 5)
  assert found[5] == pytest.approx(0.6)  # both are half way half way
  expected = 0.3 if shape == 'linear' else 0.1 * (1 - math.cos(math.pi / 4)) * 2
  quarter = float(schedule.Schedule(0.0, 0.4, 8, shape)(2))
  assert quarter == pytest.approx(0.1 if shape == 'linear' else expected)
  assert all(found[i] < found[i + 1] for i in range(10))


def test_without_an_end_it_does_not_move():
  assert float(schedule.Schedule(0.3)(0)) == float(schedule.Schedule(0.3)(99))


@pytest.mark.parametrize(('arguments', 'message'), [
  ((2.0,), r'mix=2.0: must lie between 0 and 1'),
  ((0.5, math.nan, 3), r'mix=nan: must lie'),
  ((0.0, 1.0), r'mix goes from 0.0 to 1.0 in schedule_steps=0: give both'),
  ((0.0, None, 5), r'schedule_steps=5'),
  ((0.0, 1.0, -5), r'schedule_steps=-5'),
  ((0.0, 1.0, 5, 'step'), r"schedule='step': choose one of linear, cosine"),
])
def test_what_cannot_be_is_named(arguments, message):
  with pytest.raises(ValueError, match=message):
    schedule.Schedule(*arguments).check('mix', 0, 1)
