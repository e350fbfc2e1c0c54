"""Look inside a group of a run: prompt, answers, rewards, w*, P before and P after.

  python -m lpo_jax.view DIR [--step=N] [--id=ID] [--html=FILE]

Reads DIR/rollouts/, one look of `log.groups` groups every `log.groups_every` steps.
Without --step the newest look, without --id its first group; with --html all of its
groups, in one file that holds their images, too.
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

from lpo_jax import metrics

COLUMNS = ('reward', 'w*', 'P before', 'P after')
_FIELDS = ('rewards', 'target', 'policy_before', 'policy_after')
_KINDS = {b'\x89PNG': 'png', b'\xff\xd8\xff': 'jpeg', b'GIF8': 'gif', b'RIFF': 'webp'}
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


def text(group: dict, width: int = 88) -> str:
  """Return a group for a terminal, its responses by falling P after."""
  lines = [f'step {group["step"]}, problem {group["id"]}',
           textwrap.indent(spoken(group['prompt']), '  ')]
  if group.get('answer') is not None:
    lines.append(f'answer: {json.dumps(group["answer"], ensure_ascii=False)}')
  lines += [f'image: {name}' for name in group.get('images', ())]
  lines += ['', ''.join(f'{name:>10}' for name in COLUMNS) + '  response']
  for numbers, response in _rows(group):
    indent = 10 * len(COLUMNS) + 2
    shown = textwrap.wrap(_visible(response), max(width - indent, 20)) or ['']
    lines.append(''.join(f'{number:10.3f}' for number in numbers) + f'  {shown[0]}')
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


def _rows(group: dict):
  """Yield (reward, w*, P before, P after) and response, by falling P after."""
  numbers = list(zip(*(group[name] for name in _FIELDS), strict=True))
  order = sorted(range(len(numbers)), key=lambda k: -numbers[k][-1])
  return [(numbers[k], group['responses'][k]) for k in order]


def _section(folder: str, group: dict) -> str:
  figures = ''.join(f'<img alt="{html.escape(name)}" src="{_inline(folder, name)}">'
                    for name in group.get('images', ()))
  if figures:
    figures = f'<figure>{figures}</figure>'
  head = ''.join(f'<th>{name}</th>' for name in (*COLUMNS, 'response'))
  rows = ''
  for numbers, response in _rows(group):
    cells = f'<td>{numbers[0]:.3f}</td>' + ''.join(
      f'<td>{p:.3f}<div class="bar" style="width:{100 * p:.1f}%"></div></td>'
      for p in numbers[1:])
    rows += f'<tr>{cells}<td>{html.escape(response)}</td></tr>\n'
  answer = json.dumps(group.get('answer'), ensure_ascii=False)
  return (f'<section>{figures}<div><h2>{html.escape(str(group["id"]))}</h2>'
          f'<pre>{html.escape(spoken(group["prompt"]))}</pre>'
          f'<p>answer: {html.escape(answer)}</p>'
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
  options = parser.parse_args(argv)
  try:
    found = groups(options.run, options.step)
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
