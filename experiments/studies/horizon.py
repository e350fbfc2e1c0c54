"""Who leads, and when? GRPO and LPO-fwd after 120, 400 and 1000 iterations.

One run of 1000 iterations, evaluated every 40, says all three. At equal pass@1, does
LPO-fwd keep more pass@k, or is it only slower? `n34` asks the same of 3 to 4 numbers,
`narrow` of a policy of a quarter of the size.

python -m lpo_jax.study --study=experiments/studies/horizon.py --out=runs/horizon
"""

from lpo_jax import study


def get_study(variant: str = 'long') -> study.Study:
  """Return the study on one variant of the Countdown experiment."""
  fixed = {} if variant == 'tiny' else {
    'num_steps': 1000, 'eval.every': 40, 'checkpoint.every': 200}
  methods = {name: {'objective.name': name} for name in ('grpo', 'lpo_fwd', 'lpo_rev')}
  methods['grpo']['objective.aggregation'] = 'seq_mean_token_mean'
  return study.Study(
    base=f'experiments/countdown.py:{variant}', fixed=fixed, runs=methods,
    pairs=(('lpo_fwd', 'grpo'), ('lpo_rev', 'grpo')))
