"""Folders of runs with numbers known by hand."""

from lpo_jax import metrics


def write(path, seed, name='lpo_fwd', score=0.5, steps=20, **fields):
  """Write a run's config and metrics; its score climbs evenly to `score`."""
  config = {'seed': seed, 'num_steps': 20, 'workdir': str(path)}
  config |= {'objective': {'name': name, 'token_clip': None}} | fields
  metrics.write_json(path / 'config.json', config)
  writer = metrics.Writer(path, tensorboard=False)
  for step in range(steps + 1):
    row = {} if step == 0 else {'actor/entropy': 1 / step, 'actor/grad_norm': score}
    if step % 10 == 0:
      value = score * step / steps
      row |= {'val/countdown/mean@16': value, 'val/countdown/mean@16_stderr': 0.01}
      row |= {'val/countdown/pass@4': value, 'val/countdown/pass@16': value}
    writer.write(step, row)
  writer.close()
  return path
