"""What would help is named by flags that exist, the best first."""

import dataclasses

import pytest

from configs import base, models
from lpo_jax import hardware, knobs, roofline
from lpo_jax.policy import Lora

_LARGE = roofline.Setting(
  policy=dataclasses.replace(models.POLICIES['qwen3_4b']), prompts=128, samples=8,
  prompt_width=256, new_tokens=1024, chunk=128, micro_prompts=64, micro_responses=0,
  logprob_chunk=0, minibatches=2, epochs=1, behavior_pass=True, moment_dtype='float32',
  data=2, fsdp=4, tensor=2)


def _best(setting, count=20):
  return knobs.best(setting, hardware.chip('TPU v5p'), count)


def test_every_knob_is_a_flag_and_the_best_comes_first():
  found = _best(_LARGE)
  for knob in found:
    node = base.get_config()
    for part in knob['set'].removeprefix('--config.').split('=')[0].split('.'):
      node = node[part]
  saved = [knob['saves'] for knob in found]
  assert saved == sorted(saved, reverse=True)
  assert len(_best(_LARGE, 3)) == 3


@pytest.mark.parametrize('changes,flag', [
  (dict(prompts=8, micro_prompts=8), '--config.objective.logprob_chunk=128'),
  (dict(prompts=1024, micro_prompts=8, logprob_chunk=128),
   '--config.sampling.prompts_at_once=512'),
])
def test_what_weighs_most_is_what_would_help_most(changes, flag):
  setting = dataclasses.replace(
    _LARGE, data=1, fsdp=8, tensor=1, **changes,
    policy=dataclasses.replace(_LARGE.policy, remat='full', lora=Lora()))
  assert flag in [knob['set'] for knob in _best(setting, 2)]


def test_what_is_already_so_is_not_advised():
  setting = dataclasses.replace(
    _LARGE, data=1, fsdp=8, micro_prompts=8, micro_responses=1, logprob_chunk=64,
    moment_dtype='bfloat16', policy=dataclasses.replace(
      _LARGE.policy, remat='full', param_dtype='bfloat16', sequence_sharding=True,
      lora=Lora()))
  flags = {knob['set'].split('=')[0] for knob in _best(setting)}
  assert flags == {'--config.prompts_per_step', '--config.sampling.max_new_tokens',
                   '--config.sampling.prompts_at_once'}
