"""Cores become devices unless told otherwise, and only where rows are enough."""

import os
import subprocess
import sys

import pytest

from lpo_jax import cores

_CHILD = """
import sys
from lpo_jax import cores
cores.offer()
import jax
print(len(jax.devices()), cores.count())
"""


def _child(**environment):
  given = {key: value for key, value in os.environ.items()
           if key not in ('XLA_FLAGS', 'JAX_NUM_CPU_DEVICES')}
  found = subprocess.run(
    [sys.executable, '-c', _CHILD], check=True, capture_output=True, text=True,
    env=given | {'JAX_PLATFORMS': 'cpu'} | environment)
  return tuple(map(int, found.stdout.split()))


def test_every_core_becomes_a_device():
  devices, count = _child()
  assert devices == count == cores.count()


@pytest.mark.parametrize('environment', [
  {'XLA_FLAGS': '--xla_force_host_platform_device_count=3'},
  {'JAX_NUM_CPU_DEVICES': '3'}])
def test_what_the_environment_says_stays(environment):
  assert _child(**environment)[0] == 3


@pytest.mark.parametrize(('prompts', 'samples', 'count', 'expected'), [
  (64, 8, 4, 4), (6, 32, 4, 3), (7, 64, 4, 1), (64, 8, 100, 8), (4, 8, 4, 1),
  (8, 8, 4, 2), (1, 1000, 4, 1)])
def test_rows_are_split_evenly_and_not_too_thin(monkeypatch, prompts, samples, count,
                                                expected):
  monkeypatch.setattr(cores, 'count', lambda: count)
  assert cores.split(prompts, samples) == expected  # eight devices are here


@pytest.mark.parametrize(('devices', 'count', 'expected'), [
  (2, 2, True), (8, 2, True), (1, 2, False), (2, 4, False), (1, 1, False)])
def test_one_device_is_not_a_core_of_several(monkeypatch, devices, count, expected):
  monkeypatch.setattr(cores, 'count', lambda: count)
  assert cores.are_devices(devices) == expected
