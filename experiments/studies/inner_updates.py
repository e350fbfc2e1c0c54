"""Where does drift hurt each method? 1, 2, 4, 8 minibatches, and 1, 2, 4 epochs.

The more updates a batch serves, the further the policy has moved from the one that
sampled it: the policy gradient's coefficients are stale, LPO's are recomputed.

python -m lpo_jax.study --study=experiments/studies/inner_updates.py --out=runs/inner
"""

from configs import objectives
from lpo_jax import study


def get_study(variant: str = 'small') -> study.Study:
  """Return the study on one variant of the Countdown experiment."""
  cuts = {f'u{count}': {'updates_per_step': count} for count in (1, 2, 4, 8)}
  cuts |= {f'u2_e{count}': {'updates_per_step': 2, 'epochs': count}
           for count in (2, 4)}
  return study.Study(
    base=f'experiments/countdown.py:{variant}',
    runs=study.cross(objectives.COMPARED, cuts),
    pairs=tuple((f'{name}-{cut}', f'grpo-{cut}') for cut in cuts
                for name in ('lpo_fwd', 'lpo_rev')))
