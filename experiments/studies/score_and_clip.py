"""Do the mean score and the token clip matter? Mean or sum, clipped or not.

The paper normalises scores by length and leaves tokens outside the band without a
gradient; the sum is the sequence's own log-ratio, no clip the pure projection. Flat
groups are left out here; `flat_groups` asks whether they should be.

python -m lpo_jax.study --study=experiments/studies/score_and_clip.py --out=runs/score
"""

from lpo_jax import study


def get_study(variant: str = 'small') -> study.Study:
  """Return the study on one variant of the Countdown experiment."""
  return study.Study(
    base=f'experiments/countdown.py:{variant}',
    runs=study.cross(
      {'fwd': {'objective.name': 'lpo_fwd'}, 'rev': {'objective.name': 'lpo_rev'}},
      {score: {'objective.score': score} for score in ('mean', 'sum')},
      {'clip': {'objective.token_clip': 0.2}, 'pure': {'objective.token_clip': None}}),
    pairs=(('fwd-sum-clip', 'fwd-mean-clip'), ('fwd-mean-pure', 'fwd-mean-clip'),
           ('rev-sum-clip', 'rev-mean-clip'), ('rev-mean-pure', 'rev-mean-clip')))
