"""What is compiled ahead is what the sampler calls, and returns what it says."""

import jax
import numpy as np
import pytest

from lpo_jax import sampler, sampler_programs, sharding
from tests import tiny

SETTINGS = dict(samples_per_prompt=2, temperature=0.7, stop_tokens=(3, 5), top_k=0,
                top_p=0.9, pad_token=1, chunk=3, unroll=True)


@pytest.mark.parametrize('new', [1, 3])
def test_sampling_compiles_nothing_that_was_compiled_ahead(new):
  mesh = sharding.make_mesh((2, 1, 1))
  policy = jax.device_put(tiny.policy(), sharding.replicated(mesh))
  tokens, mask = tiny.prompts((4, 1))
  prompt, mask, rows, limits = sharding.shard_batch(
    (tokens, mask, np.arange(2, dtype=np.int32), np.full(2, new, np.int32)), mesh)
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), policy)
  compiled = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda event, _, fun_name='', **__: compiled.append(fun_name)
    if event.endswith('backend_compile_duration') else None)
  with jax.set_mesh(mesh):
    expected = sampler_programs.compile_first(
      shapes, prompt, mask, jax.random.key(0), rows, limits, max_new_tokens=new,
      **SETTINGS)
    mine = {'jit(begin)'} | ({'jit(decode)'} if new > 1 else set())
    assert mine == {'jit(begin)', 'jit(decode)'} & set(compiled)
    compiled.clear()
    found = sampler.sample(policy, prompt, mask, jax.random.key(1), row_ids=rows,
                           limits=limits, max_new_tokens=new, **SETTINGS)
  assert not {'jit(begin)', 'jit(decode)'} & set(compiled)
  for made, said in zip((found.response, found.response_mask, found.logprobs), expected,
                        strict=True):
    assert (made.shape, made.dtype) == (said.shape, said.dtype)
    assert made.sharding == said.sharding
