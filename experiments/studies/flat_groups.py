"""Leave groups of equal rewards out, or project them back to where they stood?

On-policy they have no gradient; in the second minibatch the projection pulls the
policy back to the anchor on them, which is a brake. Left out, they also leave the mean,
so the others weigh more.

python -m lpo_jax.study --study=experiments/studies/flat_groups.py --out=runs/flat
"""

from lpo_jax import study


def get_study(variant: str = 'small') -> study.Study:
  """Return the study on one variant of the Countdown experiment."""
  methods = {name: {'objective.name': name} for name in ('lpo_fwd', 'lpo_rev', 'grpo')}
  methods['grpo']['objective.aggregation'] = 'seq_mean_token_mean'
  return study.Study(
    base=f'experiments/countdown.py:{variant}',
    runs=study.cross(methods, {
      'skip': {'objective.skip_flat_groups': True},
      'project': {'objective.skip_flat_groups': False}}),
    pairs=tuple((f'{name}-project', f'{name}-skip') for name in methods))
