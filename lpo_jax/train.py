"""The run: warm start, then sample, verify, update, evaluate, save, log; and resume.

Line i of metrics.jsonl belongs to the i-th iteration; line 0 is the evaluation before
the first. A checkpoint at step i is saved after line i is on disk, and a run resumed
from it drops every later line: nothing is lost, nothing is doubled, and since step i is
a pure function of (seed, i, state) every number is the same as if never stopped.
"""

import dataclasses
import functools
import json
import os
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from lpo_jax import (
  briefing,
  build,
  checkpoint,
  curves,
  evaluate,
  objective,
  optimizer,
  phases,
  policy,
  rollout,
  sharding,
  tasks,
  update,
  warmstart,
)
from lpo_jax import metrics as metrics_lib
from lpo_jax.types import TrainState

# Streams of randomness under key(seed); problems have their own (tasks.base).
INIT, SAMPLE, EVALUATE = 0, 2, 3
WATCHED = ('reward/mean', 'group/flat_frac', 'actor/entropy', 'actor/grad_norm')


class Stopped(Exception):
  """The run was asked to stop, and has saved what it must."""


@dataclasses.dataclass
class Pending:
  """A finished iteration whose numbers are not written yet."""

  step: int
  metrics: dict  # str -> Mean, still on the device
  numbers: dict  # str -> float
  groups: object = None  # kept until its gradient is known to be finite


class Run:
  """One run in one workdir."""

  def __init__(self, config, workdir: str, override_workdir: bool = False):
    """Check everything that can be checked without compiling.

    Raises:
      ValueError: a value that cannot be, an unwritable workdir, or a workdir that
        belongs to another configuration.
    """
    self.config, self.workdir = config, workdir
    self.parts = build.build(config)
    metrics_lib.check_writable(workdir)
    check_owner(config, workdir, override_workdir)
    self.phases = phases.Phases(config.log.watchdog_s)
    self.checkpoints = checkpoint.Checkpointer(
      os.path.join(workdir, 'checkpoints'), keep_last=config.checkpoint.keep,
      best_metric=config.checkpoint.best_metric or None, every=config.checkpoint.every)
    self.compiles = 0
    self.stop_asked = False
    self._compile_programs()

  def _compile_programs(self):
    """Name the programs of a run; each is compiled when first called."""
    parts, mesh = self.parts, self.parts.mesh
    self.optimizer = optimizer.build(parts.optimizer)
    shapes = jax.eval_shape(self._fresh_state, jax.random.key(0))
    self.placement = sharding.state_shardings(shapes, mesh)
    self.abstract = jax.tree.map(
      lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes,
      self.placement)
    copied = sharding.replicated(mesh)
    self.fresh_state = jax.jit(self._fresh_state, out_shardings=self.placement)
    self.reset = jax.jit(self._state_of, out_shardings=self.placement)
    self.update = jax.jit(
      update.make_update(
        objective.build(parts.objective, self.config.samples_per_prompt),
        self.optimizer, optimizer.schedule(parts.optimizer), parts.update),
      donate_argnums=0, out_shardings=(self.placement, copied))
    self.certify = jax.jit(functools.partial(
      update.certify, temperature=objective.temperature(parts.objective),
      config=parts.update), out_shardings=copied)

  def _fresh_state(self, key) -> TrainState:
    return self._state_of(policy.Policy(self.parts.policy_config, key))

  def _state_of(self, params) -> TrainState:
    return TrainState(jnp.int32(0), params, self.optimizer.init(params), jnp.int32(0))

  def train(self) -> None:
    """Run to the end, from the newest checkpoint if there is one."""
    jax.monitoring.register_event_duration_secs_listener(self._count_compile)
    signal.signal(signal.SIGTERM, self._ask_to_stop)
    with jax.set_mesh(self.parts.mesh):
      restored = self.checkpoints.restore(self.abstract)
      for message in self.checkpoints.messages:
        say(message)
      self.writer = metrics_lib.Writer(
        self.workdir, None if restored is None else restored[1],
        self.config.log.tensorboard)
      metrics_lib.write_json(os.path.join(self.workdir, 'config.json'),
                             json.loads(self.config.to_json()))
      try:
        self._train(restored)
      except Stopped as stopped:
        say(str(stopped))
      finally:
        self.checkpoints.close()
        self.writer.close()
        self.phases.close()

  def _train(self, restored) -> None:
    self._brief()
    self.tokens = _tokens_so_far(self.workdir)
    if restored is None:
      state, start = self._start(), 0
    else:
      state, start = restored
      say(f'resuming after step {start}')
    steps = range(start + 1, self.config.num_steps + 1)
    pending = None
    with tqdm.tqdm(steps, initial=start, total=self.config.num_steps, unit='step',
                   mininterval=2, file=sys.stderr) as bar:
      for step in bar:
        state, pending = self._iterate(state, step, pending, bar)
        self._close_step(state, pending)
        if pending.step in (self._last_saved, self.config.num_steps):
          pending = None
        if self.stop_asked:
          self._flush(pending)
          self._save(state, step, {}, force=True)
          raise Stopped(f'asked to stop: saved step {step}; run again to go on')
    self._finish(state)

  def _start(self) -> TrainState:
    """Return the state before the first step: warm-started, evaluated and saved."""
    config = self.config
    state = self.fresh_state(jax.random.fold_in(jax.random.key(config.seed), INIT))
    if config.init_from:
      say(f'starting from the policy in {config.init_from}')
      state = self.reset(checkpoint.restore_params(config.init_from,
                                                   self.abstract.params))
    elif self.parts.warmstart is not None:
      state = self.reset(self._warm_start(state.params))
    numbers = self._evaluate(state.params, 0)
    self.writer.write(0, numbers)
    self._save(state, 0, numbers, force=True)
    return state

  def _warm_start(self, params):
    """Return the policy after supervised steps on demonstrations."""
    transform = optimizer.build(self.parts.warmstart)
    step_fn = jax.jit(warmstart.make_step(transform), donate_argnums=(0, 1))
    opt_state = jax.jit(transform.init)(params)
    bar = tqdm.trange(self.config.warmstart.steps, desc='warm start', mininterval=2)
    with self.phases('warmstart'):
      for step in bar:
        if self.stop_asked:
          raise Stopped('asked to stop during the warm start: nothing to save')
        batch = build.warmstart_batch(self.config, self.parts, step)
        batch = sharding.shard_batch(batch, self.parts.mesh)
        params, opt_state, loss = step_fn(params, opt_state, batch)
        if step % 50 == 49:
          bar.set_postfix(loss=f'{float(jax.device_get(loss)):.3f}')
      jax.block_until_ready(params)
    say(f'warm start: {self.config.warmstart.steps} steps, '
        f'loss {float(jax.device_get(loss)):.3f} nats a token')
    return params

  def _iterate(self, state, step: int, pending: Pending | None, bar):
    """Run one iteration; write the one before while the device is busy."""
    with self.phases('step'):
      problems = self._problems(step)
      key = jax.random.fold_in(jax.random.key(self.config.seed), SAMPLE)
      groups, graded = rollout.collect(
        state.params, problems, jax.random.fold_in(key, step), self.parts.task,
        self.parts.tokenizer, self.parts.sampling, self.parts.mesh, self.phases)
      with self.phases('update'):
        state, metrics = self.update(state, groups)
        self._flush(pending)
        jax.block_until_ready(state.params)
    self.tokens += int(jax.device_get(groups.rollouts.response_mask.sum()))
    pending = Pending(step, metrics | _named(graded.metrics), {}, groups)
    if step % self.config.log.groups_every == 0 or step == 1:
      self._look_inside(state, pending, problems, graded)
    if step == 1:
      found = metrics_lib.reduce(pending.metrics)
      for line in briefing.first_step(found, problems[0].prompt, graded.texts[0]):
        say(line)
    pending.numbers |= self._timings(groups)
    bar.set_postfix({name: f'{float(jax.device_get(metrics[name])):.3f}'
                     for name in WATCHED})
    return state, pending

  def _close_step(self, state, pending: Pending) -> None:
    """Evaluate and save where due; a saved step's line is on disk before it is."""
    step, config = pending.step, self.config
    last = step == config.num_steps
    if step % config.eval.every == 0 or last:
      pending.numbers |= self._evaluate(state.params, step)
    self._last_saved = step if last or self.checkpoints.due(step) else None
    if self._last_saved is not None:
      self._flush(pending)
      self._save(state, step, pending.numbers, force=last)

  def _problems(self, step: int):
    indices = tasks.base.problem_indices(len(self.parts.train_problems),
                                         self.config.seed, step - 1,
                                         self.config.prompts_per_step)
    return [self.parts.train_problems[int(i)] for i in indices]

  def _flush(self, pending: Pending | None) -> None:
    """Write a pending line; keep evidence of a gradient that was not finite."""
    if pending is None:
      return
    numbers = metrics_lib.reduce(pending.metrics) | pending.numbers
    self.writer.write(pending.step, numbers)
    if numbers['actor/skipped_frac'] > 0:
      self._keep_evidence(pending, numbers)

  def _keep_evidence(self, pending: Pending, numbers: dict) -> None:
    path = os.path.join(self.workdir, 'skipped', f'step_{pending.step:06d}.npz')
    os.makedirs(os.path.dirname(path), exist_ok=True)
    arrays = jax.device_get(checkpoint.manifest.flatten(pending.groups))
    np.savez_compressed(path, **arrays)
    in_row = int(numbers['actor/skipped_in_row'])
    say(f'step {pending.step}: a gradient was not finite, its update was skipped; the '
        f'groups are in {path}')
    if in_row >= self.config.optimizer.max_skipped_steps:
      raise FloatingPointError(
        f'{in_row} updates in a row had a gradient that is not finite '
        f'(optimizer.max_skipped_steps={self.config.optimizer.max_skipped_steps}); '
        f'look into {path}, lower optimizer.learning_rate, or use float32')

  def _evaluate(self, params, step: int) -> dict[str, float]:
    config = self.config.eval
    wide = step in (0, self.config.num_steps)
    samples = max(config.samples, config.final_samples) if wide else config.samples
    key = jax.random.fold_in(jax.random.key(self.config.seed), EVALUATE)
    with self.phases('eval'):
      found = evaluate.evaluate(
        params, self.parts.eval_problems, self.parts.task, self.parts.tokenizer, key,
        self.parts.eval_sampling,
        evaluate.EvalConfig(samples, tuple(config.pass_at),
                            self.config.prompts_per_step),
        self.parts.mesh, mean_at=(config.samples,))
    name = f'val/{self.parts.task.name}/mean@{config.samples}'
    say(f'step {step}: {name} = {found[name]:.3f} +- {found[name + "_stderr"]:.3f}')
    return found

  def _save(self, state, step: int, numbers: dict, force: bool = False) -> None:
    with self.phases('save'):
      self.writer.sync()
      self.checkpoints.save(step, state, numbers, force=force)

  def _look_inside(self, state, pending: Pending, problems, graded) -> None:
    """Measure the update's certificate and write a few groups to rollouts/."""
    metrics, simplexes = self.certify(state.params, pending.groups)
    pending.metrics |= metrics
    target, before, after = (np.exp(jax.device_get(x)) for x in simplexes)
    rows = [{
      'step': pending.step, 'id': problems[i].id, 'prompt': problems[i].prompt,
      'responses': graded.texts[i], 'rewards': graded.rewards[i], 'target': target[i],
      'policy_before': before[i], 'policy_after': after[i],
    } for i in range(min(self.config.log.groups, len(problems)))]
    metrics_lib.write_rollouts(
      os.path.join(self.workdir, 'rollouts', f'step_{pending.step:06d}.jsonl'), rows)

  def _timings(self, groups) -> dict[str, float]:
    numbers = self.phases.flush()
    tokens = int(jax.device_get(groups.rollouts.response_mask.sum()))
    mask = groups.rollouts.response_mask
    return numbers | {
      'perf/tokens_per_s': tokens / numbers['timing_s/step'],
      'perf/pad_frac': 1.0 - tokens / mask.size, 'perf/total_tokens': self.tokens,
      'perf/compile_count': self.compiles}

  def _finish(self, state) -> None:
    rows = metrics_lib.read(self.workdir)
    summary = {'step': self.config.num_steps, 'seed': self.config.seed,
               'objective': self.config.objective.name, 'total_tokens': self.tokens}
    summary['first'] = {n: v for n, v in rows[0].items() if n.startswith('val/')}
    summary['final'] = {n: v for n, v in rows[-1].items() if n.startswith('val/')}
    metrics_lib.write_json(os.path.join(self.workdir, 'summary.json'), summary)
    self.writer.sync()
    curves.of_run(self.workdir)
    say(f'done: {self.workdir}/summary.json, curves.png')

  def _brief(self) -> None:
    config, parts = self.config, self.parts
    say('the batch\n' + briefing.batch_table(
      config.prompts_per_step, config.samples_per_prompt, config.updates_per_step,
      config.epochs, parts.update.micro_prompts, config.micro_responses,
      parts.mesh.size))
    memory = briefing.memory_estimate(
      self.abstract.params, parts.policy_config, parts.mesh,
      rows=config.prompts_per_step * config.samples_per_prompt,
      tokens=max(config.sampling.prompt_buckets) + config.sampling.max_new_tokens,
      micro_rows=parts.update.micro_prompts
      * (config.micro_responses or config.samples_per_prompt))
    say('memory on one device, estimated GiB: '
        + ', '.join(f'{name} {size:.3f}' for name, size in memory.items()))

  def _count_compile(self, event: str, duration: float, **_) -> None:
    self.compiles += event.endswith('backend_compile_duration')

  def _ask_to_stop(self, *_) -> None:
    self.stop_asked = True


def check_owner(config, workdir: str, override: bool) -> None:
  """Refuse a workdir whose config.json differs from `config`, unless overridden.

  Raises:
    ValueError: names the differing fields.
  """
  path = os.path.join(workdir, 'config.json')
  if override or not os.path.exists(path):
    return
  with open(path, encoding='utf-8') as file:
    theirs = _flat(json.load(file))
  mine = _flat(json.loads(config.to_json()))
  differing = [f'{name}: there {theirs.get(name)!r}, here {mine.get(name)!r}'
               for name in sorted(theirs.keys() | mine.keys())
               if theirs.get(name) != mine.get(name)]
  if differing:
    raise ValueError(f'workdir={workdir} belongs to another configuration: '
                     f'{"; ".join(differing)}. Choose another workdir, or pass '
                     '--override_workdir to go on with this one')


def say(text: str) -> None:
  """Tell the user, beside the progress bar."""
  tqdm.tqdm.write(text, file=sys.stderr)


def _flat(tree, prefix: str = '') -> dict:
  if not isinstance(tree, dict):
    return {prefix: tree}
  return {name: value for key, child in tree.items()
          for name, value in _flat(child, f'{prefix}.{key}' if prefix else key).items()}


def _tokens_so_far(workdir: str) -> int:
  rows = metrics_lib.read(workdir)
  return int(rows[-1].get('perf/total_tokens', 0)) if rows else 0


def _named(metrics: dict) -> dict:
  """Give a task's diagnostics their place among the training metrics."""
  return {name if '/' in name else f'reward/{name}': value
          for name, value in metrics.items()}
