"""A workdir knows its owner, and what is written is whole."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from lpo_jax import workdir
from lpo_jax.types import Groups, Problem, Rollouts


def test_another_configuration_is_refused_with_the_differing_fields(tmp_path):
  workdir.write_config(str(tmp_path), {'seed': 0, 'objective': {'name': 'grpo'}})
  mine = {'seed': 1, 'objective': {'name': 'grpo'}}
  message = 'seed: there 0, here 1.*override_workdir'
  with pytest.raises(ValueError, match=message) as found:
    workdir.check_owner(str(tmp_path), mine, override=False)
  assert 'grpo' not in str(found.value)
  workdir.check_owner(str(tmp_path), mine, override=True)


def test_the_owner_and_a_new_workdir_are_welcome(tmp_path):
  config = {'seed': 0, 'shape': [1, 1, 1], 'clip': None}
  workdir.check_owner(str(tmp_path), config, override=False)
  workdir.write_config(str(tmp_path), config)
  workdir.check_owner(str(tmp_path), config, override=False)


def test_a_broken_config_file_is_named(tmp_path):
  (tmp_path / 'config.json').write_text('{')
  with pytest.raises(ValueError, match='config.json is not valid JSON'):
    workdir.check_owner(str(tmp_path), {}, override=False)


def test_groups_are_written_one_a_line(tmp_path):
  rewards = np.array([[0.0, 1.0], [1.0, 1.0]], np.float32)
  problems = [Problem('1 2 : 3 >', None, 'a'), Problem('4 5 : 9 >', None, 'b')]
  workdir.write_groups(str(tmp_path), 7, problems[:1], [['x', 'y'], ['z', 'z']],
                       rewards, [rewards] * 3, -rewards, np.array([[3, 4], [5, 6]]))
  rows = (tmp_path / 'rollouts/step_000007.jsonl').read_text().splitlines()
  assert len(rows) == 1
  row = json.loads(rows[0])
  assert row['responses'] == ['x', 'y'] and row['rewards'] == [0.0, 1.0]
  assert row['coefficients'] == [0.0, -1.0] and row['lengths'] == [3, 4]


def test_evidence_holds_every_array(tmp_path):
  rollouts = Rollouts(jnp.ones((2, 3), int), jnp.ones((2, 3), bool),
                      jnp.ones((2, 2, 4), int), jnp.ones((2, 2, 4), bool),
                      jnp.full((2, 2, 4), jnp.nan))
  groups = Groups(rollouts, jnp.ones((2, 2)), jnp.zeros((2, 2)), jnp.ones(2, bool))
  path = workdir.keep_evidence(str(tmp_path), 3, groups)
  with np.load(path) as arrays:
    assert np.isnan(arrays['rollouts/logprobs']).all()
    assert arrays['rewards'].shape == (2, 2)


def test_tokens_are_counted_from_the_last_line(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('{"step": 0}\n')
  assert workdir.total_tokens(str(tmp_path)) == 0
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1, "perf/total_tokens": 5}\n')
  assert workdir.total_tokens(str(tmp_path)) == 5
