"""The experiment with images: tiny trains, the other says the paper's setting."""

import pathlib

import pytest

from configs import models
from experiments import geometry3k
from lpo_jax import build, checks, evaluate, footprint, prompts, train, view
from lpo_jax import metrics as metrics_lib

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def tiny(monkeypatch):
  """Return the tiny variant, shrunk to what a test can wait for."""
  monkeypatch.chdir(ROOT)  # the vocabulary's place is relative
  config = geometry3k.get_config('tiny')
  config.task.options.update(train_size=64, test_size=8)
  config.warmstart.update(steps=2, batch=8, warmup_steps=1)
  config.update(num_steps=2, prompts_per_step=8, samples_per_prompt=4, micro_prompts=4)
  config.eval.update(every=2, problems=8, samples=4, final_samples=4)
  config.checkpoint.every = 1
  config.objective.skip_flat_groups = False
  config.log.update(tensorboard=False, groups_every=1, groups=2)
  return config


def test_the_tiny_variant_trains_evaluates_and_shows_its_figures(tiny, tmp_path):
  train.Run(tiny, str(tmp_path)).train()
  lines = metrics_lib.read(str(tmp_path))
  assert [line['step'] for line in lines] == [0, 1, 2]
  for line in lines[1:]:
    assert line['mismatch/logp_abs_mean'] < 1e-5
    assert line['reward/mean'] == pytest.approx(
      0.9 * line['reward/correct'] + 0.1 * line['reward/format'], abs=1e-6)
  assert {'val/figures/mean@4', 'val/figures/right_angle',
          'val/figures/right_segment'} <= lines[0].keys()
  groups = view.groups(str(tmp_path))
  for group in groups:
    problem = next(p for p in build.build(tiny).train_problems if p.id == group['id'])
    name, = group['images']
    assert (tmp_path / 'rollouts' / name).read_bytes() == problem.images[0]
  assert view.page(str(tmp_path), groups).count('src="data:image/png;base64,') == 2


def test_frozen_or_trained_and_however_cut_it_is_one_run(tiny, tmp_path):
  """One update's metrics are the same, but for the gradient of a trained tower."""
  found = {}
  tiny.policy.vision.frozen = True
  for name, change in (('frozen', {}), ('trained', {'policy.vision.frozen': False}),
                       ('parts', {'sampling.prompts_at_once': 4, 'micro_prompts': 2})):
    config = tiny.copy_and_resolve_references()
    config.num_steps = config.updates_per_step = 1
    # A policy that knows nothing is told apart by the lengths of its responses.
    config.task.reward.update(correct=0.5, format=0.1, length=0.4, full_length=0.0)
    config.update_from_flattened_dict(change)
    train.Run(config, str(tmp_path / name)).train()
    found[name] = metrics_lib.read(str(tmp_path / name))[1]
  for name in ('reward/mean', 'actor/entropy', 'actor/token_entropy', 'actor/loss'):
    for other in ('trained', 'parts'):
      assert found[other][name] == pytest.approx(found['frozen'][name], rel=1e-3,
                                                 abs=1e-6), (name, other)
  assert found['frozen']['actor/grad_norm'] > 1e-3
  assert found['parts']['actor/grad_norm'] == pytest.approx(
    found['frozen']['actor/grad_norm'], rel=1e-3)
  assert found['trained']['actor/grad_norm'] > found['frozen']['actor/grad_norm']


def test_problems_are_checked_against_the_policy_before_anything_is_compiled(tiny):
  tiny.sampling.prompt_buckets = (15,)
  with pytest.raises(ValueError, match="'test-0' has 16 tokens"):
    build.build(tiny)
  tiny.sampling.prompt_buckets, tiny.sampling.patch_buckets = (16,), (8,)
  with pytest.raises(ValueError, match="'test-0' have 12 patches.*patch_buckets"):
    build.build(tiny)
  tiny.sampling.patch_buckets = (12,)
  tiny.policy.name = 'bytes_tiny'
  with pytest.raises(ValueError, match="'test-0' has images, but the policy reads"):
    build.build(tiny)


def test_shuffled_images_are_another_set_of_the_same_questions(tiny):
  tiny.eval.shuffle_images = True
  shuffled = build.build(tiny).eval_sets
  tiny.eval.shuffle_images = False
  problems = build.build(tiny).eval_sets['figures'].problems
  others = shuffled['figures_shuffled'].problems
  assert [p.answer for p in others] == [p.answer for p in problems]
  assert [p.images for p in others] == [p.images for p in problems[4:] + problems[:4]]
  with pytest.raises(ValueError, match='has 0 images, and no other'):
    evaluate.with_images_of_others([prompts.Problem('a', None, 'a')] * 2)


def test_the_papers_setting_is_said_and_fits_eight_gpus():
  config = geometry3k.get_config('qwen2p5_vl_3b')
  checks.check(config)
  assert (config.prompts_per_step, config.updates_per_step) == (128, 2)
  assert (config.samples_per_prompt, config.sampling.max_new_tokens) == (8, 1024)
  assert (config.task.reward.correct, config.task.reward.format) == (0.9, 0.1)
  assert (config.eval.samples, config.eval.problems) == (16, 601)
  assert config.policy.path == 'Qwen/Qwen2.5-VL-3B-Instruct'
  config.policy.path = ''
  config.mesh.shape = (1, 2, 4)
  parts = build.plan(config)
  assert parts.policy_config.vision == models.POLICIES['qwen2.5_vl_3b'].vision
  sizes = footprint.memory(build.setting(parts, config.prompts_per_step))
  assert max(kinds['total'] for kinds in sizes.values()) < 0.9 * 80e9


def test_every_variant_passes_the_checks():
  for variant in geometry3k.VARIANTS:
    checks.check(geometry3k.get_config(variant))
