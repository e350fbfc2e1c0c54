"""Objectives in pairs: each baseline and the temperature that shares its target.

LPO at a baseline's temperature aims at the same w* = softmax(R / tau + s_t), so the two
differ in the projection alone (arXiv:2605.06139, Tables 1 and 2).
"""

PAIRED_TEMPERATURE = {
  'grpo': 'group_std',
  'dr_grpo': 'constant',
  'maxrl': 'group_mean',
  'reinforce_pp': 'batch_std',
}


def paired(config, baseline: str):
  """Set `config`'s temperature to the one that pairs with `baseline`; return it."""
  config.objective.temperature.rule = PAIRED_TEMPERATURE[baseline]
  config.objective.temperature.value = 1.0
  return config
