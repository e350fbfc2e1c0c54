"""Sections of tables, notes and figures, as Markdown and as one HTML file.

The HTML holds its figures inside, as data: addresses, asks for nothing from anywhere
and needs no script: it can be mailed, archived and printed.
"""

import base64
import dataclasses
import html
from collections.abc import Mapping, Sequence

_STYLE = """
body { font: 15px/1.5 sans-serif; color: #1b1b1b; max-width: 76em; margin: 2em auto;
       padding: 0 1em }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin-top: 2.2em }
div { overflow-x: auto } img { max-width: 100%; height: auto }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums }
td, th { padding: .3em .8em; text-align: right; white-space: nowrap }
th { border-bottom: 1.5px solid #555; font-weight: bold; white-space: normal }
td { border-bottom: 1px solid #ddd }
td:first-child, th:first-child { text-align: left }
li { max-width: 60em }
@media print { div { overflow: visible } h2, img { break-inside: avoid } }
"""


@dataclasses.dataclass(frozen=True)
class Section:
  """One question: a figure, a table and what to know about them, each optional."""

  title: str
  head: tuple[str, ...] = ()
  rows: tuple[tuple[str, ...], ...] = ()  # as many cells as the head
  notes: tuple[str, ...] = ()
  figure: str = ''  # NAME of NAME.png and NAME.svg


def markdown(sections: Sequence[Section], figures: bool = True) -> str:
  """Return the sections as Markdown.

  Args:
    sections: in order.
    figures: whether to point at them, as NAME.png beside the text.
  """
  return '\n'.join(_markdown(section, figures) for section in sections)


def _markdown(section: Section, figures: bool) -> str:
  parts = [f'## {section.title}\n']
  if section.figure and figures:
    parts.append(f'![{section.title}]({section.figure}.png)\n')
  if section.head:
    lines = [_line(section.head), '|---|' + '---:|' * (len(section.head) - 1)]
    parts.append('\n'.join([*lines, *map(_line, section.rows)]) + '\n')
  if section.notes:
    parts.append('\n'.join(f'- {note}' for note in section.notes) + '\n')
  return '\n'.join(parts)


def _line(cells: Sequence[str]) -> str:
  return '| ' + ' | '.join(cell.replace('|', r'\|') for cell in cells) + ' |'


def page(title: str, sections: Sequence[Section], figures: Mapping[str, bytes]) -> str:
  """Return the sections as one HTML file.

  Args:
    title: of the page.
    sections: in order.
    figures: NAME -> its SVG.
  """
  body = '\n'.join(_html(section, figures) for section in sections)
  return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
          f'<meta name="viewport" content="width=device-width">\n'
          f'<title>{html.escape(title)}</title>\n<style>{_STYLE}</style></head>\n'
          f'<body><h1>{html.escape(title)}</h1>\n{body}\n</body></html>\n')


def _html(section: Section, figures: Mapping[str, bytes]) -> str:
  title = html.escape(section.title)
  parts = [f'<section><h2>{title}</h2>']
  if section.figure:
    inside = base64.b64encode(figures[section.figure]).decode()
    parts.append(f'<img alt="{title}" src="data:image/svg+xml;base64,{inside}">')
  if section.head:
    rows = [_row('th', section.head), *(_row('td', row) for row in section.rows)]
    parts.append('<div><table>\n' + '\n'.join(rows) + '\n</table></div>')
  if section.notes:
    items = ''.join(f'<li>{html.escape(note)}</li>\n' for note in section.notes)
    parts.append(f'<ul>\n{items}</ul>')
  return '\n'.join([*parts, '</section>'])


def _row(tag: str, cells: Sequence[str]) -> str:
  inside = ''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)
  return f'<tr>{inside}</tr>'
