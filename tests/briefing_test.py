"""What a run says: counts that follow from the batch words, advice with a flag."""

import re

import pytest

from experiments import countdown
from lpo_jax import briefing, build

HEALTHY = {'group/flat_frac': 0.3, 'response_length/clip_ratio': 0.0,
           'mismatch/logp_abs_mean': 1e-7, 'reward/mean': 0.4}


def test_batch_table_derives_its_counts():
  table = briefing.batch_table(64, 8, 2, 3, 8, 4, 1)
  counts = [int(line.split()[-1]) for line in table.splitlines()]
  # B, K, B K, E U, groups and microbatches a minibatch, responses a microbatch, devices
  assert counts == [64, 8, 512, 6, 32, 8, 32, 1]


def test_a_healthy_first_step_gives_no_advice():
  assert len(briefing.first_step(HEALTHY, 'p', ['r'])) == 3


def test_a_gap_is_told_where_there_was_one():
  for gap, told in ((1e-6, ['1.0e-06 nats']), (float('nan'), [])):
    lines = briefing.first_step(HEALTHY | {'mismatch/logp_abs_mean': gap}, 'p', ['r'])
    assert re.findall(r'\S+ nats', lines[2]) == told


@pytest.mark.parametrize(('change', 'flag'), [
  ({'group/flat_frac': 1.0}, 'warmstart.steps'),
  ({'group/flat_frac': 0.9}, 'samples_per_prompt'),
  ({'response_length/clip_ratio': 1.0}, 'policy.tokenizer'),
  ({'response_length/clip_ratio': 0.5}, 'sampling.max_new_tokens'),
  ({'mismatch/logp_abs_mean': 0.1}, 'objective.behavior'),
])
def test_what_is_off_is_named_with_its_flag(change, flag):
  assert flag in briefing.first_step(HEALTHY | change, 'p', ['r'])[-1]


def test_the_opening_names_every_phase_of_memory():
  config = countdown.get_config('tiny')
  opening = briefing.opening(build.build(config), config.prompts_per_step)
  assert 'to sample, estimated GiB: ' in opening
  assert 'to update, estimated GiB: ' in opening
