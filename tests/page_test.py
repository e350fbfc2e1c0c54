"""A page is whole in itself, and says in HTML what it says in Markdown."""

import base64
import html.parser

from lpo_jax import page

SVG = b'<svg xmlns="http://www.w3.org/2000/svg"/>'
SECTIONS = [
  page.Section('Scores <all>', ('runs', 'a|b'), (('x & y', '0.5 ± 0.1'), ('z', '')),
               ('Mean, 1 < 2.',), 'curves'),
  page.Section('Notes alone', notes=('one', 'two')),
]


class _Reader(html.parser.HTMLParser):
  def __init__(self, text):
    super().__init__()
    self.tags, self.cells, self.addresses, self.open = [], [], [], []
    self.feed(text)
    assert not self.open

  def handle_starttag(self, tag, attributes):
    self.tags.append(tag)
    self.addresses += [v for k, v in attributes if k in ('src', 'href', 'srcset')]
    if tag not in ('meta', 'img'):
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open and self.open[-1] in ('td', 'th', 'li', 'h2'):
      self.cells.append(data)


def test_html_is_well_formed_whole_and_without_scripts():
  text = page.page('A & B', SECTIONS, {'curves': SVG})
  found = _Reader(text)
  inside, = found.addresses
  head, _, data = inside.partition(',')
  assert head == 'data:image/svg+xml;base64' and base64.b64decode(data) == SVG
  assert not {'script', 'link', 'iframe', 'object'} & set(found.tags)
  assert 'url(' not in text and '@import' not in text and 'http' not in text
  assert '<title>A &amp; B</title>' in text
  assert found.cells == ['Scores <all>', 'runs', 'a|b', 'x & y', '0.5 ± 0.1', 'z',
                         'Mean, 1 < 2.', 'Notes alone', 'one', 'two']


def test_markdown_has_the_same_and_points_at_figures_beside_it():
  text = page.markdown(SECTIONS)
  assert text == '''## Scores <all>

![Scores <all>](curves.png)

| runs | a\\|b |
|---|---:|
| x & y | 0.5 ± 0.1 |
| z |  |

- Mean, 1 < 2.

## Notes alone

- one
- two
'''
  assert '![' not in page.markdown(SECTIONS, figures=False)
