"""--mode=eval: every held-out set asked, as records, one JSON and one table.

The numbers are those of `evaluate`, as in training. Killed and started again, it goes
on after the last finished batch of each set (`records`) and ends with the same ones.
`eval.json` holds per set: problems, n, temperature, seconds, where its records are and
every number; `average`, where there are several, as `evaluate` defines it.
"""

import os
import sys

import jax
import tqdm

from lpo_jax import build, evaluate, hosts
from lpo_jax import policy as policies
from lpo_jax import records as records_lib
from lpo_jax import workdir as workdirs

COLUMNS = ('set', 'problems', 'n', 'mean@n', 'pass@n', 'maj@n', 'truncated',
           'no answer', 'seconds')


def run(policy: policies.Policy, step: int, parts: build.Parts, key: jax.Array,
        config: dict, workdir: str, say) -> tuple[dict[str, dict[str, float]], dict]:
  """Evaluate a policy on every set of the run; write records and eval.json.

  Args:
    policy: to judge.
    step: its finished iterations.
    parts: of the run.
    key: of the samples.
    config: of the run, plain values.
    workdir: the run's folder.
    say: where to tell what is already there.

  Returns:
    set -> what `evaluate` says of it; and what eval.json holds.

  Raises:
    ValueError: records are damaged, or a problem cannot be recorded.
  """
  mark, records = records_lib.policy_mark(policy), {}
  for name, asked in parts.eval_sets.items():
    sampling, measured = evaluate.settings(asked, parts.eval_sampling, parts.evaluation)
    records[name] = records_lib.Records(workdir, name, records_lib.identity(
      mark, asked.problems, config['task'], parts.tokenizer, key, sampling, measured))
    _tell(say, name, len(asked.problems), records[name])
  with tqdm.tqdm(total=sum(len(asked.problems) for asked in parts.eval_sets.values()),
                 initial=sum(kept.problems for kept in records.values()),
                 unit='problem', mininterval=2, file=sys.stderr,
                 disable=not hosts.first()) as bar:
    for kept in records.values():
      kept.tell = bar.update
    found = evaluate.evaluate_sets(
      policy, parts.eval_sets, parts.task, parts.tokenizer, key, parts.eval_sampling,
      parts.evaluation, parts.mesh, records)
  report = {
    'step': step, 'seed': config['seed'], 'init_from': config['init_from'],
    'policy_path': config['policy']['path'], 'policy': mark,
    'sets': {name: _report(name, parts, records[name], found[name])
             for name in parts.eval_sets}}
  if 'average' in found:
    report['average'] = _bare('average', found['average'])
  workdirs.write_report(workdir, report)
  return found, report


def table(report: dict) -> str:
  """Return what eval.json holds as a Markdown table.

  A set of which more than n responses were drawn has a line for each number.
  """
  rows = []
  for name, one in report['sets'].items():
    for n in sorted({one['samples'], one['responses']}):
      rows.append([name, str(one['problems']), str(n), *_cells(one['numbers'], n),
                   f'{one["seconds"]:.1f}'])
  if 'average' in report:
    sets = report['sets'].values()
    rows.append(['average', str(sum(one['problems'] for one in sets)), 'n',
                 *_cells(report['average'], 'n'),
                 f'{sum(one["seconds"] for one in sets):.1f}'])
  widths = [max(3, *map(len, column)) for column in zip(COLUMNS, *rows, strict=True)]
  rule = ['-' * widths[0], *('-' * (width - 1) + ':' for width in widths[1:])]
  return '\n'.join(
    '| ' + ' | '.join([cells[0].ljust(widths[0]), *(
      cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))])
    + ' |' for cells in (COLUMNS, rule, *rows))


def headlines(found: dict[str, dict[str, float]], parts: build.Parts):
  """Yield mean@n of each set, in words."""
  for name, numbers in found.items():
    n = 'n' if name == 'average' else evaluate.settings(
      parts.eval_sets[name], parts.eval_sampling, parts.evaluation)[1].samples
    key = f'val/{name}/mean@{n}'
    yield f'{key} = {numbers[key]:.3f} +- {numbers[key + "_stderr"]:.3f}'


def flat(found: dict[str, dict[str, float]]) -> dict[str, float]:
  """Return the numbers of all sets as one dict."""
  return {key: value for numbers in found.values() for key, value in numbers.items()}


def _report(name: str, parts: build.Parts, records: records_lib.Records,
            numbers: dict[str, float]) -> dict:
  sampling, measured = evaluate.settings(parts.eval_sets[name], parts.eval_sampling,
                                         parts.evaluation)
  return {
    'problems': len(parts.eval_sets[name].problems), 'samples': measured.samples,
    'responses': measured.responses, 'temperature': sampling.temperature,
    'seconds': records.seconds,
    'records': os.path.join(records_lib.FOLDER, records.path.name),
    'numbers': _bare(name, numbers)}


def _bare(name: str, numbers: dict[str, float]) -> dict[str, float]:
  return {key.removeprefix(f'val/{name}/'): value for key, value in numbers.items()}


def _cells(numbers: dict[str, float], n: int | str) -> list[str]:
  mean, error = numbers[f'mean@{n}'], numbers[f'mean@{n}_stderr']
  return [f'{mean:.3f} +- {error:.3f}'] + [f'{numbers[name]:.3f}' for name in (
    f'pass@{n}', f'maj@{n}', 'truncated_frac', 'answer_missing_frac')]


def _tell(say, name: str, problems: int, records: records_lib.Records) -> None:
  if records.problems == problems:
    say(f'{name}: all {problems} problems are already in {records.path}')
  elif records.problems:
    say(f'{name}: going on after {records.problems} of {problems} problems in '
        f'{records.path}')
  elif others := records.others():
    say(f'{name}: starting anew in {records.path.name}; of another policy or another '
        f'setting, and left as they are: {", ".join(others)}')
