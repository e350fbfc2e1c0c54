"""A run starts from a Hugging Face folder, learns, and leaves one behind."""

import json
import pathlib
import zlib

import jax
import numpy as np
import pytest

from experiments import countdown
from lpo_jax import build, tokenizer, train
from lpo_jax import metrics as metrics_lib
from lpo_jax import policy as policies
from lpo_jax.tasks import countdown as countdown_task
from tests import tiny
from tests.parity import checkpoints, record, vocabularies

# One of each architecture: qk_norm and tied, RoPE scaling, window, bias.
FAMILIES = ('qwen3', 'llama3', 'mistral', 'deepseek_qwen')


@pytest.fixture(autouse=True, scope='module')
def quick_compiles():
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


def folder_of(room, family: str) -> str:
  """Write a checkpoint with its tokenizer; return the folder."""
  hf = checkpoints.config(family, vocab_size=vocabularies.SIZE + 8,
                          sliding_window=16 if family == 'mistral' else None)
  checkpoints.write(room, hf)
  vocabularies.write(room, family)
  return str(room)


def shrunk(path: str, variant: str = 'qwen3_4b'):
  """Return the paper's setting, small enough for a test, on a folder's weights."""
  config = countdown.get_config(variant)
  config.policy.path = path
  config.policy.update(dtype='float32', remat='none')
  config.objective.behavior = 'sampler'
  config.mesh.shape = (1, 1, 1)
  config.task.options.update(train_size=32, test_size=2)
  config.num_steps = 2
  config.prompts_per_step = 2
  config.samples_per_prompt = 2
  config.updates_per_step = 1
  config.micro_prompts = 1
  config.sampling.update(max_new_tokens=8, chunk=8, prompt_buckets=(224,), unroll=False)
  config.objective.logprob_chunk = 0
  config.optimizer.learning_rate = 1e-2
  config.eval.update(every=2, problems=2, samples=2, final_samples=2, temperature=1.0)
  config.log.update(tensorboard=False, groups=1)
  return config


def by_checksum(task, problem, text: str) -> float:
  """Reward by the text's checksum, so that a random policy has something to learn."""
  return float(zlib.crc32(text.encode()) % 2)


@pytest.fixture
def rewards_vary(monkeypatch):
  monkeypatch.setattr(countdown_task.Countdown, 'verify', by_checksum)


@pytest.mark.parametrize('family', FAMILIES)
def test_lpo_trains_from_an_imported_checkpoint_and_transformers_loads_the_export(
    family, tmp_path, rewards_vary, capsys):
  path = folder_of(tmp_path / 'in', family)
  config = shrunk(path)
  workdir, out = str(tmp_path / 'run'), str(tmp_path / 'out')
  train.Run(config, workdir).train()
  said = capsys.readouterr().err
  begin = vocabularies.VOCABULARIES[family].bos or ''
  assert f"prompt: '{begin}A conversation between User and Assistant." in said
  rows = metrics_lib.read(workdir)
  assert [row['step'] for row in rows] == [0, 1, 2]
  for row in (rows[0], rows[2]):
    for score in ('mean@2', 'pass@1', 'pass@2'):
      sets = [row[f'val/{name}/{score}'] for name in ('cd34', 'cd4')]
      assert row[f'val/average/{score}'] == pytest.approx(np.mean(sets))
  assert rows[1]['actor/grad_norm'] > 0

  train.Run(config, workdir).export(out)
  before = policies.from_pretrained(path, dtype='float32')
  after = policies.from_pretrained(out)
  assert after.config == before.config
  moved = [np.abs(np.asarray(a) - np.asarray(b)).max() for a, b in
           zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)]
  assert min(moved) > 1e-4
  assert tokenizer.get(out).stop_tokens == tokenizer.get(path).stop_tokens
  pytest.importorskip('torch')
  found = np.asarray(tiny.call(after, *checkpoints.batch('left')))
  mask = checkpoints.batch('left')[2]
  np.testing.assert_allclose(found[mask], record.logits(record.load(out), 'left')[mask],
                             rtol=0, atol=1e-4)


def test_the_embedded_vocabularys_policy_is_exported_for_transformers(tmp_path):
  config = countdown.get_config('tiny')
  config.policy.unroll_layers = 0  # as from_pretrained reads it back
  config.warmstart.steps = 0
  run = train.Run(config, str(tmp_path / 'run'))
  with jax.set_mesh(run.parts.mesh):
    policy = run.programs.fresh_params(jax.random.key(3))
    state = run.programs.state_of(jax.tree.map(jax.numpy.copy, policy),
                                  jax.random.key(4))
    run.checkpoints.save(7, state, force=True)
  run.close()
  out = tmp_path / 'out'
  train.Run(config, str(tmp_path / 'run')).export(str(out))
  assert json.loads((out / 'config.json').read_text())['model_type'] == 'qwen3'
  assert json.loads((out / 'generation_config.json').read_text()) == {
    'eos_token_id': [3, 115], 'pad_token_id': 0}
  again = shrunk(str(out))
  again.task.options.format = 'compact'
  again.task.options.update(max_number=20, max_target=50, max_intermediate=99)
  parts = build.build(again)  # a run can start from it
  assert parts.tokenizer.encode('14 4 2 : 36 >') == [2, 18, 8, 6, 112, 40, 113]
  tiny.assert_same(policy, policies.from_pretrained(str(out)))
  pytest.importorskip('torch')
  tokens = np.full((2, 5), 20, np.int32)
  positions = np.tile(np.arange(5, dtype=np.int32), (2, 1))
  import torch
  with torch.no_grad():
    expected = record.load(str(out))(input_ids=torch.tensor(tokens.tolist())).logits
  found = tiny.call(policy, tokens, positions, np.ones((2, 5), bool))
  np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)


def test_eval_and_export_take_the_folder_where_nothing_is_trained(tmp_path):
  path = folder_of(tmp_path / 'in', 'qwen3')
  config = shrunk(path)
  train.Run(config, str(tmp_path / 'run')).evaluate_only()
  summary = json.loads((tmp_path / 'run' / 'summary.json').read_text())
  assert {name.split('/')[1] for name in summary['final']} == {'cd34', 'cd4', 'average'}
  train.Run(config, str(tmp_path / 'run')).export(str(tmp_path / 'out'))
  tiny.assert_same(policies.from_pretrained(path),
                   policies.from_pretrained(str(tmp_path / 'out')))
  config.policy.path = ''
  config.policy.name, config.policy.tokenizer = 'qwen3_0.6b', path
  with pytest.raises(FileNotFoundError, match='holds no checkpoint'):
    train.Run(config, str(tmp_path / 'run'), override_workdir=True).export(
      str(tmp_path / 'out2'))


def change(**fields):
  def apply(config, path):
    for field, value in fields.items():
      section, name = field.split('__')
      config[section][name] = value
  return apply


def remove(name):
  return lambda config, path: pathlib.Path(path, name).unlink()


def bigger_vocabulary(config, path):
  hf = checkpoints.config('qwen3', vocab_size=390)
  checkpoints.write(path, hf)


@pytest.mark.parametrize(('spoil', 'message'), [
  (change(policy__path='/no/such/folder'), "no folder '/no/such/folder'"),
  (change(policy__prompt_style='chatty'), "prompt_style='chatty'"),
  (change(policy__tokenizer='countdown'), 'not in the countdown vocabulary'),
  (change(policy__dtype='float8'), "dtype='float8'"),
  (remove('config.json'), 'config.json is missing'),
  (remove('model.safetensors'), 'neither model.safetensors nor'),
  (remove('tokenizer.json'), 'policy.tokenizer'),
  (bigger_vocabulary, r'has 400 tokens, but policy.path=.* only vocab_size=390'),
])
def test_what_is_wrong_with_a_folder_is_said_before_any_compile(spoil, message,
                                                                tmp_path):
  path = folder_of(tmp_path / 'in', 'qwen3')
  config = shrunk(path)
  spoil(config, path)
  compiled = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: compiled.append(event)
    if event.endswith('backend_compile_duration') else None)
  with pytest.raises(ValueError, match=message):
    build.build(config)
  assert not compiled


@pytest.mark.parametrize('variant', countdown.BACKBONES)
def test_a_variant_is_the_papers_countdown_setting(variant, tmp_path):
  config = countdown.get_config(variant)
  config.policy.path = folder_of(tmp_path / 'in', 'qwen3')
  config.mesh.shape = (1, 4, 1)  # of the tiny policy
  parts = build.build(config)
  assert len(parts.train_problems) == 2000
  assert {name: len(chosen.problems) for name, chosen in parts.eval_sets.items()} == {
    'cd34': 512, 'cd4': 512}
  counts = {name: {len(problem.answer['numbers']) for problem in chosen.problems}
            for name, chosen in parts.eval_sets.items()}
  assert counts == {'cd34': {3, 4}, 'cd4': {4}}
  assert (config.prompts_per_step, parts.update.updates_per_step) == (128, 2)
  assert (parts.sampling.samples_per_prompt, parts.sampling.max_new_tokens) == (8, 1024)
  assert (parts.sampling.temperature, parts.eval_sampling.temperature) == (1.0, 0.6)
  assert (parts.sampling.top_k, parts.sampling.top_p) == (0, 1.0)
  adam = parts.optimizer
  assert (adam.learning_rate, adam.b1, adam.b2, adam.weight_decay, adam.schedule) == (
    1e-6, 0.9, 0.999, 0.1, 'constant')
  assert (parts.objective.name, parts.objective.token_clip, config.epochs) == (
    'lpo_fwd', 0.2, 1)
  assert (config.eval.samples, config.eval.final_samples) == (64, 64)
  assert {1, 64} <= set(config.eval.pass_at)
  problem = parts.train_problems[0]
  numbers, target = problem.answer['numbers'], problem.answer['target']
  right = problem.answer['witness']
  assert parts.task.verify(problem, f'<answer>{right}</answer>') == 1
  assert parts.task.verify(problem, '<answer>1 + 1</answer>') == 0.1
  assert parts.task.verify(problem, f'{numbers} {target}') == 0
