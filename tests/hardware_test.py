"""Devices are found by the names JAX gives them, and never guessed."""

import pytest

from configs import meshes
from lpo_jax import hardware


@pytest.mark.parametrize('kind,name', [
  ('TPU v4', 'TPU v4'), ('TPU v5 lite', 'TPU v5e'), ('TPU v5', 'TPU v5p'),
  ('TPU v5p', 'TPU v5p'), ('TPU v6 lite', 'TPU v6e'),
  ('NVIDIA A100-SXM4-80GB', 'A100 80 GB'), ('NVIDIA H100 80GB HBM3', 'H100 80 GB'),
  ('NVIDIA H200', 'H200 141 GB'), ('H200 141 GB', 'H200 141 GB')])
def test_a_device_is_found_by_its_kind(kind, name):
  assert hardware.chip(kind).name == name


@pytest.mark.parametrize('kind', ['cpu', 'TPU v3', 'NVIDIA T4', ''])
def test_an_unknown_device_is_not_guessed(kind):
  assert hardware.chip(kind) is None


def test_every_machine_of_the_presets_is_known():
  for name, machine in meshes.MESHES.items():
    assert machine.device == 'any' or hardware.chip(machine.device), name
