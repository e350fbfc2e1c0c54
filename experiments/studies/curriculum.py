"""Cover first, seek later? Forward to reverse KL, and the temperature, over time.

`lpo_mix` is (1 - m) KL(w* || P) + m KL(P || w*); m goes from 0 to 1 over the run, or
the other way, or stays at one half. And with LPO-fwd, tau starts at twice the group's
standard deviation and ends at half of it, or the other way.

python -m lpo_jax.study --study=experiments/studies/curriculum.py --out=runs/curriculum
"""

from lpo_jax import study

STEPS = {'small': 120, 'long': 1000, 'n34': 120}


def get_study(variant: str = 'small') -> study.Study:
  """Return the study on one variant of the Countdown experiment."""
  steps = {'objective.schedule_steps': STEPS.get(variant, 4)}
  mix = {'objective.name': 'lpo_mix', **steps}
  tau = {'objective.name': 'lpo_fwd', **steps}
  return study.Study(
    base=f'experiments/countdown.py:{variant}',
    runs={
      'fwd': {'objective.name': 'lpo_fwd'},
      'rev': {'objective.name': 'lpo_rev'},
      'half': {'objective.name': 'lpo_mix', 'objective.mix': 0.5},
      'fwd_to_rev': {**mix, 'objective.mix': 0.0, 'objective.mix_end': 1.0},
      'rev_to_fwd': {**mix, 'objective.mix': 1.0, 'objective.mix_end': 0.0},
      'soft_to_sharp': {**tau, 'objective.temperature.value': 2.0,
                        'objective.temperature.end': 0.5},
      'sharp_to_soft': {**tau, 'objective.temperature.value': 0.5,
                        'objective.temperature.end': 2.0},
    },
    pairs=(('fwd_to_rev', 'fwd'), ('fwd_to_rev', 'rev'), ('rev_to_fwd', 'fwd'),
           ('half', 'fwd'), ('soft_to_sharp', 'fwd'), ('sharp_to_soft', 'fwd')))
