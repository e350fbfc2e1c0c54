"""What is a group worth? One response against the batch's mean, at equal samples.

K = 1 pairs each response with a virtual one that earned the batch's mean reward; its
coefficient 1/2 - sigma((R - b) / tau) is bounded but not zero-sum. 512 prompts of one
response beside 64 of eight, at a constant tau and at the batch's standard deviation.

python -m lpo_jax.study --study=experiments/studies/virtual_pair.py --out=runs/virtual
"""

from lpo_jax import study


def get_study(variant: str = 'small') -> study.Study:
  """Return the study on one variant of the Countdown experiment."""
  sizes = {
    # A group of one is always flat: none is left out.
    'k1': {'samples_per_prompt': 1, 'prompts_per_step': 512, 'micro_prompts': 32,
           'objective.skip_flat_groups': False},
    'k8': {'samples_per_prompt': 8, 'prompts_per_step': 64},
  }
  rules = {'constant': {'objective.temperature.rule': 'constant',
                        'objective.temperature.value': 0.5},
           'batch_std': {'objective.temperature.rule': 'batch_std'}}
  return study.Study(
    base=f'experiments/countdown.py:{variant}', fixed={'objective.name': 'lpo_fwd'},
    runs=study.cross(sizes, rules),
    pairs=tuple((f'k1-{rule}', f'k8-{rule}') for rule in rules))
