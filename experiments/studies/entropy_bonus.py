"""Is an entropy bonus gamma really only a temperature of tau + gamma?

On the simplex of K responses and on-policy it is, exactly: argmax <w, R> -
tau KL(w || P_t) + gamma H(w) = softmax(R / (tau + gamma)), so `simplex-fresh` and
`warmer-fresh` must be one curve. Two things could part them. Where the data are stale
the bonus also flattens the anchor, tau s_t / (tau + gamma). And the entropy of the
policy itself, of which the K responses are draws, adds -gamma log pi_b to the rewards:
unlikely responses are worth more (lpo_jax/tilt.py), by SLIGHT or by GAMMA.

python -m lpo_jax.study --study=experiments/studies/entropy_bonus.py --out=runs/bonus
"""

from lpo_jax import study

TAU, GAMMA, SLIGHT = 0.5, 0.5, 0.02

SHARP = {'objective.temperature.rule': 'constant', 'objective.temperature.value': TAU}
BONUSES = {
  'none': SHARP,
  'warmer': {**SHARP, 'objective.temperature.value': TAU + GAMMA},
  'simplex': {**SHARP, 'objective.entropy_bonus': GAMMA},
  'policy': {**SHARP, 'objective.entropy_bonus': GAMMA,
             'objective.entropy_of': 'policy'},
}
SLIGHTLY = {**BONUSES['policy'], 'objective.entropy_bonus': SLIGHT}
DATA = {
  'fresh': {},
  'stale': {'replay.fraction': 0.5, 'replay.max_age': 16, 'async_rollouts': 1},
}


def get_study(variant: str = 'small') -> study.Study:
  """Return the study on one variant of the Countdown experiment."""
  methods = {name: {'objective.name': name} for name in ('lpo_fwd', 'lpo_rev')}
  pairs = tuple((f'{name}-{first}-{data}', f'{name}-{second}-{data}')
                for name in methods for data in DATA for first, second in (
                  ('simplex', 'warmer'), ('policy', 'warmer'), ('warmer', 'none')))
  pairs += tuple((f'{name}-slight-fresh', f'{name}-none-fresh') for name in methods)
  return study.Study(
    base=f'experiments/countdown.py:{variant}',
    runs=study.cross(methods, BONUSES, DATA)
    | study.cross(methods, {'slight': SLIGHTLY}, {'fresh': {}}), pairs=pairs)
