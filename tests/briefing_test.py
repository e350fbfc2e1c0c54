"""What a run says: counts that follow from the batch words, advice with a flag."""

import jax
import pytest

from configs import models
from lpo_jax import briefing, policy, sharding

HEALTHY = {'group/flat_frac': 0.3, 'response_length/clip_ratio': 0.0,
           'mismatch/logp_abs_mean': 1e-7, 'reward/mean': 0.4}


def test_batch_table_derives_its_counts():
  table = briefing.batch_table(64, 8, 2, 3, 8, 4, 1)
  counts = [int(line.split()[-1]) for line in table.splitlines()]
  # B, K, B K, E U, groups and microbatches a minibatch, responses a microbatch, devices
  assert counts == [64, 8, 512, 6, 32, 8, 32, 1]


def test_a_healthy_first_step_gives_no_advice():
  assert len(briefing.first_step(HEALTHY, 'p', ['r'])) == 3


@pytest.mark.parametrize(('change', 'flag'), [
  ({'group/flat_frac': 1.0}, 'warmstart.steps'),
  ({'group/flat_frac': 0.9}, 'samples_per_prompt'),
  ({'response_length/clip_ratio': 1.0}, 'policy.tokenizer'),
  ({'response_length/clip_ratio': 0.5}, 'sampling.max_new_tokens'),
  ({'mismatch/logp_abs_mean': 0.1}, 'objective.behavior'),
])
def test_what_is_off_is_named_with_its_flag(change, flag):
  assert flag in briefing.first_step(HEALTHY | change, 'p', ['r'])[-1]


def test_memory_estimate_counts_parameters_exactly_and_splits_them():
  config = models.POLICIES['countdown_small']
  params = jax.eval_shape(lambda key: policy.Policy(config, key), jax.random.key(0))
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  sizes = dict(rows=8, tokens=28, micro_rows=8)
  one = briefing.memory_estimate(params, config, sharding.make_mesh((1, 1, 1)), **sizes)
  assert one['params'] == pytest.approx(4 * count / 2**30)
  assert one['moments'] == 2 * one['params']
  mesh = sharding.make_mesh((1, 4, 2))
  split = briefing.memory_estimate(params, config, mesh, **sizes)
  assert split['params'] < one['params'] / 4
  assert split['kv_cache'] == one['kv_cache'] / 4
