"""What every sampling of a run shares."""

import inspect

from lpo_jax import sampler, sampler_programs, sampling, sharding
from tests import tiny


def test_the_arguments_are_those_of_the_sampler_and_of_its_programs():
  config = sampling.SamplingConfig(samples_per_prompt=3, top_p=0.5)
  found = config.arguments(tiny.Tokenizer(3))
  assert found['samples_per_prompt'] == 3 and found['top_p'] == 0.5
  assert found['stop_tokens'] == (3,)
  first = inspect.signature(sampler_programs.compile_first).parameters
  assert set(found) == {name for name, parameter in first.items()
                        if parameter.kind is parameter.KEYWORD_ONLY}
  assert set(found) <= set(inspect.signature(sampler.sample).parameters)


def test_where_is_the_mesh_that_trains_unless_another_is_given():
  mesh = sharding.make_mesh((2, 1, 1))
  assert sampling.SamplingConfig().where(mesh) is mesh
  turned = sampling.SamplingConfig(mesh_shape=(1, 2, 1)).where(mesh)
  assert dict(turned.shape) == {'data': 1, 'fsdp': 2, 'tensor': 1}
  assert set(turned.devices.flat) == set(mesh.devices.flat)
  apart = sampling.SamplingConfig(mesh_shape=(3, 1, 2), apart=True).where(mesh)
  assert apart.size == 6 and not set(apart.devices.flat) & set(mesh.devices.flat)
