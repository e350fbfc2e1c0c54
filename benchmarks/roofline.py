"""How near prefill, decode and update come to what this device can do.

python -m benchmarks.roofline [--shape=W1,W2] [--platform=cuda] [--json=FILE]

Operations and bytes of a phase are counted from sizes (`lpo_jax.roofline`, whose bytes
are those of an accelerator: what a processor's cache keeps between two operations is
moved there, so small shapes can pass a CPU's bound). The peaks are measured in the same
process, between the same repetitions: square matmuls in the shape's type, and one added
to every element of a large array. `bound` is the least time the phase needs on such a
device, the larger of operations / matmul peak and bytes / copy peak; `of bound` is its
share of the time taken.
"""

import os
import statistics
import time

from benchmarks import processes, shapes, timing, update

COPY_MIB = {'cpu': 256, 'cuda': 4096, 'tpu': 1024}


def main() -> None:
  """Time what the command line asks for."""
  parser = timing.parser(__doc__, {})
  parser.add_argument('--micro_prompts', type=int, default=1,
                      help='groups to a microbatch of the update')
  parser.add_argument('--chunk', type=int, default=128,
                      help='tokens between two growths of the cache')
  args = parser.parse_args()
  names = timing.names_of(args)
  os.environ['JAX_PLATFORMS'] = args.platform
  from lpo_jax import allocator, cores

  allocator.keep_freed_memory()
  cores.offer()
  rows = [row for name in names for row in measure(name, args)]
  print(table(rows), timing.footer(args, rows), sep='\n')
  timing.write(args, 'roofline', rows)


def measure(name: str, args) -> list[dict]:
  """Return a row for each phase of a shape."""
  shape, policy = shapes.SHAPES[name], shapes.policy_config(name)
  jobs = phases(shape, policy, args.micro_prompts, args.chunk)
  jobs |= peaks(policy.dtype, args.platform)
  for once, _, _ in jobs.values():
    once()  # compiled
  runs = {job: [] for job in jobs}
  others = 0.0
  for rep in range(args.reps):
    for job in list(jobs)[::-1 if rep % 2 else 1]:
      processes.wait_until_quiet(args.quiet_s)
      busy, own = processes.busy_seconds(), time.process_time()
      start = time.perf_counter()
      jobs[job][0]()
      spent = time.perf_counter() - start
      own, busy = time.process_time() - own, processes.busy_seconds() - busy
      others = max(others, (busy - own) / spent)
      runs[job].append(spent)
  runs['decode'] = [whole - first for whole, first in
                    zip(runs['decode'], runs['prefill'], strict=True)]
  fastest = {job: jobs[job][i] / min(runs[job])
             for job, i in (('matmul', 1), ('copy', 2))}
  rows = []
  for job, (_, flops, moved) in jobs.items():
    if job in fastest:
      continue
    seconds = statistics.median(runs[job])
    if seconds <= 0:
      raise SystemExit(f'{name}: a rollout took no longer than its prefill; measure '
                       'again on an idle machine, or with more --reps')
    bound = max(flops / fastest['matmul'], moved / fastest['copy'])
    rows.append({
      'shape': name, 'phase': job, 'seconds': seconds,
      'gflops_per_s': flops / seconds / 1e9, 'gbytes_per_s': moved / seconds / 1e9,
      'matmul_peak_gflops_per_s': fastest['matmul'] / 1e9,
      'copy_peak_gbytes_per_s': fastest['copy'] / 1e9,
      'share_of_matmul': flops / seconds / fastest['matmul'],
      'share_of_copy': moved / seconds / fastest['copy'],
      'bound_s': bound, 'share_of_bound': bound / seconds,
      'limit': 'matmul' if flops / fastest['matmul'] >= bound else 'copy',
      'others_cores': others, 'runs_s': runs[job]})
  return rows


def phases(shape: shapes.Shape, policy, micro_prompts: int, chunk: int) -> dict:
  """Return phase -> do it once, its operations, its bytes.

  Doing `decode` once begins with the prefill, whose seconds `measure` takes off.
  """
  import dataclasses
  import itertools

  import jax
  import numpy as np

  from lpo_jax import roofline, sampler, sharding

  fields = dataclasses.asdict(policy)
  chunk = min(chunk, shape.new_tokens)
  setting = setting_of(shape, shapes.our_config(fields, shape.new_tokens),
                       micro_prompts, chunk)
  step, state = update.program(shape, fields, micro_prompts)
  batch = update.groups(shape, policy.vocab_size)
  copy, mesh = shapes.to_sample(fields, shape.new_tokens, shape.prompts, shape.samples)
  prompt = np.asarray(batch.rollouts.prompt)
  prompt, mask = sharding.shard_batch((prompt, np.ones(prompt.shape, bool)), mesh)
  seeds = itertools.count()

  def sample(new):
    with jax.set_mesh(mesh):
      return jax.block_until_ready(sampler.sample(
        copy, prompt, mask, jax.random.key(next(seeds)),
        samples_per_prompt=shape.samples, max_new_tokens=new, chunk=chunk,
        unroll=policy.unroll))

  def learn():
    nonlocal state
    state, metrics, _ = jax.block_until_ready(step(state, batch))
    update.check_taken(metrics)

  works = {'prefill': roofline.prefill(setting), 'decode': roofline.decode(setting),
           'update': roofline.update(setting)}
  once = {'prefill': lambda: sample(1), 'decode': lambda: sample(shape.new_tokens),
          'update': learn}
  return {name: (once[name], work.flops, work.moved) for name, work in works.items()}


def setting_of(shape: shapes.Shape, policy, micro_prompts: int, chunk: int):
  """Return the plain numbers of a shape's step on one device."""
  from lpo_jax import roofline

  large = policy.vocab_size > update.LARGE_VOCABULARY
  return roofline.Setting(
    policy=policy, prompts=shape.prompts, samples=shape.samples,
    prompt_width=shape.prompt_width, new_tokens=shape.new_tokens, chunk=chunk,
    micro_prompts=micro_prompts, micro_responses=0,
    logprob_chunk=update.LOGPROB_CHUNK if large else 0, minibatches=1, epochs=1,
    behavior_pass=False, moment_dtype='float32', data=1, fsdp=1, tensor=1)


def peaks(dtype: str, platform: str) -> dict:
  """Return `matmul` and `copy` in the form of `phases`."""
  import jax
  import jax.numpy as jnp

  wide = jnp.ones(COPY_MIB[platform] * 2**20 // 4, jnp.float32)
  add_one = jax.jit(lambda x: x + 1, donate_argnums=0)  # in place: no fresh pages

  def copy():
    nonlocal wide
    wide = jax.block_until_ready(add_one(wide))
  matmul, _ = timing.matmuls(dtype, platform)
  return {'matmul': (matmul, timing.matmul_flops(platform), 0.0),
          'copy': (copy, 0.0, 2.0 * wide.nbytes)}


def table(rows: list[dict]) -> str:
  """Return the rows as Markdown."""
  lines = ['| shape | phase | seconds | GFLOP/s | of matmul peak | GB/s | of copy peak '
           '| bound by | of bound |', '|---|---|---:|---:|---:|---:|---:|---|---:|']
  lines += [
    f'| {row["shape"]} | {row["phase"]} | {row["seconds"]:.3f} | '
    f'{row["gflops_per_s"]:.0f} | {row["share_of_matmul"]:.0%} of '
    f'{row["matmul_peak_gflops_per_s"]:.0f} | {row["gbytes_per_s"]:.1f} | '
    f'{row["share_of_copy"]:.0%} of {row["copy_peak_gbytes_per_s"]:.1f} | '
    f'{row["limit"]} | {row["share_of_bound"]:.0%} |' for row in rows]
  return '\n'.join(lines)


if __name__ == '__main__':
  main()
