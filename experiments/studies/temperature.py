"""How sharp a target? Constants, the statistics of group and batch, and solved ones.

LPO-fwd under every rule of `simplex/temperature.py`. `target_kl` and `target_ess` find
the tau at which the target is so far from the policy, or so many responses wide.

python -m lpo_jax.study --study=experiments/studies/temperature.py --out=runs/tau
"""

from lpo_jax import study

RULES = {
  'constant_0.25': ('constant', 0.25), 'constant_0.5': ('constant', 0.5),
  'constant_1': ('constant', 1.0), 'constant_2': ('constant', 2.0),
  'group_std': ('group_std', 1.0), 'group_mean': ('group_mean', 1.0),
  'batch_std': ('batch_std', 1.0), 'target_kl_0.5': ('target_kl', 0.5),
  'target_ess_4': ('target_ess', 4.0),
}


def get_study(variant: str = 'small') -> study.Study:
  """Return the study on one variant of the Countdown experiment."""
  return study.Study(
    base=f'experiments/countdown.py:{variant}',
    runs={name: {'objective.temperature.rule': rule,
                 'objective.temperature.value': value}
          for name, (rule, value) in RULES.items()},
    pairs=tuple((name, 'group_std') for name in RULES if name != 'group_std'))
