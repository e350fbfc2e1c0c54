"""How stale may data be? Past groups and batches sampled a step ahead, for each method.

LPO anchors its target where the policy stands from the past policy that sampled a
group; GRPO weighs tokens by clipped ratios against the same record. A batch has B
groups each way, of which replay takes a half or a quarter from the iterations before:
so many fewer are sampled, and equal tokens are the fairer comparison. `_age` is the
oldest that counts, in iterations; `async` is one step of age for every group.

python -m lpo_jax.study --study=experiments/studies/staleness.py --out=runs/staleness
"""

from configs import objectives
from lpo_jax import study

AGES = {
  'on_policy': {},
  'async': {'async_rollouts': 1},
  'quarter_age4': {'replay.fraction': 0.25, 'replay.max_age': 4},
  'half_age1': {'replay.fraction': 0.5, 'replay.max_age': 1},
  'half_age4': {'replay.fraction': 0.5, 'replay.max_age': 4},
  'half_age16': {'replay.fraction': 0.5, 'replay.max_age': 16},
}


def get_study(variant: str = 'small') -> study.Study:
  """Return the study on one variant of the Countdown experiment."""
  against_itself = tuple((f'{name}-{age}', f'{name}-on_policy')
                         for name in objectives.COMPARED for age in AGES
                         if age != 'on_policy')
  against_grpo = tuple((f'{name}-{age}', f'grpo-{age}') for age in AGES
                       for name in ('lpo_fwd', 'lpo_rev'))
  # The token band is around pi_b: of old groups more tokens have left it already.
  pure = {'lpo_fwd-half_age16-pure': {'objective.name': 'lpo_fwd', **AGES['half_age16'],
                                      'objective.token_clip': None}}
  return study.Study(
    base=f'experiments/countdown.py:{variant}',
    runs=study.cross(objectives.COMPARED, AGES) | pure,
    pairs=(*against_itself, *against_grpo, (*pure, 'lpo_fwd-half_age16')))
