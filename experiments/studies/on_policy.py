"""With one update a batch, is LPO-rev the policy gradient, curve on curve?

Proposition 1: on-policy the reverse-KL coefficients are -A / K, A = (R - mean) / tau.
One minibatch of the whole batch, so every update is on-policy; GRPO with its token
clip never active, LPO-rev at GRPO's temperature, LPO-fwd beside them.

python -m lpo_jax.study --study=experiments/studies/on_policy.py --out=runs/on_policy
"""

from lpo_jax import study


def get_study(variant: str = 'small') -> study.Study:
  """Return the study on one variant of the Countdown experiment."""
  return study.Study(
    base=f'experiments/countdown.py:{variant}',
    fixed={'updates_per_step': 1, 'epochs': 1},
    runs={
      'grpo': {'objective.name': 'grpo',
               'objective.aggregation': 'seq_mean_token_mean'},
      'lpo_rev': {'objective.name': 'lpo_rev'},
      'lpo_fwd': {'objective.name': 'lpo_fwd'},
    },
    pairs=(('lpo_rev', 'grpo'), ('lpo_fwd', 'grpo')))
