"""The run: warm start, then sample, verify, update, evaluate, save, log; and resume.

Line i of metrics.jsonl belongs to the i-th iteration; line 0 is the evaluation before
the first. A checkpoint at step i is saved after line i is on disk, and a run resumed
from it drops every later line: nothing is lost, nothing is doubled, and since step i is
a pure function of (seed, i, state) every number is the same as if never stopped.
"""

import dataclasses
import json
import os
import signal
import sys

import jax
import numpy as np
import tqdm

from lpo_jax import (
  batches,
  briefing,
  build,
  checkpoint,
  curves,
  evaluate,
  hosts,
  origin,
  phases,
  policy,
  prepare,
  programs,
  suites,
  supply,
)
from lpo_jax import metrics as metrics_lib
from lpo_jax import workdir as workdirs
from lpo_jax.types import TrainState

# Streams of randomness under key(seed); problems have their own (tasks.base).
INIT, SAMPLE, EVALUATE, ADAPT, REPLAY = 0, 2, 3, 4, 5
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
    self.plain_config = json.loads(config.to_json())
    hosts.check_same('the configuration', f'{config.to_json()} in {workdir}')
    with hosts.agreeing():
      self.parts = build.build(config)
    if self.parts.described:
      self.plain_config['data'] = self.parts.described
      hosts.check_same('the problem sets', json.dumps(self.parts.described))
    workdirs.claim(workdir, self.plain_config, override_workdir)
    self.phases = phases.Phases(config.log.watchdog_s)
    self.checkpoints = checkpoint.Checkpointer(
      os.path.join(workdir, 'checkpoints'), keep_last=config.checkpoint.keep,
      best_metric=config.checkpoint.best_metric or None, every=config.checkpoint.every)
    with hosts.agreeing():
      build.start_task(config, self.parts.task)
    self.compiles, self.stop_asked = 0, False
    self.programs = programs.Programs(self.parts)

  def train(self) -> None:
    """Run to the end, from the newest checkpoint if there is one."""
    jax.monitoring.register_event_duration_secs_listener(self._count_compile)
    signal.signal(signal.SIGTERM, lambda *_: setattr(self, 'stop_asked', True))
    with jax.set_mesh(self.parts.mesh):
      self.supply = supply.Supply(self.config, self.parts, self._key(SAMPLE),
                                  self._key(REPLAY), self.phases)
      restored = origin.resume(self.checkpoints, self.parts, self.programs,
                               self.supply.abstract)
      say(*self.checkpoints.messages)
      step = None if restored is None else restored[1]
      self.prepared = prepare.begin(self.config, self.parts, self.programs, self.phases,
                                    step)
      self.writer = metrics_lib.Writer(self.workdir, step, self.config.log.tensorboard
                                       ) if hosts.first() else metrics_lib.Silence()
      workdirs.write_config(self.workdir, self.plain_config)
      try:
        self._train(restored)
      except Stopped as stopped:
        say(str(stopped))
      finally:
        self.prepared.close()
        self.writer.close()
        self.close()

  def close(self) -> None:
    """Finish the save under way, stop the watchdog and the task's processes."""
    self.parts.task.stop()
    self.checkpoints.close()
    self.phases.close()

  def _train(self, restored) -> None:
    say(briefing.opening(self.parts, self.config.prompts_per_step))
    self.tokens = workdirs.total_tokens(self.workdir)
    state, start = restored or (self._start(), 0)
    if restored:
      say(f'resuming after step {start}')
      state = self.supply.restore(state, start)
    self.supply.refer(state.params, start, self.workdir)
    steps = range(start + 1, self.config.num_steps + 1)
    pending = None
    with tqdm.tqdm(steps, initial=start, total=self.config.num_steps, unit='step',
                   mininterval=2, file=sys.stderr, disable=not hosts.first()) as bar:
      for step in bar:
        state, pending = self._iterate(state, step, pending, bar)
        self._close_step(state, pending)
        if pending.step in (self._last_saved, self.config.num_steps):
          pending = None
        if hosts.anywhere(self.stop_asked):
          self._flush(pending)
          self._save(state, step, {}, force=True)
          raise Stopped(f'asked to stop: saved step {step}; run again to go on')
    self._finish()

  def _start(self) -> TrainState:
    """Return the state before the first step: warm-started, evaluated and saved."""
    params = origin.first(self.config, self.parts, self.programs, self._key(INIT), say)
    if self.parts.warmstart is not None:
      params = self._warm_start(params)
    state = self.programs.state_of(params, self._key(ADAPT))
    numbers = self._evaluate(state.params, 0, wide=True)
    self.writer.write(0, numbers)
    self._save(state, 0, numbers, force=True)
    return state

  def _warm_start(self, params):
    """Return the policy after supervised steps on demonstrations."""
    init, step_fn, _ = self.programs.warm_start
    opt_state = init(params)
    bar = tqdm.trange(self.config.warmstart.steps, desc='warm start', mininterval=2,
                      disable=not hosts.first())
    self.prepared.wait('warm_start')
    with self.phases('warmstart'):
      for step in bar:
        if hosts.anywhere(self.stop_asked):
          raise Stopped('asked to stop during the warm start: nothing to save')
        batch = hosts.place(batches.warmstart_batch(self.config, self.parts, step),
                            self.parts.mesh)
        params, opt_state, loss = step_fn(params, opt_state, batch)
        if step == 0:
          say(f'warm start: first loss {float(jax.device_get(loss)):.3f} nats a token')
        if step % 50 == 49:
          bar.set_postfix(loss=f'{float(jax.device_get(loss)):.3f}')
      jax.block_until_ready(params)
    say(f'warm start: {self.config.warmstart.steps} steps, '
        f'loss {float(jax.device_get(loss)):.3f} nats a token')
    return params

  def _iterate(self, state, step: int, pending: Pending | None, bar):
    """Run one iteration; write the one before while the device is busy."""
    self.prepared.wait()
    with self.phases('step'):
      batch = self.supply.take(state.params, step)
      with self.phases('update'):
        state, metrics, coefficients = self.programs.update(state, batch.groups)
        self._flush(pending)
        self.supply.finish()
        jax.block_until_ready(state.params)
    pending = Pending(step, metrics | batch.graded.metrics | batch.metrics, {},
                      batch.groups)
    if step % self.config.log.groups_every == 0 or step == 1:
      self._look_inside(state, pending, batch, coefficients)
    if step == 1:
      found, shown = metrics_lib.reduce(pending.metrics), batch.texts([0])
      prompt = self.parts.tokenizer.render(batch.problems[0].prompt)
      say(*briefing.first_step(found, prompt, shown[0]))
    pending.numbers |= self._timings(batch.fresh)
    bar.set_postfix({name: f'{float(jax.device_get(metrics[name])):.3f}'
                     for name in WATCHED})
    return state, pending

  def _close_step(self, state, pending: Pending) -> None:
    """Evaluate and save where due; a saved step's line is on disk before it is."""
    step, config = pending.step, self.config
    last = step == config.num_steps
    if step % config.eval.every == 0 or last:
      pending.numbers |= self._evaluate(state.params, step, wide=last)
    self._last_saved = step if last or self.checkpoints.due(step) else None
    if self._last_saved is not None:
      self._flush(pending)
      self._save(state, step, pending.numbers, force=last)

  def _flush(self, pending: Pending | None) -> None:
    """Write a pending line; keep evidence of a gradient that was not finite."""
    if pending is None:
      return
    numbers = metrics_lib.reduce(pending.metrics) | pending.numbers
    self.writer.write(pending.step, numbers)
    if numbers['actor/skipped_frac'] > 0:
      self._keep_evidence(pending, numbers)

  def _keep_evidence(self, pending: Pending, numbers: dict) -> None:
    path = workdirs.keep_evidence(self.workdir, pending.step, pending.groups)
    in_row = int(numbers['actor/skipped_in_row'])
    say(f'step {pending.step}: a gradient was not finite, its update was skipped; the '
        f'groups are in {path}')
    if in_row >= self.config.optimizer.max_skipped_steps:
      raise FloatingPointError(
        f'{in_row} updates in a row had a gradient that is not finite '
        f'(optimizer.max_skipped_steps={self.config.optimizer.max_skipped_steps}); '
        f'look into {path}, lower optimizer.learning_rate, or use float32')

  def _evaluate(self, params, step: int, wide: bool) -> dict[str, float]:
    """Return the validation numbers; `wide` takes `eval.final_samples`."""
    parts = self.parts
    self.prepared.wait('sampler')
    with self.phases('eval'):
      found = evaluate.evaluate_sets(
        params, parts.eval_sets, parts.task, parts.tokenizer, self._key(EVALUATE),
        parts.eval_sampling, parts.evaluation if wide else parts.evaluation.narrow(),
        parts.mesh)
    say(*(f'step {step}: {line}' for line in suites.headlines(found, parts)))
    return suites.flat(found)

  def _save(self, state, step: int, numbers: dict, force: bool = False) -> None:
    with self.phases('save'):
      self.writer.sync()
      kept = origin.stored(state.replace(data=self.supply.kept()), self.parts)
      self.checkpoints.save(step, kept, numbers, force=force)

  def _look_inside(self, state, pending: Pending, batch, coefficients) -> None:
    """Measure the update's certificate and write a few groups to rollouts/."""
    metrics, simplexes = self.programs.certify(state.params, state.step - 1,
                                                pending.groups)
    pending.metrics |= metrics
    rows = batch.shown(self.config.log.groups)
    workdirs.write_groups(
      self.workdir, pending.step, [batch.problems[row] for row in rows],
      batch.texts(rows), batch.graded.rewards[rows],
      [np.exp(jax.device_get(x))[rows] for x in simplexes],
      jax.device_get(coefficients)[rows],
      hosts.fetch(pending.groups.rollouts.response_mask.sum(axis=-1))[rows])

  def _timings(self, groups) -> dict[str, float]:
    numbers = self.phases.flush()
    tokens = int(hosts.fetch(groups.rollouts.response_mask.sum()))
    self.tokens += tokens
    return numbers | {
      'perf/tokens_per_s': tokens / numbers['timing_s/step'],
      'perf/total_tokens': self.tokens, 'perf/compile_count': self.compiles}

  def _finish(self) -> None:
    """Write the summary and the curves."""
    if hosts.first():
      rows = metrics_lib.read(self.workdir)
      self._summarise(self.config.num_steps, rows[-1], total_tokens=self.tokens,
                      first=metrics_lib.validation(rows[0]))
      self.writer.sync()
      curves.of_run(self.workdir)
      say(f'done: {self.workdir}/summary.json, curves.png')

  def _summarise(self, step: int, numbers: dict, **more) -> None:
    workdirs.write_summary(self.workdir, {
      'step': step, 'seed': self.config.seed, 'objective': self.config.objective.name,
      'final': metrics_lib.validation(numbers), **more})

  def evaluate_only(self) -> None:
    """Evaluate the newest policy (`origin.newest`): table, eval.json, summary."""
    with jax.set_mesh(self.parts.mesh):
      params, step = origin.newest(self.config, self.parts, self.programs, self.workdir,
                                   say)
      with self.phases('eval'):
        found, report = suites.run(params, step, self.parts, self._key(EVALUATE),
                                   self.plain_config, self.workdir, say)
    if hosts.first():
      print(suites.table(report), flush=True)
    self._summarise(step, suites.flat(found), mode='eval',
                    init_from=self.config.init_from)
    self.close()

  def export(self, folder: str) -> None:
    """Write the newest policy (`origin.newest`) as a Hugging Face folder."""
    policy.check_empty(folder)
    with jax.set_mesh(self.parts.mesh):
      params, step = origin.newest(self.config, self.parts, self.programs, self.workdir,
                                   say)
      policy.save_pretrained(params, folder, tokenizer=self.parts.tokenizer,
                             source=self.parts.weights, base=self.config.policy.path)
    say(f'step {step} exported to {folder}')
    self.close()

  def _key(self, stream: int):
    return jax.random.fold_in(jax.random.key(self.config.seed), stream)

  def _count_compile(self, event: str, duration: float, **_) -> None:
    self.compiles += event.endswith('backend_compile_duration')


def say(*lines: str) -> None:
  """Tell the user, beside the progress bar, once for all processes."""
  for line in lines if hosts.first() else ():
    tqdm.tqdm.write(line, file=sys.stderr)
