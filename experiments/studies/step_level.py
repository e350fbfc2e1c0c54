"""Do local simplices make written steps right?

A share of each batch's 64 groups is local: K = 8 continuations of one response, from
the end of one of its steps (lpo_jax/step_level.py). Samples and updates are as many.
Does trace_valid_frac rise, the share of right answers whose written steps are right,
and what does it cost in mean@16 and pass@16? The verifier reads the answer alone.
Prefixes may hold both steps of three numbers. The report has reward/trace_valid_frac,
of groups at the sequence level; metrics.jsonl the held-out one,
val/countdown/trace_valid_frac.

python -m lpo_jax.study --study=experiments/studies/step_level.py --out=runs/step_level
`tiny` takes seconds a run and learns nothing.
"""

from lpo_jax import study


def get_study(variant: str = 'small') -> study.Study:
  """Return the study on one variant of the Countdown experiment."""
  methods = {name: {'objective.name': name} for name in ('lpo_fwd', 'lpo_rev')}
  shares = {
    'sequence': {'step_level.fraction': 0.0},
    'quarter': {'step_level.fraction': 0.25},
    'half': {'step_level.fraction': 0.5}}
  return study.Study(
    base=f'experiments/countdown.py:{variant}', fixed={'step_level.prefix': 12},
    runs=study.cross(methods, shares),
    pairs=tuple((f'{name}-{share}', f'{name}-sequence') for name in methods
                for share in ('quarter', 'half')))
