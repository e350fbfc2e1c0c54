"""A run's programs compile in threads while it warms up, samples and evaluates.

XLA compiles outside Python's lock, so the update is ready when the first batch is: JAX
keeps what `lower(...).compile()` made, and the later call with arguments of the same
shapes, dtypes and placements finds it. The programs, and so the numbers, are the same;
an argument that differs would only be compiled for again. Programs of many processes
are compiled where they are called, in the order that all processes share; so are those
of policies that read images, whose shapes the images decide, of parts of a batch, and
the updates of groups that are past, local or listed.
"""

import concurrent.futures

import jax
import numpy as np

from lpo_jax import (
  batches,
  build,
  hosts,
  programs,
  resharding,
  rollout,
  sampler_programs,
)
from lpo_jax.policy import lora
from lpo_jax.types import Groups, Rollouts

THREADS = 2


class Prepared:
  """Programs under way, by name, and the wait for them."""

  def __init__(self, phases):
    """Start the threads; `phases` counts the seconds waited as `compile`."""
    self._pool = concurrent.futures.ThreadPoolExecutor(THREADS, 'compile')
    self._phases, self._jobs = phases, {}

  def add(self, name: str, job, *after: str) -> None:
    """Run `job` in a thread once the earlier jobs named in `after` have ended."""
    before = [self._jobs[other] for other in after if other in self._jobs]

    def run():
      return job(*[other.result() for other in before])
    self._jobs[name] = self._pool.submit(run)

  def wait(self, *names: str) -> None:
    """Wait for some jobs, those that exist, or for all; raise what they raised."""
    jobs = [self._jobs[name] for name in names or self._jobs if name in self._jobs]
    if any(not job.done() for job in jobs):
      with self._phases('compile'):
        concurrent.futures.wait(jobs)
    for job in jobs:
      job.result()

  def close(self) -> None:
    """Drop what has not begun; what has begun ends by itself."""
    self._pool.shutdown(wait=False, cancel_futures=True)


def begin(config, parts: build.Parts, compiled: programs.Programs, phases,
          resumed: int | None) -> Prepared:
  """Start to compile what a run calls first, in the order in which it does.

  Args:
    config: of the run.
    parts: of the run.
    compiled: its programs.
    phases: timer.
    resumed: step of the checkpoint that it goes on from; None at the start.

  Returns:
    Prepared, with jobs `warm_start`, `sampler`, `update` and `certify`.
  """
  found = Prepared(phases)
  if not hosts.alone():
    return found
  mesh, state, first = parts.mesh, compiled.abstract, ()
  if parts.warmstart is not None and resumed is None:
    _, warm_step, opt_state = compiled.warm_start  # traced here, once
    params = lora.remove(state.params)

    def warm_start():
      batch = hosts.place(batches.warmstart_batch(config, parts, 0), mesh)
      with jax.set_mesh(mesh):
        warm_step.lower(params, opt_state, batch).compile()
    found.add('warm_start', warm_start)
    first = ('warm_start',)
  at_once = parts.sampling.prompts_at_once or config.prompts_per_step
  if (parts.policy_config.vision is not None or parts.lists is not None
      or at_once < config.prompts_per_step):
    return found

  def sampler(*_):
    with jax.set_mesh(mesh):
      return _groups(parts, batches.training_problems(config, parts, 1), state.params)

  def update(groups):
    with jax.set_mesh(mesh):
      compiled.update.lower(state, groups).compile()

  def certify(groups):
    with jax.set_mesh(mesh):
      compiled.certify.lower(state.params, state.step, groups).compile()

  found.add('sampler', sampler, *first)
  plain = not parts.staleness.off_policy and parts.step_level is None
  if plain and (resumed or 0) < config.num_steps:
    found.add('update', update, 'sampler')
    found.add('certify', certify, 'sampler')
  return found


def _groups(parts: build.Parts, problems, params) -> Groups:
  """Compile the sampler; return the groups of a step, some of it as shapes."""
  sampling, tokenizer, size = parts.sampling, parts.tokenizer, len(problems)
  onto = sampling.where(parts.mesh)
  encoded = rollout.encode(problems, tokenizer, sampling)
  inputs = hosts.place((
    encoded.tokens, encoded.mask, np.arange(size, dtype=np.int32),
    np.full(size, sampling.max_new_tokens, np.int32)), onto)
  if sampling.copy_weights:
    params = resharding.described(params, parts.mesh, onto)
  prompt, mask, row_ids, limits = inputs
  key = resharding.carried(jax.random.key(0), onto)
  with jax.set_mesh(onto):
    responses = sampler_programs.compile_first(
      params, prompt, mask, key, row_ids, limits, **sampling.arguments(tokenizer))
  rollouts = Rollouts(prompt, mask, *responses)
  if onto != parts.mesh:
    rollouts = jax.tree.map(lambda x: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=resharding.place(x.shape, parts.mesh)), rollouts)
  rewards, keep = hosts.place((
    np.zeros((size, sampling.samples_per_prompt), np.float32), np.ones(size, bool)),
    parts.mesh)
  return Groups(rollouts, rewards, rewards, keep)
