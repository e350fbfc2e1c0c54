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
