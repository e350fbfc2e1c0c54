"""Objectives in pairs: each baseline and the temperature that shares its target.

LPO at a baseline's temperature aims at the same w* = softmax(R / tau + s_t), so the two
differ in the projection alone (arXiv:2605.06139, Tables 1 and 2). Experiments name
variants NAME, or NAME.BASELINE.PROJECTION: `qwen3_8b.maxrl.lpo_rev` is LPO's reverse
projection at MaxRL's temperature, `qwen3_8b.maxrl.baseline` MaxRL itself.
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


BASELINES = ('grpo', 'dr_grpo', 'maxrl')  # that the paper pairs with
PROJECTIONS = ('lpo_fwd', 'lpo_rev', 'baseline')


def variants(names) -> tuple[str, ...]:
  """Return every variant that `choose` knows: NAME alone, and with its pair."""
  pairs = [f'.{one}.{other}' for one in BASELINES for other in PROJECTIONS]
  return tuple(f'{name}{pair}' for name in names for pair in ('', *pairs))


def choose(config, variant: str, names):
  """Return the NAME of a variant, and set its objective.

  NAME alone is NAME.grpo.lpo_fwd.

  Raises:
    ValueError: there is no such variant.
  """
  name, _, pair = variant.partition('.')
  baseline, _, projection = (pair or f'{BASELINES[0]}.{PROJECTIONS[0]}').partition('.')
  if name not in names or baseline not in BASELINES or projection not in PROJECTIONS:
    raise ValueError(f'unknown variant {variant!r}: choose one of {", ".join(names)}, '
                     f'alone or as NAME.{"|".join(BASELINES)}.{"|".join(PROJECTIONS)}')
  paired(config, baseline)
  config.objective.name = baseline if projection == 'baseline' else projection
  return name

# A policy gradient and its projections under one target, as studies compare them; the
# gradient aggregates tokens as LPO does, or that would be a second difference.
COMPARED = {
  'grpo': {'objective.name': 'grpo',
           'objective.aggregation': 'seq_mean_token_mean'},
  'lpo_fwd': {'objective.name': 'lpo_fwd'},
  'lpo_rev': {'objective.name': 'lpo_rev'},
}
