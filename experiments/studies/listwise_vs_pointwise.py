"""Is it the target or the normalisation that helps? LPO-fwd beside -sum w* log pi.

The pointwise loss has the same target but coefficients -w*: neither zero-sum nor
vanishing at the target. The paper sees it collapse.

python -m lpo_jax.study --out=runs/pointwise
    --study=experiments/studies/listwise_vs_pointwise.py
"""

from lpo_jax import study


def get_study(variant: str = 'small') -> study.Study:
  """Return the study on one variant of the Countdown experiment."""
  return study.Study(
    base=f'experiments/countdown.py:{variant}',
    runs={name: {'objective.name': name} for name in ('lpo_fwd', 'pointwise')},
    pairs=(('lpo_fwd', 'pointwise'),))
