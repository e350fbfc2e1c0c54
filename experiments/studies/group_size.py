"""How many responses a prompt, at equal samples a step? K = 2, 4, 8, 16, 32.

512 responses a step each way: few prompts in large groups, or many in small ones.

python -m lpo_jax.study --study=experiments/studies/group_size.py --out=runs/group_size
"""

from configs import objectives
from lpo_jax import study

SAMPLES = 512  # a step


def get_study(variant: str = 'small') -> study.Study:
  """Return the study on one variant of the Countdown experiment."""
  sizes = {f'k{size}': {'samples_per_prompt': size, 'prompts_per_step': SAMPLES // size,
                        'micro_prompts': max(1, 32 // size)}
           for size in (2, 4, 8, 16, 32)}
  return study.Study(
    base=f'experiments/countdown.py:{variant}',
    runs=study.cross(objectives.COMPARED, sizes),
    pairs=tuple((f'{name}-{size}', f'grpo-{size}') for size in sizes
                for name in ('lpo_fwd', 'lpo_rev')))
