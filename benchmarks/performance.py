"""docs/performance.md, made from the JSON files of the other benchmarks.

python -m benchmarks.performance [--results=benchmarks/results] [--out=docs]

Each benchmark writes what it measured by --json=RESULTS/NAME.json, NAME beginning with
the benchmark's: rollout.json, rollout_h200.json. Every number on the page comes from
such a file; what has none is listed as not measured, and what other processes disturbed
is said to be.
"""

import argparse
import json
import pathlib

from benchmarks import roofline, scaling, startup, tail, timing

ROOT = pathlib.Path(__file__).parents[1]
RESULTS, DOCS = ROOT / 'benchmarks' / 'results', ROOT / 'docs'
COMMANDS = {  # job -> what it answers, how it is measured
  'rollout': ("The sampler beside transformers' and tunix's",
              '--shape=W1,W2 --tunix_python=PYTHON'),
  'tail': ('Where a few responses are long', '--shape=W1'),
  'update': ('The update beside torch', '--shape=W1,W2'),
  'step': ("A whole step beside TRL's and tunix's",
           '--shape=W1 --trl_python=PYTHON --tunix_python=PYTHON'),
  'startup': ('From the command to the first step', ''),
  'roofline': ('How near to the device', '--shape=W1,W2'),
  'scaling': ('Against K, lengths, batch and devices', '--shape=W1'),
}
GPU_SHAPES = ('qwen3_1.7b', 'qwen3_4b')


def main() -> None:
  """Write the page."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--results', default=str(RESULTS), help='folder of JSON files')
  parser.add_argument('--out', default=str(DOCS), help='folder of performance.md')
  args = parser.parse_args()
  path = pathlib.Path(args.out, 'performance.md')
  path.write_text(document(read(pathlib.Path(args.results))))
  print(f'written: {path}')


def read(folder: pathlib.Path) -> list[dict]:
  """Return what the files of a folder hold, by job and file name.

  Raises:
    ValueError: a file that no benchmark wrote; names it.
  """
  found = []
  for path in sorted(folder.glob('*.json')):
    result = json.loads(path.read_text())
    job = result.get('job')
    if job not in COMMANDS or not path.stem.startswith(job) or not result.get('rows'):
      raise ValueError(f'{path}: holds job={job!r}; want one of {", ".join(COMMANDS)}, '
                       'with rows, in a file whose name begins with it')
    found.append(result | {'file': path.name})
  return sorted(found, key=lambda result: (list(COMMANDS).index(result['job']),
                                           result['file']))


def document(results: list[dict]) -> str:
  """Return docs/performance.md."""
  parts = [_HEAD, _missing(results)]
  for job, (title, _) in COMMANDS.items():
    for result in results:
      if result['job'] == job:
        parts += [f'## {title}', _where(result), _table(result), _notes(result)]
  return '\n\n'.join(part for part in parts if part) + '\n'


def _missing(results: list[dict]) -> str:
  """Return what has not been measured, with the command that does."""
  lines = []
  for job, (_, flags) in COMMANDS.items():
    mine = [result for result in results if result['job'] == job]
    if not any(result['platform'] == 'cpu' for result in mine):
      lines.append(f'- `python -m benchmarks.{job} {flags}'.rstrip()
                   + f' --json=benchmarks/results/{job}.json`')
    for shape in GPU_SHAPES if job != 'startup' else ():
      if not any(row['shape'] == shape for result in mine for row in result['rows']):
        lines.append(f'- `python -m benchmarks.{job} --shape={shape} --platform=cuda '
                     f'--json=benchmarks/results/{job}_{shape}.json`, on a GPU')
  return '\n'.join(['## Not measured', '', *lines]) if lines else ''


def _where(result: dict) -> str:
  """Return on what, with what and when a result was measured."""
  versions = ', '.join(f'{name} {version}' for name, version in
                       result['versions'].items())
  device = f'{result["cores"]} cores of {result["processor"] or result["machine"]}'
  if result['platform'] != 'cpu':
    device = f'{result["platform"]}, {device}'
  return (f'`python -m benchmarks.{result["job"]}`, {result["measured"]}: {device}; '
          f'{versions}; medians of {result["reps"]} '
          f'({result["file"]}).')


def _table(result: dict) -> str:
  """Return a result's table, as its benchmark prints it."""
  rows = result['rows']
  if result['job'] == 'startup':
    return startup.table(rows)
  if result['job'] == 'roofline':
    return roofline.table(rows)
  if result['job'] == 'tail':
    return tail.table(rows)
  if result['job'] == 'scaling':
    return (f'{scaling.table(rows)}\n\nPredicted, the least seconds of '
            f'[scale.md](scale.md):\n\n{scaling.prediction_table(result["predicted"])}')
  return timing.table(result['job'], rows)


def _notes(result: dict) -> str:
  """Return what a reader must know to judge a result."""
  notes = []
  if absent := result.get('absent'):
    notes.append(f'Absent, and so not compared: {", ".join(absent)}.')
  others = max(row.get('others_cores', 0.0) for row in result['rows'])
  if others > timing.DISTURBED_CORES:
    notes.append(f'Disturbed: other processes used up to {others:.1f} cores during a '
                 'repetition.')
  if result['job'] == 'scaling' and result['platform'] == 'cpu':
    notes.append('Devices here share the same cores: a flat rate is the best there is.')
  return ' '.join(notes)


_HEAD = '''# Performance

Made by `python -m benchmarks.performance` from the files in `benchmarks/results/`; each
benchmark's own words say what counts. W1 is 16 prompts of 32 tokens and 128 new ones,
W2 8 prompts of 256 and 256, K = 8, a policy of 6 layers of width 256 (4.85 M
parameters), float32. `qwen3_1.7b` and `qwen3_4b` are those policies with random weights
in bfloat16, 64 prompts of 512 tokens and 1024 new ones, K = 8.'''


if __name__ == '__main__':
  main()
