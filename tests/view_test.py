"""A group is shown whole: in a terminal, and with its images in one HTML file."""

import base64
import re

import numpy as np
import pytest

from lpo_jax import view, workdir
from lpo_jax.types import Problem
from tests import images_test

PNG = images_test.picture((30, 20))


@pytest.fixture
def run(tmp_path):
  """Return a run's folder with looks at steps 1 and 20."""
  message = [{'role': 'user', 'content': [{'type': 'image'},
                                          {'type': 'text', 'text': 'Find <x>.'}]}]
  problems = [Problem(message, {'x': 7}, 'first', (PNG,)),
              Problem('What is 1 + 1?', '2', 'second')]
  texts = [['a </script> \x1b[2J \n b', 'seven'], ['2', 'two & more']]
  rewards = np.array([[0.0, 1.0], [1.0, 0.0]])
  halves = np.full((2, 2), 0.5)
  after = np.array([[0.2, 0.8], [0.6, 0.4]])
  for step in (1, 20):
    workdir.write_groups(str(tmp_path), step, problems, texts, rewards,
                         (np.array([[0.1, 0.9], [0.75, 0.25]]), halves, after),
                         np.array([[0.4, -0.4], [-0.25, 0.25]]),
                         np.array([[12, 1], [1, 3]]))
  return str(tmp_path)


def test_the_newest_look_is_taken_and_any_other_can_be(run):
  assert view.steps(run) == [1, 20]
  assert view.groups(run)[0]['step'] == 20
  assert view.groups(run, 1)[0]['step'] == 1
  with pytest.raises(ValueError, match='--step=3: .* steps 1, 20'):
    view.groups(run, 3)
  with pytest.raises(ValueError, match='holds no step_N.jsonl'):
    view.groups(run + '/images')


def test_a_terminal_shows_numbers_and_no_control_characters(run):
  found = view.text(view.groups(run)[0])
  lines = found.splitlines()
  assert lines[0] == 'step 20, problem first'
  assert 'user: <image> Find <x>.' in lines[1]
  assert 'answer: {"x": 7}' in found and '\x1b' not in found and '\\x1b[2J' in found
  rows = [line.split() for line in lines if re.match(r' +\d\.\d{3} ', line)]
  assert rows[0] == ['1.000', '0.900', '0.500', '0.800', '-0.4000', '1',
                     'seven']  # by P after
  assert rows[1][:6] == ['0.000', '0.100', '0.500', '0.200', '+0.4000', '12']


def test_html_is_one_file_with_the_image_inside(run):
  found = view.page(run, view.groups(run))
  inside, = re.findall(r'src="data:image/png;base64,([^"]+)"', found)
  assert base64.b64decode(inside) == PNG
  assert 'http' not in found and '</script>' not in found
  assert '&lt;/script&gt;' in found and 'two &amp; more' in found
  assert found.count('<section>') == 2
  assert found.index('first') < found.index('second')


def test_an_image_that_is_gone_is_named(run):
  group = view.groups(run)[0] | {'images': ['images/none']}
  with pytest.raises(ValueError, match='images/none'):
    view.page(run, [group])


def test_the_command_line(run, tmp_path, capsys):
  assert view.main([run, '--step=1']) == 0
  assert 'step 1, problem first' in capsys.readouterr().out
  assert view.main([run, '--id=second']) == 0
  assert 'What is 1 + 1?' in capsys.readouterr().out
  page = tmp_path / 'page.html'
  assert view.main([run, f'--html={page}']) == 0
  assert page.read_text().startswith('<!doctype html>')
  assert view.main([run, '--id=third']) == 2
  assert 'the look has first, second' in capsys.readouterr().err


@pytest.fixture
def looks():
  """Return the groups of a look: solved and flat, solved and mixed, neither right."""
  def group(name, rewards, after, coefficients):
    return {'step': 5, 'id': name, 'prompt': 'p', 'responses': ['x', 'y'],
            'rewards': rewards, 'target': [0.5, 0.5], 'policy_before': [0.5, 0.5],
            'policy_after': after, 'coefficients': coefficients, 'lengths': [3, 2]}
  return [group('all', [1.0, 1.0], [0.5, 0.5], [0.0, 0.0]),
          group('one', [0.0, 1.0], [0.4, 0.6], [0.1, -0.3]),
          group('none', [0.0, 0.0], [0.5, 0.5], [0.0, 0.0]),
          group('part', [0.0, 0.5], [0.2, 0.8], [0.2, -0.2])]


def _names(found):
  return [group['id'] for group in found]


def test_groups_are_filtered_by_their_rewards(looks):
  assert _names(view.choose(looks, 'solved')) == ['all', 'one']
  assert _names(view.choose(looks, 'flat')) == ['all', 'none']
  assert _names(view.choose(looks, 'mixed')) == ['one', 'part']
  with pytest.raises(ValueError, match='--only=flat: none of the 1 groups of step 5'):
    view.choose(looks[1:2], 'flat')


def test_groups_are_sorted_by_largest_coefficient_or_change(looks):
  assert _names(view.choose(looks, sort='coefficient'))[:2] == ['one', 'part']
  assert _names(view.choose(looks, sort='change'))[:2] == ['part', 'one']
  assert _names(view.choose(looks, 'solved', 'change')) == ['one', 'all']
  assert view.change(looks[3]) == pytest.approx(0.3)
  assert view.largest_coefficient(looks[1]) == 0.3


def test_looks_of_older_runs_still_open(looks):
  old = {name: value for name, value in looks[1].items()
         if name not in ('coefficients', 'lengths')}
  shown = view.text(old)
  assert 'c_k' not in shown and 'tokens' not in shown and '0.600' in shown
  assert 'c_k' not in view.page('run', [old])
  assert _names(view.choose([old], sort='change')) == ['one']
  with pytest.raises(ValueError, match='without coefficients: .* --sort=change'):
    view.choose([old], sort='coefficient')


def test_the_page_follows_filter_and_order(run, tmp_path, capsys):
  page = tmp_path / 'page.html'
  assert view.main([run, '--sort=coefficient', f'--html={page}']) == 0
  text = page.read_text()
  assert text.index('<h2>first</h2>') < text.index('<h2>second</h2>')
  assert '-0.4000' in text and 'changed by 0.300' in text
  assert view.main([run, '--only=mixed', '--sort=change']) == 0
  assert 'problem first' in capsys.readouterr().out
  assert view.main([run, '--only=flat']) == 2
  assert '--only=flat' in capsys.readouterr().err
