"""Adapters: what they add, that they alone are trained, kept, merged and exported."""

import dataclasses
import functools
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from experiments import countdown
from lpo_jax import (
  build,
  checkpoint,
  footprint,
  microbatch,
  objective,
  optimizer,
  roofline,
  sharding,
  train,
  update,
)
from lpo_jax import metrics as metrics_lib
from lpo_jax import policy as policies
from lpo_jax.policy import lora
from lpo_jax.tasks import countdown as countdown_task
from lpo_jax.types import TrainState
from tests import learner, origin_test, tiny
from tests.parity import checkpoints, record

LORA = policies.Lora(rank=3, alpha=6.0)


@pytest.fixture(autouse=True, scope='module')
def quick_compiles():
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


def adapted(**switches):
  """Return the tiny policy with adapters that are far from zero."""
  return tiny.policy(**({'vocab_size': learner.VOCAB, 'lora': LORA} | switches))


def merged(policy):
  """Return the plain policy with A B added to its matrices, by NumPy."""
  plain, config = lora.remove(policy), policy.config.lora
  for name in config.targets:
    down, up = (np.asarray(getattr(policy.blocks, f'{name}_lora_{part}')[...])
                for part in 'ab')
    weight = np.asarray(getattr(plain.blocks, name)[...])
    weight = weight + config.alpha / config.rank * np.stack(
      [a @ b for a, b in zip(down, up, strict=True)])
    plain = _with(plain, name, weight)
  return plain


def _with(policy, name, weight):
  leaves, structure = jax.tree.flatten(policy)
  policy = jax.tree.unflatten(structure, leaves)
  getattr(policy.blocks, name)[...] = jnp.asarray(weight)
  return policy


def _start(policy) -> TrainState:
  transform = learner._TRANSFORM
  return TrainState(jnp.int32(0), policy, transform.init(lora.split(policy)[0]),
                    jnp.int32(0))


def test_a_fresh_policy_is_its_base():
  config = policies.PolicyConfig(**tiny.SIZES)

  @learner.jit
  def draw(key):
    base = policies.Policy(config, key)
    fresh = policies.Policy(dataclasses.replace(config, lora=LORA), key)
    return base, fresh, lora.add(base, LORA, key)

  base, fresh, added = draw(jax.random.key(3))
  tiny.assert_same(lora.remove(fresh), base)
  tiny.assert_same(added, fresh)
  batch = tiny.sequences(tiny.rollouts())
  np.testing.assert_array_equal(tiny.call(fresh, *batch), tiny.call(base, *batch))
  down, up = (np.asarray(getattr(fresh.blocks, f'down_lora_{part}')[...])
              for part in 'ab')
  assert not up.any()
  bound = config.mlp_width ** -0.5
  assert 0.8 * bound < np.abs(down).max() < bound
  assert down.std() == pytest.approx(bound / 3 ** 0.5, rel=0.2)
  assert np.abs(down[0] - down[1]).max() > 0.1 * bound  # layers differ


def test_the_two_parts_make_the_whole():
  policy = adapted()
  trained, frozen = lora.split(policy)
  names = {path[-2].name for path, _ in jax.tree_util.tree_leaves_with_path(trained)}
  assert names == {f'{name}_lora_{part}' for name in LORA.targets for part in 'ab'}
  count = sum(leaf.size for leaf in jax.tree.leaves(trained))
  assert count == policy.config.adapter_params
  tiny.assert_same(lora.join(trained, frozen), policy)
  tiny.assert_same(lora.give_base(trained, lora.remove(policy)), policy)
  plain = tiny.policy()
  trained, frozen = lora.split(plain)
  assert not jax.tree.leaves(frozen)
  tiny.assert_same(trained, plain)


@pytest.mark.parametrize('switches', [
  dict(), dict(unroll=True), dict(lora=policies.Lora(2, 8.0, ('value', 'down')))],
  ids=['scanned', 'unrolled', 'some'])
def test_adapters_act_as_merged_weights_do(switches):
  policy, batch = adapted(**switches), tiny.sequences(tiny.rollouts())
  np.testing.assert_allclose(tiny.call(policy, *batch),
                             tiny.call(merged(policy), *batch), atol=2e-4, rtol=1e-5)


def _gradient(policy, groups, **cut):
  config = microbatch.UpdateConfig(**cut)
  one = objective.build(objective.ObjectiveConfig(), learner.SAMPLES)
  statistics = (jnp.float32(0.5), jnp.float32(0.5), jnp.int32(0))
  return learner.jit(lambda policy, groups: microbatch.gradient(
    one, policy, groups, groups.rollouts.logprobs, statistics, True, config)[0])(
      policy, groups)


@functools.cache
def _merged_gradient():
  return _gradient(merged(adapted()), learner.groups(4, exact=False), micro_prompts=2)


@pytest.mark.parametrize('switches', [
  dict(remat='dots'), dict(remat='full', unroll=True)], ids=str)
def test_gradients_are_autodiffs_through_the_merged_weights(switches):
  policy = adapted(**switches)
  groups = learner.groups(4, exact=False)
  found = _gradient(policy, groups, micro_prompts=2, micro_responses=2)
  # dL/dA = s dL/dW B^T and dL/dB = s A^T dL/dW, with W the merged matrix.
  whole = _merged_gradient()
  scale = LORA.alpha / LORA.rank
  for name in LORA.targets:
    down, up = (np.asarray(getattr(policy.blocks, f'{name}_lora_{part}')[...])
                for part in 'ab')
    slope = np.asarray(getattr(whole.blocks, name)[...])
    for part, expected in (('a', scale * slope @ up.swapaxes(1, 2)),
                           ('b', scale * down.swapaxes(1, 2) @ slope)):
      actual = np.asarray(getattr(found.blocks, f'{name}_lora_{part}')[...])
      np.testing.assert_allclose(actual, expected, atol=3e-4 * np.abs(expected).max())
  assert len(jax.tree.leaves(found)) == 2 * len(LORA.targets)  # none of the base


def test_no_gradient_of_the_base_is_computed():
  """Two thirds of the products are left: forward, and of the outputs."""
  sizes = dict(vocab_size=512, width=128, layers=1, heads=8, kv_heads=4, head_dim=32,
               mlp_width=512, unroll=True)
  setting = roofline.Setting(
    policy=policies.PolicyConfig(**sizes, lora=policies.Lora(2)), prompts=4, samples=4,
    prompt_width=64, new_tokens=64, chunk=64, micro_prompts=4, micro_responses=0,
    logprob_chunk=0, minibatches=1, epochs=1, behavior_pass=False,
    moment_dtype='float32', data=1, fsdp=1, tensor=1)
  batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(
    (4, *([4, 64][:x.ndim - 1] if x.ndim != 2 else [64])), x.dtype),
    learner.groups(4, exact=False))
  batch = batch.replace(rewards=jax.ShapeDtypeStruct((4, 4), jnp.float32),
                        anchor_scores=jax.ShapeDtypeStruct((4, 4), jnp.float32))
  one = objective.build(objective.ObjectiveConfig(), 4)

  def counted(policy):
    def gradient(policy, groups):
      return microbatch.gradient(
        one, policy, groups, None, (*(jnp.float32(0.5),) * 2, jnp.int32(0)), True,
        microbatch.UpdateConfig(micro_prompts=4))[0]
    return learner.jit(gradient).lower(tiny.shapes(policy), batch).compile(
      ).cost_analysis()['flops']

  found = counted(setting.policy)
  # Nor that of the only layer's inputs, which the estimate counts.
  assert found == pytest.approx(roofline.update(setting).flops, rel=0.15)
  assert found < 0.75 * counted(dataclasses.replace(setting.policy, lora=None))


def test_only_the_adapters_move_and_have_moments():
  policy = adapted()
  state = _start(policy)
  assert len(jax.tree.leaves(learner.gradient(state))) == 2 * len(LORA.targets)
  groups = learner.groups(4, exact=False)
  step = learner.program(updates_per_step=2, micro_prompts=2)
  for _ in range(2):
    state, metrics = step(state, groups)
  assert float(metrics['actor/skipped_frac']) == 0
  tiny.assert_same(lora.remove(state.params), lora.remove(policy))
  for new, old in zip(jax.tree.leaves(lora.split(state.params)[0]),
                      jax.tree.leaves(lora.split(policy)[0]), strict=True):
    assert np.abs(np.asarray(new) - np.asarray(old)).max() > 1e-3


def test_one_step_is_the_same_on_any_mesh():
  groups = learner.groups(8, exact=False)
  found = {}
  for shape in ((1, 1, 1), (2, 2, 2)):
    mesh = sharding.make_mesh(shape)
    state = _start(adapted(vocab_size=14))
    places = sharding.state_shardings(state, mesh)
    config = microbatch.UpdateConfig(micro_prompts=4)
    step = learner.jit(update.make_update(
      objective.build(objective.ObjectiveConfig(), learner.SAMPLES), learner._TRANSFORM,
      optimizer.schedule(learner.OPTIMIZER), config),
      out_shardings=(places, *[sharding.replicated(mesh)] * 2))
    with jax.set_mesh(mesh):
      state, metrics, _ = step(jax.device_put(state, places),
                               sharding.shard_batch(groups, mesh))
    found[shape] = jax.device_get((learner.gradient(state), metrics))
    split = {path[-2].name: place.spec for (path, _), place in zip(
      jax.tree_util.tree_leaves_with_path(state.params),
      jax.tree.leaves(places.params), strict=True)}
    assert tuple(split['down_lora_a']) == (None, 'tensor', None)
    assert tuple(split['down_lora_b']) == (None, None, 'fsdp')
  learner.assert_close(found[(2, 2, 2)], found[(1, 1, 1)])


def test_bfloat16_weights_keep_float32_adapters():
  config = policies.PolicyConfig(**tiny.SIZES, lora=LORA, param_dtype='bfloat16',
                                 dtype='bfloat16')
  trained, frozen = lora.split(tiny.shapes(config))
  assert {leaf.dtype for leaf in jax.tree.leaves(trained)} == {jnp.dtype('float32')}
  assert {leaf.dtype for leaf in jax.tree.leaves(frozen)} == {jnp.dtype('bfloat16')}
  found = _gradient(adapted(param_dtype='bfloat16', dtype='bfloat16'),
                    learner.groups(2, exact=False), micro_prompts=2)
  assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype('float32')}


@pytest.mark.parametrize(('changes', 'message'), [
  (dict(rank=17), r'rank=17 is larger than a dimension of key, 32 x 16: .*targets'),
  (dict(rank=-1), r'policy.lora.rank=-1'),
  (dict(alpha=0.0), r'policy.lora.alpha=0.0'),
  (dict(targets=('query', 'q_proj')), r"targets=\('query', 'q_proj'\): name some of "),
  (dict(targets=()), r'targets=\(\): name some of query, key'),
  (dict(targets=('up', 'up')), r'each once'),
])
def test_what_cannot_be_is_named_before_any_compile(changes, message):
  config = countdown.get_config('tiny')
  config.policy.lora.rank = 2
  config.policy.lora.update(changes)
  with pytest.raises(ValueError, match=message):
    build.build(config)


def test_the_estimate_counts_moments_and_gradients_of_adapters_alone():
  parts = build.plan(_tiny(rank=4))
  setting = build.setting(parts, 8)
  params = tiny.shapes(parts.policy_config)
  trained, _ = lora.split(params)
  whole, few = (sum(4 * leaf.size for leaf in jax.tree.leaves(tree))
                for tree in (params, trained))
  plain = dataclasses.replace(
    setting, policy=dataclasses.replace(setting.policy, lora=None))
  for phase, kinds in footprint.memory(setting).items():
    assert kinds['params'] == whole
    assert kinds['optimizer'] == 2 * few
    if phase == 'update':  # two gradients and the new moments are smaller, too
      saved = footprint.memory(plain)[phase]['activations'] - kinds['activations']
      assert saved == 3 * (whole - few - few)


def _tiny(rank: int, **changes):
  config = countdown.get_config('tiny')
  config.policy.lora.rank = rank
  config.log.tensorboard = False
  config.update(changes)
  return config


def _numbers(workdir):
  return [{name: value for name, value in row.items()
           if not name.startswith(('timing_s/', 'perf/'))}
          for row in metrics_lib.read(str(workdir))]


def _shrunk(path: str):
  config = origin_test.shrunk(path)
  config.policy.lora.update(rank=2, alpha=4.0)
  config.checkpoint.every = 1
  config.samples_per_prompt = 8  # of two, every group would be flat one time in four
  return config


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A finished run of adapters on a folder's weights: folder, workdir and export."""
  room = tmp_path_factory.mktemp('lora')
  path = origin_test.folder_of(room / 'in', 'qwen3')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(countdown_task.Countdown, 'verify', origin_test.by_checksum)
    train.Run(_shrunk(path), str(room / 'run')).train()
  train.Run(_shrunk(path), str(room / 'run')).export(str(room / 'out'))
  return path, room / 'run', room / 'out'


def test_sampler_and_learner_agree_all_through_a_run(run):
  rows = metrics_lib.read(str(run[1]))
  for row in rows[1:]:  # before the adapters do anything, and after
    assert row['mismatch/logp_abs_mean'] < 1e-5
    assert row['actor/grad_norm'] > 0


def test_checkpoints_hold_the_adapters_and_fingerprints_of_their_base(run):
  held = checkpoint.described(str(run[1]))
  assert {dtype for name, dtype in held.items() if '_lora_' in name} == {'float32'}
  assert {dtype for name, dtype in held.items() if '_lora_' not in name} == {'uint32'}


def test_a_run_is_resumed_bit_for_bit(run, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(countdown_task.Countdown, 'verify', origin_test.by_checksum)
  path, workdir, _ = run
  again = shutil.copytree(workdir, tmp_path / 'run')
  shutil.rmtree(again / 'checkpoints' / '2')
  train.Run(_shrunk(path), str(again)).train()
  assert 'resuming after step 1' in capsys.readouterr().err
  assert _numbers(again) == _numbers(workdir)
  assert (_marks(again) == _marks(workdir)).all()


def _marks(workdir):
  """Return the fingerprints of all that the last checkpoint holds."""
  text = (workdir / 'checkpoints' / '2' / 'manifest' / 'metadata').read_text()
  return np.array([mark for *_, mark in json.loads(text)['arrays'].values()])


def test_another_run_starts_from_the_adapters_and_their_base(
    run, tmp_path, monkeypatch):
  monkeypatch.setattr(countdown_task.Countdown, 'verify', origin_test.by_checksum)
  path, workdir, _ = run
  other = _shrunk(path)
  other.init_from = str(workdir)
  other.num_steps = 0
  train.Run(other, str(tmp_path / 'other')).train()
  first, last = _numbers(tmp_path / 'other')[0], _numbers(workdir)[-1]
  found = {name: value for name, value in first.items() if name.startswith('val/')}
  assert found and found == {name: last[name] for name in found}
  assert set(checkpoint.described(str(tmp_path / 'other')).values()) == {'float32'}


def test_an_export_is_base_plus_adapter_in_the_layouts_others_read(run):
  path, _, out = run
  base = safetensors.numpy.load_file(pathlib.Path(path) / 'model.safetensors')
  tensors = safetensors.numpy.load_file(out / 'model.safetensors')
  adapter = safetensors.numpy.load_file(out / 'adapter' / 'adapter_model.safetensors')
  assert tensors.keys() == base.keys()
  moved = 0
  for name, weight in base.items():
    weight = weight.astype(np.float32)
    prefix = 'base_model.model.' + name.removesuffix('.weight')
    if f'{prefix}.lora_A.weight' in adapter:
      down = adapter.pop(f'{prefix}.lora_A.weight')
      up = adapter.pop(f'{prefix}.lora_B.weight')
      assert down.shape == (2, weight.shape[1]) and up.shape == (weight.shape[0], 2)
      change = 4.0 / 2 * up @ down
      weight, moved = weight + change, moved + (np.abs(change).max() > 1e-3)
    np.testing.assert_allclose(tensors[name], weight, atol=1e-6)
  assert not adapter and moved == 7 * 2
  stated = json.loads((out / 'adapter' / 'adapter_config.json').read_text())
  assert (stated['r'], stated['lora_alpha'], stated['base_model_name_or_path']) == (
    2, 4.0, path)
  assert stated['target_modules'] == sorted(
    ['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj'])


def test_peft_loads_the_adapter_and_says_what_the_merged_export_says(run):
  peft, torch = pytest.importorskip('peft'), pytest.importorskip('torch')
  path, _, out = run
  loaded = peft.PeftModel.from_pretrained(record.load(path), str(out / 'adapter'))
  tokens, _, mask = checkpoints.batch('left')
  with torch.no_grad():
    theirs = loaded(input_ids=torch.tensor(tokens.tolist()),
                    attention_mask=torch.tensor(mask.tolist())).logits.numpy()
  ours = tiny.call(policies.from_pretrained(str(out)), *checkpoints.batch('left'))
  plain = tiny.call(policies.from_pretrained(path), *checkpoints.batch('left'))
  np.testing.assert_allclose(theirs[mask], np.asarray(ours)[mask], atol=1e-4)
  assert np.abs(ours - plain)[mask].max() > 1e-2


def test_a_folder_that_changed_is_refused(run, tmp_path):
  path, workdir, _ = run
  folder = shutil.copytree(path, tmp_path / 'in')
  tensors = safetensors.numpy.load_file(folder / 'model.safetensors')
  name = 'model.layers.1.mlp.up_proj.weight'
  tensors[name] = tensors[name].copy()
  tensors[name][0, 0] += 1e-3
  safetensors.numpy.save_file(tensors, folder / 'model.safetensors', {'format': 'pt'})
  again = shutil.copytree(workdir, tmp_path / 'run')
  with pytest.raises(ValueError, match='no longer holds.*blocks/up'):
    train.Run(_shrunk(str(folder)), str(again), override_workdir=True).train()


def test_a_warm_started_base_is_trained_whole_and_kept(tmp_path):
  train.Run(_tiny(rank=0, num_steps=0), str(tmp_path / 'plain')).train()
  train.Run(_tiny(rank=2, num_steps=0), str(tmp_path / 'run')).train()
  held = checkpoint.described(str(tmp_path / 'run'))
  assert set(held.values()) == {'float32'} and any('_lora_' in name for name in held)
  whole, = _numbers(tmp_path / 'plain')
  assert _numbers(tmp_path / 'run') == [whole]  # adapters are added after it

  # A plain run's policy is a base for adapters; the other way it is refused.
  config = _tiny(rank=2, init_from=str(tmp_path / 'plain'), num_steps=0)
  config.warmstart.steps = 0
  train.Run(config, str(tmp_path / 'on')).train()
  assert _numbers(tmp_path / 'on') == [whole]
  config = _tiny(rank=0, init_from=str(tmp_path / 'run'), num_steps=0)
  config.warmstart.steps = 0
  with pytest.raises(ValueError, match='lora_a.*absent asked for'):
    train.Run(config, str(tmp_path / 'off')).train()
