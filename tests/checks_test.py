"""Values that no part would refuse are named, with the remedy."""

import pytest

from configs import base
from lpo_jax import checks


def test_the_defaults_pass():
  checks.check(base.get_config())


@pytest.mark.parametrize(('field', 'value', 'message'), [
  ('task.workers', -1, 'task.workers=-1'),
  ('task.deadline_s', 0.0, 'task.deadline_s=0.0'),
  ('task.deadline_s', None, 'task.deadline_s=None: give it a value'),
  ('micro_prompts', -1, 'micro_prompts=-1: must be at least 0'),
  ('log.groups_every', 0, 'log.groups_every=0: must be at least 1'),
  ('sampling.top_p', 0.9, 'sampling.top_p=0.9.*allow_truncated')])
def test_a_value_that_cannot_be_is_named(field, value, message):
  config = base.get_config()
  *path, name = field.split('.')
  node = config
  for part in path:
    node = node[part]
  with node.ignore_type():
    node[name] = value
  with pytest.raises(ValueError, match=message):
    checks.check(config)


def test_a_single_sample_with_flat_groups_left_out_learns_nothing():
  config = base.get_config()
  config.samples_per_prompt, config.objective.skip_flat_groups = 1, True
  with pytest.raises(ValueError, match='would skip every group'):
    checks.check(config)


@pytest.mark.parametrize('old', [{'async_rollouts': 1}, {'replay.fraction': 0.5}])
@pytest.mark.parametrize('other', [{'step_level.fraction': 0.5},
                                   {'offline.path': 'lists.jsonl'}])
def test_old_groups_are_not_mixed_with_local_or_given_ones(old, other):
  config = base.get_config()
  config.update_from_flattened_dict(old | other)
  with pytest.raises(ValueError, match='set both to 0 with step_level.fraction'):
    checks.check(config)


@pytest.mark.parametrize(('fields', 'message'), [
  ({'mesh.sampling_devices': 'some'}, "sampling_devices='some': choose same or others"),
  ({'mesh.sampling_devices': 'others'}, 'with async_rollouts=0.* set async_rollouts=1'),
  ({'mesh.sampling_devices': 'others', 'async_rollouts': 1,
    'sampling.copy_weights': False}, 'set sampling.copy_weights=True'),
  ({'mesh.sampling_shape': (1, 1, 2), 'sampling.copy_weights': False},
   r'mesh.sampling_shape=\(1, 1, 2\).* set sampling.copy_weights=True')])
def test_sampling_cannot_be_just_anywhere(fields, message):
  config = base.get_config()
  config.update_from_flattened_dict(fields)
  with pytest.raises(ValueError, match=message):
    checks.check(config)


def test_what_is_compiled_ahead_is_of_one_mesh():
  config = base.get_config()
  checks.check_one_mesh(config)
  config.mesh.sampling_devices = 'others'
  with pytest.raises(ValueError, match='--mode=compile looks at the devices of one'):
    checks.check_one_mesh(config)
