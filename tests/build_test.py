"""Every value is checked at build time; every field of the configuration is read."""

import pathlib
import re

import jax
import pytest
from ml_collections import ConfigDict

from configs import base, meshes, models, objectives
from experiments import countdown
from lpo_jax import batches, build, objective

ROOT = pathlib.Path(__file__).parents[1]


def tiny(**changes):
  config = countdown.get_config('tiny')
  for field, value in changes.items():
    *path, name = field.split('__')
    node = config
    for part in path:
      node = node[part]
    node[name] = value
  return config


@pytest.mark.parametrize(('changes', 'message'), [
  ({'micro_prompts': 3}, r'micro_prompts=3 does not divide'),
  ({'sampling__prompts_at_once': 3}, r'sampling.prompts_at_once=3 must divide'),
  ({'updates_per_step': 3}, r'updates_per_step=3 does not divide prompts_per_step=8'),
  ({'micro_responses': 3}, r'micro_responses=3 does not divide samples_per_prompt=4'),
  ({'samples_per_prompt': 1}, r'samples_per_prompt=1 with objective.skip_flat_groups'),
  ({'samples_per_prompt': 1, 'objective__skip_flat_groups': False},
   r'samples_per_prompt=1.*group_std.*constant'),
  ({'objective__temperature__value': 0.0}, r'temperature_value=0.0'),
  ({'objective__temperature__value': -1.0}, r'temperature_value=-1.0'),
  ({'objective__name': 'lpo_forward'}, r"'lpo_forward'.*lpo_fwd"),
  ({'mesh__shape': (4, 4, 1)}, r'needs 16 devices, but 8'),
  ({'mesh__shape': (1, 1, 4)}, r'heads=2 does not split over mesh axes tensor'),
  ({'mesh__axes': ('data', 'fsdp', 'model')}, r"'model'"),
  ({'sampling__prompt_buckets': (4,)}, r"prompt '.*' has \d+ tokens"),
  ({'sampling__top_k': 5}, r'top_k=5.*allow_truncated'),
  ({'sampling__temperature': 0.0}, r'sampling.temperature=0.0'),
  ({'policy__name': 'countdown_large'}, r"policy.name='countdown_large'"),
  ({'policy__dtype': 'float8'}, r"policy.dtype='float8'"),
  ({'init_from': 'elsewhere'}, r'warmstart.steps=0'),
  ({'optimizer__learning_rate': 0.0}, r'learning_rate=0.0'),
  ({'optimizer__schedule': 'cosin'}, r"schedule='cosin'"),
  ({'task__name': 'countdwn'}, r"did you mean 'countdown'"),
  ({'eval__every': 0}, r'eval.every=0'),
  ({'num_steps': -1}, r'num_steps=-1'),
  ({'replay__fraction': 0.3}, r'replay.fraction=0.3 of prompts_per_step=8'),
  ({'async_rollouts': 2}, r'async_rollouts=2: 0, or 1'),
  ({'objective__entropy_bonus': -1.0}, r'entropy_bonus=-1.0'),
  ({'optimizer__learning_rate': None}, r'optimizer.learning_rate=None'),
])
def test_a_bad_value_is_named(changes, message):
  with pytest.raises(ValueError, match=message):
    build.build(tiny(**changes))


def test_building_compiles_nothing(monkeypatch):
  compiled = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: compiled.append(event)
    if event.endswith('backend_compile_duration') else None)
  build.build(tiny())
  assert not compiled


def test_every_field_is_read():
  """A field nobody reads is a bug."""
  source = ''.join((ROOT / 'lpo_jax' / name).read_text()
                   for name in ('batches.py', 'build.py', 'checks.py', 'train.py',
                                'main.py'))
  source = source.replace('temperature.', 'config.objective.temperature.')

  def leaves(config, prefix=''):
    for name, value in config.items():
      if isinstance(value, ConfigDict) and name != 'options':
        yield from leaves(value, f'{prefix}{name}.')
      else:
        yield prefix + name

  sections = ('eval.', 'checkpoint.')  # read through a local name in train.py
  for field in leaves(base.get_config()):
    names = {field, field.split('.')[-1] if field.startswith(sections) else field}
    read = '|'.join(map(re.escape, names))
    assert re.search(rf'config\.({read})\b', source), field


@pytest.mark.parametrize(
  'variant', [v for v in countdown.VARIANTS if v not in countdown.BACKBONES])
def test_every_variant_builds(variant):
  parts = build.build(countdown.get_config(variant))
  for held_out in parts.eval_sets.values():
    assert len(held_out.problems) == countdown.get_config(variant).eval.problems


def test_optional_fields_may_be_none():
  build.build(tiny(objective__token_clip=None, optimizer__clip_norm=None))


def test_unknown_variant_is_named():
  with pytest.raises(ValueError, match="unknown variant 'smal'"):
    countdown.get_config('smal')


@pytest.mark.parametrize('name', objective.NAMES)
def test_every_objective_builds(name):
  build.build(tiny(objective__name=name))


@pytest.mark.parametrize('baseline', objectives.PAIRED_TEMPERATURE)
def test_pairs_name_known_rules(baseline):
  build.build(objectives.paired(tiny(), baseline))


def test_presets_are_consistent():
  for shape, *_ in meshes.MESHES.values():
    assert len(shape) == len(base.get_config().mesh.axes)
  assert models.POLICIES['countdown_small'].vocab_size == 116


def test_warm_start_batches_differ_by_step_and_repeat():
  config = tiny()
  parts = build.build(config)
  first = batches.warmstart_batch(config, parts, 0)
  again = batches.warmstart_batch(config, parts, 0)
  other = batches.warmstart_batch(config, parts, 1)
  assert (first.response == again.response).all()
  assert (first.response != other.response).any()
