"""Where a policy comes from: another run, a Hugging Face folder, or a key.

`init_from` is a run, whose newest policy is taken; `policy.path` a Hugging Face folder,
which also says sizes and tokenizer. With both, the weights are the run's. A run goes on
from its own checkpoints before either is asked.

Where only adapters are trained and the base is the folder's as it is, checkpoints hold
the fingerprint of each of its parameters instead: the folder must still be the same.
"""

import dataclasses

import jax
import jax.numpy as jnp

from lpo_jax import build, checkpoint, manifest, policy, programs, sharding
from lpo_jax.policy import lora


def first(config, parts: build.Parts, compiled: programs.Programs, key, say):
  """Return the parameters before warm start and first step, maybe without adapters.

  Args:
    config: of the run.
    parts: of the run.
    compiled: its programs; they know the placement.
    key: of fresh weights.
    say: where to tell what was taken.

  Raises:
    ValueError, FileNotFoundError: nothing fitting is stored there.
  """
  if config.init_from:
    say(f'starting from the policy in {config.init_from}')
    return _of_run(config.init_from, parts, compiled)[0]
  if parts.weights:
    say(f'starting from the weights in {parts.weights}')
    return _of_folder(parts)
  return compiled.fresh_params(key)


def newest(config, parts: build.Parts, compiled: programs.Programs, workdir: str, say):
  """Return the newest parameters and step: of `init_from`, workdir or `policy.path`.

  Raises:
    FileNotFoundError: there is none of them.
    ValueError: what is there does not fit.
  """
  if not config.init_from:
    try:
      return _of_run(workdir, parts, compiled)
    except FileNotFoundError:
      if not parts.weights:
        raise FileNotFoundError(
          f'workdir={workdir} holds no checkpoint: train first, or give '
          '--config.init_from=RUN or --config.policy.path=FOLDER') from None
  return first(config, parts, compiled, None, say), 0


def resume(checkpoints: checkpoint.Checkpointer, parts: build.Parts,
           compiled: programs.Programs, data=None):
  """Return the run's newest intact state and its step; None if there is none.

  Args:
    checkpoints: of the run.
    parts: of the run.
    compiled: its programs; they know the placement.
    data: `TrainState.data` as shapes.

  Raises:
    ValueError: see `Checkpointer.restore`; or the base is not what it was.
  """
  restored = checkpoints.restore(stored(compiled.abstract.replace(data=data), parts))
  if restored is None or not parts.base_elsewhere:
    return restored
  state, step = restored
  return state.replace(params=_with_base(state.params, parts)), step


def stored(state, parts: build.Parts):
  """Return what a checkpoint holds of a train state, arrays or shapes."""
  if not parts.base_elsewhere:
    return state
  return state.replace(params=_marked(state.params))


def _of_run(path: str, parts: build.Parts, compiled: programs.Programs):
  """Return a run's newest policy, with or without adapters, and its step."""
  wanted = compiled.abstract.params
  if wanted.config.lora is None:
    return checkpoint.newest_params(path, wanted)
  held = checkpoint.described(path)
  if not manifest.flatten(lora.split(wanted)[0]).keys() & held.keys():
    return checkpoint.newest_params(path, lora.remove(wanted))
  if {held.get(name) for name in manifest.flatten(lora.split(wanted)[1])} != {'uint32'}:
    return checkpoint.newest_params(path, wanted)
  if not parts.weights:
    raise ValueError(f'{path} holds adapters alone: give --config.policy.path, the '
                     'Hugging Face folder of the weights that they were trained on')
  params, step = checkpoint.newest_params(path, _marked(wanted))
  return _with_base(params, parts), step


def _of_folder(parts: build.Parts) -> policy.Policy:
  plain = dataclasses.replace(parts.policy_config, lora=None)
  return policy.load(parts.weights, plain, parts.mesh)


def _marked(params):
  """Return a policy with a fingerprint, u32[], for each frozen parameter."""
  trained, frozen = lora.split(params)
  if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(frozen)):
    marks = jax.tree.map(lambda x: jax.ShapeDtypeStruct(
      (), jnp.uint32, sharding=sharding.replicated(x.sharding.mesh)), frozen)
  else:
    marks = _fingerprints(frozen)
  return lora.join(trained, marks)


@jax.jit
def _fingerprints(tree):
  return jax.tree.map(manifest.fingerprint, tree)


def _with_base(marked, parts: build.Parts) -> policy.Policy:
  """Return the policy of `_marked` with the folder's weights.

  Raises:
    ValueError: they are not those that the adapters were trained on.
  """
  trained, marks = lora.split(marked)
  params = lora.give_base(trained, _of_folder(parts))
  found, marks = (jax.device_get(manifest.flatten(lora.split(tree)[1]))
                  for tree in (_marked(params), lora.join(trained, marks)))
  other = [name for name, mark in marks.items() if mark != found[name]]
  if other:
    raise ValueError(f'{parts.weights} no longer holds the weights that these adapters '
                     f'were trained on: {", ".join(other[:6])} differ; put them back, '
                     'or start in a new workdir')
  return params
