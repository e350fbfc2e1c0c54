"""Does projecting help, at the same target? GRPO, Dr.GRPO and MaxRL, each beside LPO.

Every policy gradient is paired with LPO-fwd and LPO-rev at the temperature that its
advantage implies: group std (GRPO), 1 (Dr.GRPO), group mean (MaxRL). Same start, data,
seeds, aggregation and flat groups left out: only the projection differs.

python -m lpo_jax.study --study=experiments/studies/paired.py --out=runs/paired
Variants: small (120 iterations), long (1000), tiny (seconds, for tests); grpo_small and
so on take the GRPO pair alone; in exact_small and so on LPO projects the sequence's own
score, a sum over tokens, without a token clip.
"""

from lpo_jax import study

TEMPERATURES = {  # policy gradient -> rule and value of tau
  'grpo': ('group_std', 1.0),
  'dr_grpo': ('constant', 1.0),
  'maxrl': ('group_mean', 1.0),
}
PROJECTIONS = ('lpo_fwd', 'lpo_rev')


def get_study(variant: str = 'small') -> study.Study:
  """Return the study of one variant."""
  kind, _, base = variant.rpartition('_')
  if base not in ('small', 'long', 'tiny') or kind not in ('', 'grpo', 'exact'):
    raise ValueError(f'unknown variant {variant!r}: choose small, long or tiny, or one '
                     'of them after grpo_ or exact_')
  methods = ('grpo',) if kind == 'grpo' else tuple(TEMPERATURES)
  runs, pairs = {}, []
  for method in methods:
    rule, value = TEMPERATURES[method]
    paired = {'objective.temperature.rule': rule, 'objective.temperature.value': value}
    for name in (method, *PROJECTIONS):
      label = method if name == method else f'{name}-{method}'
      runs[label] = {'objective.name': name, **paired}
      if kind == 'exact' and name != method:
        runs[label] |= {'objective.score': 'sum', 'objective.token_clip': None}
    # LPO's; a method's own aggregation would be a second difference.
    runs[method]['objective.aggregation'] = 'seq_mean_token_mean'
    pairs += [(f'{name}-{method}', method) for name in PROJECTIONS]
  return study.Study(
    base=f'experiments/countdown.py:{base}', runs=runs, pairs=tuple(pairs))
