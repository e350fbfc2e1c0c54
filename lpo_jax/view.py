"""Look inside groups of a run: prompt, answers, rewards, w*, P, coefficients, lengths.

  python -m lpo_jax.view DIR [--step=N] [--id=ID] [--html=FILE]
      [--only=solved|flat|mixed] [--sort=coefficient|change]

Reads DIR/rollouts/, one look of `log.groups` groups every `log.groups_every` steps.
Without --step the newest look, without --id its first group; with --html all of its
groups, in one file that holds their images, too. c_k is the coefficient of the update's
first epoch, summed over tokens: negative makes a response likelier.
"""

import argparse
import base64
import html
import json
import os
import pathlib
import re
import sys
import textwrap
from collections.abc import Callable

from lpo_jax import metrics

COLUMNS = {  # name -> field, and how its numbers are written
  'reward': ('rewards', '{:.3f}'), 'w*': ('target', '{:.3f}'),
  'P before': ('policy_before', '{:.3f}'), 'P after': ('policy_after', '{:.3f}'),
  'c_k': ('coefficients', '{:+.4f}'), 'tokens': ('lengths', '{:.0f}'),
}
_MASSES = ('w*', 'P before', 'P after')  # drawn as bars
ONLY: dict[str, Callable[[dict], bool]] = {
  'solved': lambda group: max(group['rewards']) == 1,  # by a response at least
  'flat': lambda group: max(group['rewards']) == min(group['rewards']),
  'mixed': lambda group: max(group['rewards']) > min(group['rewards']),
}
_KINDS = {b'\x89PNG': 'png', b'\xff\xd8\xff': 'jpeg', b'GIF8': 'gif', b'RIFF': 'webp'}
_WIDTH = 10  # characters of a column
_STYLE = """
body { font: 15px/1.45 sans-serif; color: #1b1b1b; max-width: 70em; margin: 2em auto }
section { display: flex; gap: 2em; margin: 2em 0; border-top: 1px solid #ccc }
figure { margin: 1em 0; flex: 0 0 auto; max-width: 24em }
img { max-width: 100%; image-rendering: auto; border: 1px solid #ddd; min-width: 12em }
table { border-collapse: collapse; width: 100% }
td, th { padding: .3em .6em; vertical-align: top; text-align: right }
th { color: #555; font-weight: normal } tr + tr { border-top: 1px solid #eee }
td:last-child, th:last-child { text-align: left; white-space: pre-wrap; width: 100% }
.bar { background: #0072b2; height: .25em } pre { white-space: pre-wrap }
"""


def steps(folder: str) -> list[int]:
  """Return the steps at which a run looked inside groups, in order.

  Raises:
    ValueError: it is no run, or has not looked yet.
  """
  rooms = pathlib.Path(folder) / 'rollouts'
  found = sorted(int(match[1]) for path in (rooms.iterdir() if rooms.is_dir() else ())
                 if (match := re.fullmatch(r'step_(\d+)\.jsonl', path.name)))
  if not found:
    raise ValueError(f'{str(rooms)!r} holds no step_N.jsonl: give the --workdir of a '
                     'run that has finished a step')
  return found


def groups(folder: str, step: int | None = None) -> list[dict]:
  """Return the groups of one look, as the run wrote them.

  Args:
    folder: of the run.
    step: at which; None for the newest.

  Raises:
    ValueError: nothing is there; names the steps that are.
  """
  known = steps(folder)
  if step is not None and step not in known:
    raise ValueError(f'--step={step}: {folder!r} has looks at {_listed(known)}')
  path = pathlib.Path(folder) / 'rollouts' / f'step_{step or known[-1]:06d}.jsonl'
  return [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]


def largest_coefficient(group: dict) -> float:
  """Return the largest |c| of a group.

  Raises:
    ValueError: the look is older than coefficients in looks.
  """
  if 'coefficients' not in group:
    raise ValueError(f'group {group["id"]} of step {group["step"]} was written without '
                     'coefficients: run anew, or use --sort=change')
  return max(map(abs, group['coefficients']))


def change(group: dict) -> float:
  """Return the total variation between P before and P after the update."""
  return 0.5 * sum(abs(after - before) for before, after in
                   zip(group['policy_before'], group['policy_after'], strict=True))


SORTS = {'coefficient': largest_coefficient, 'change': change}


def choose(found: list[dict], only: str = '', sort: str = '') -> list[dict]:
  """Return the groups asked for.

  Args:
    found: of one look.
    only: one of ONLY; '' for all.
    sort: one of SORTS, the largest first; '' as they were written.

  Raises:
    ValueError: none is left, or one lacks what it is sorted by.
  """
  kept = [group for group in found if not only or ONLY[only](group)]
  if not kept:
    raise ValueError(f'--only={only}: none of the {len(found)} groups of step '
                     f'{found[0]["step"]} is')
  return sorted(kept, key=SORTS[sort], reverse=True) if sort else kept


def text(group: dict, width: int = 88) -> str:
  """Return a group for a terminal, its responses by falling P after."""
  lines = [f'step {group["step"]}, problem {group["id"]}',
           textwrap.indent(spoken(group['prompt']), '  ')]
  if group.get('answer') is not None:
    lines.append(f'answer: {json.dumps(group["answer"], ensure_ascii=False)}')
  lines += [f'image: {name}' for name in group.get('images', ())]
  columns = _columns(group)
  lines += ['', ''.join(f'{name:>{_WIDTH}}' for name in columns) + '  response']
  for numbers, response in _rows(group):
    indent = _WIDTH * len(columns) + 2
    shown = textwrap.wrap(_visible(response), max(width - indent, 20)) or ['']
    lines.append(''.join(f'{number:>{_WIDTH}}' for number in _written(numbers))
                 + f'  {shown[0]}')
    lines += [' ' * indent + more for more in shown[1:]]
  return '\n'.join(lines)


def page(folder: str, found: list[dict]) -> str:
  """Return groups as one HTML file, their images inside."""
  title = f'{pathlib.Path(folder).name}, step {found[0]["step"]}'
  sections = '\n'.join(_section(folder, group) for group in found)
  return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
          f'<title>{html.escape(title)}</title>\n<style>{_STYLE}</style></head>\n'
          f'<body><h1>{html.escape(title)}</h1>\n{sections}\n</body></html>\n')


def spoken(prompt) -> str:
  """Return a prompt, text or messages, as text; <image> stands for an image."""
  if isinstance(prompt, str):
    return _visible(prompt)
  lines = []
  for message in prompt:
    content = message['content']
    if not isinstance(content, str):
      content = ''.join(f'<{part["type"]}> ' if part['type'] != 'text' else part['text']
                        for part in content)
    lines.append(f'{message["role"]}: {_visible(content)}')
  return '\n'.join(lines)


def _visible(said: str) -> str:
  """Return text whose control characters, which could steer a terminal, are written."""
  return ''.join(c if c.isprintable() or c == '\n' else ascii(c)[1:-1] for c in said)


def _columns(group: dict) -> list[str]:
  """Return the columns that a group has: older looks lack the last."""
  return [name for name, (field, _) in COLUMNS.items() if field in group]


def _rows(group: dict) -> list[tuple[dict[str, float], str]]:
  """Return (column -> number, response), by falling P after."""
  rows = [({name: group[COLUMNS[name][0]][k] for name in _columns(group)}, response)
          for k, response in enumerate(group['responses'])]
  return sorted(rows, key=lambda row: -row[0]['P after'])


def _written(numbers: dict[str, float]) -> list[str]:
  return [COLUMNS[name][1].format(number) for name, number in numbers.items()]


def _section(folder: str, group: dict) -> str:
  figures = ''.join(f'<img alt="{html.escape(name)}" src="{_inline(folder, name)}">'
                    for name in group.get('images', ()))
  if figures:
    figures = f'<figure>{figures}</figure>'
  head = ''.join(f'<th>{name}</th>' for name in (*_columns(group), 'response'))
  rows = ''
  for numbers, response in _rows(group):
    cells = ''
    for (name, number), shown in zip(numbers.items(), _written(numbers), strict=True):
      bar = f'<div class="bar" style="width:{100 * number:.1f}%"></div>'
      cells += f'<td>{shown}{bar if name in _MASSES else ""}</td>'
    rows += f'<tr>{cells}<td>{html.escape(response)}</td></tr>\n'
  answer = json.dumps(group.get('answer'), ensure_ascii=False)
  return (f'<section>{figures}<div><h2>{html.escape(str(group["id"]))}</h2>'
          f'<pre>{html.escape(spoken(group["prompt"]))}</pre>'
          f'<p>answer: {html.escape(answer)}; changed by {change(group):.3f}</p>'
          f'<table><tr>{head}</tr>\n{rows}</table></div></section>')


def _inline(folder: str, name: str) -> str:
  """Return an image of the run as a data: address."""
  path = pathlib.Path(folder) / 'rollouts' / name
  try:
    data = path.read_bytes()
  except OSError as error:
    raise ValueError(f'{str(path)!r}, an image of a group, cannot be read: '
                     f'{error.strerror}') from error
  kind = next((kind for magic, kind in _KINDS.items() if data.startswith(magic)),
              'octet-stream')
  return f'data:image/{kind};base64,{base64.b64encode(data).decode()}'


def _listed(numbers: list[int]) -> str:
  shown = [str(number) for number in numbers[-8:]]
  return f'steps {"..., " * (len(numbers) > 8)}{", ".join(shown)}'


def main(argv: list[str] | None = None) -> int:
  """Show what the command line asks for; return the exit status."""
  parser = argparse.ArgumentParser(prog='lpo_jax.view', description=__doc__,
                                   formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument('run', metavar='DIR', help='the --workdir of a run')
  parser.add_argument('--step', type=int, help='of the look; default: the newest')
  parser.add_argument('--id', help='of the problem; default: the first')
  parser.add_argument('--html', metavar='FILE', help='write all groups there instead')
  parser.add_argument('--only', choices=ONLY, default='', help='solved: some response '
                      'earned 1\nflat: all rewards equal\nmixed: they differ')
  parser.add_argument('--sort', choices=SORTS, default='', help='coefficient: largest '
                      '|c| first\nchange: largest total variation, P before to after')
  options = parser.parse_args(argv)
  try:
    found = choose(groups(options.run, options.step), options.only, options.sort)
    if options.id is not None:
      known = [str(group['id']) for group in found]
      if options.id not in known:
        raise ValueError(f'--id={options.id}: the look has {", ".join(known)}')
      found = [found[known.index(options.id)]]
    if options.html:
      metrics.write_text(options.html, page(options.run, found))
      print(f'written: {options.html}')
    else:
      print(text(found[0], os.get_terminal_size().columns if sys.stdout.isatty()
                 else 88))
  except ValueError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main())
