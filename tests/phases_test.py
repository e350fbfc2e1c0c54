"""Phase timings add up, and the watchdog speaks when and only when it should."""

import threading
import time

import pytest
from absl import logging

from lpo_jax import phases


@pytest.fixture
def warnings(monkeypatch):
  said = []
  monkeypatch.setattr(logging, 'warning', lambda text, *args: said.append(text % args))
  return said


def test_seconds_of_a_phase_add_up_until_flushed():
  timer = phases.Phases(limit_s=None)
  for _ in range(2):
    with timer('sample'):
      time.sleep(0.02)
  with timer('update'):
    pass
  first = timer.flush()
  assert set(first) == {'timing_s/sample', 'timing_s/update'}
  assert 0.04 <= first['timing_s/sample'] < 0.4
  assert first['timing_s/update'] < 0.02
  assert timer.flush() == {}


def test_a_phase_includes_those_inside_it():
  timer = phases.Phases(limit_s=None)
  with timer('step'):
    with timer('sample'):
      time.sleep(0.02)
  seconds = timer.flush()
  assert seconds['timing_s/step'] >= seconds['timing_s/sample'] >= 0.02


def test_a_phase_that_raises_is_closed_and_counted():
  timer = phases.Phases(limit_s=None)
  with pytest.raises(KeyError), timer('grade'):
    raise KeyError('x')
  assert 'timing_s/grade' in timer.flush()


def _stay_in_this_function(seconds):
  time.sleep(seconds)


def test_watchdog_names_the_innermost_slow_phase_and_where_it_is(warnings):
  timer = phases.Phases(limit_s=0.1, poll_s=0.01)
  with timer('step'), timer('sample'):
    _stay_in_this_function(0.3)
  timer.close()
  assert warnings
  assert "phase 'sample'" in warnings[0]
  assert 'limit_s=0.1' in warnings[0]
  assert '_stay_in_this_function' in warnings[0]


def test_watchdog_speaks_once_per_doubling_of_the_age(warnings):
  timer = phases.Phases(limit_s=0.1, poll_s=0.01)
  with timer('update'):
    time.sleep(0.7)  # at 0.1, 0.2 and 0.4 s
  timer.close()
  assert len(warnings) == 3


def test_watchdog_is_silent_about_many_short_phases(warnings):
  timer = phases.Phases(limit_s=0.2, poll_s=0.01)
  for _ in range(10):
    with timer('sample'):
      time.sleep(0.03)
  timer.close()
  assert not warnings


def test_close_stops_the_thread():
  before = set(threading.enumerate())  # another test's may still be there
  timer = phases.Phases(limit_s=10.0, poll_s=0.01)
  mine = set(threading.enumerate()) - before
  assert [t.name for t in mine] == ['phase_watchdog']
  timer.close()
  assert not mine & set(threading.enumerate())


def test_a_limit_that_is_not_positive_is_refused():
  with pytest.raises(ValueError, match='limit_s=0'):
    phases.Phases(limit_s=0)
