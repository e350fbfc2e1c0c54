"""Which divergence to project by, at equal target? All seven, at GRPO's temperature.

python -m lpo_jax.study --study=experiments/studies/divergences.py --out=runs/div
"""

from lpo_jax import study

DIVERGENCES = ('lpo_fwd', 'lpo_rev', 'lpo_js', 'lpo_jeffreys', 'lpo_alpha', 'lpo_chi2',
               'lpo_hellinger')


def get_study(variant: str = 'small') -> study.Study:
  """Return the study on one variant of the Countdown experiment."""
  return study.Study(
    base=f'experiments/countdown.py:{variant}',
    runs={name: {'objective.name': name} for name in DIVERGENCES},
    pairs=tuple((name, 'lpo_fwd') for name in DIVERGENCES[1:]))
