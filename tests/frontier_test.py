"""Who leads is who is not dominated; the drawing shows each way and its end."""

import re

import numpy as np
from matplotlib import image

from lpo_jax import frontier
from tests import matched_test

NAMES = ('a mean@4', 'a pass@4')


def test_undominated_points_are_those_of_a_double_loop():
  points = np.random.default_rng(0).integers(0, 6, (40, 2)) / 6  # with ties
  expected = [not any(other[0] >= point[0] and other[1] >= point[1]
                      and (other != point).any() for other in points)
              for point in points]
  assert frontier.undominated(points).tolist() == expected
  assert 0 < sum(expected) < 40


def test_mean_paths_are_over_seeds_at_shared_evaluations():
  one = matched_test.path([0.2, 0.4, 0.5], [0.9, 0.8, 0.6])
  two = matched_test.path([0.4, 0.8], [0.7, 0.6])
  mean, deviation = frontier.mean_path([one, two])
  np.testing.assert_allclose(mean, [[0.3, 0.8], [0.6, 0.7]])
  np.testing.assert_allclose(
    deviation[1], [np.std([0.4, 0.8], ddof=1), np.std([0.8, 0.6], ddof=1)])


PATHS = {
  'first': {0: matched_test.path([0.2, 0.4, 0.6], [0.9, 0.8, 0.5]),
            1: matched_test.path([0.2, 0.4, 0.6], [0.9, 0.8, 0.7])},
  'kth': {0: matched_test.path([0.2, 0.3, 0.5], [0.9, 0.7, 0.8]),
          1: matched_test.path([0.2, 0.3, 0.7], [0.9, 0.7, 0.8])},
  'neither': {0: matched_test.path([0.2, 0.3, 0.4], [0.9, 0.6, 0.4])},
}


def test_the_table_says_who_leads_by_means_by_seeds_and_on_the_way():
  section = frontier.section(PATHS, NAMES, 'frontier')
  rows = {row[0]: row[1:] for row in section.rows}
  # Ends by means: (0.6, 0.6), (0.6, 0.8), (0.4, 0.4).
  assert [rows[name][2] for name in PATHS] == ['no', 'yes', 'no']
  # Seed 0: (0.6, 0.5), (0.5, 0.8), (0.4, 0.4); seed 1: (0.6, 0.7), (0.7, 0.8).
  assert [rows[name][3] for name in PATHS] == ['1 of 2', '2 of 2', '0 of 1']
  # On the way (0.4, 0.8) is dominated by (0.6, 0.8).
  assert [rows[name][4] for name in PATHS] == ['0 of 2', '1 of 2', '0 of 2']
  assert rows['first'][0] == '0.600 ± 0.000'
  assert rows['first'][1] == f'0.600 ± {np.std([0.5, 0.7], ddof=1):.3f}'


def test_the_drawing_has_a_panel_a_set_and_no_date(tmp_path):
  files = [str(tmp_path / 'frontier.png'), str(tmp_path / 'frontier.svg')]
  frontier.draw({'a': (PATHS, NAMES), 'b': (PATHS, ('b mean@4', 'b pass@4'))}, *files)
  assert image.imread(files[0]).shape[1] > 1500
  first = (tmp_path / 'frontier.svg').read_bytes()
  assert len(re.findall(rb'id="axes_\d', first)) == 2 and b'dc:date' not in first
  frontier.draw({'a': (PATHS, NAMES), 'b': (PATHS, ('b mean@4', 'b pass@4'))}, *files)
  assert (tmp_path / 'frontier.svg').read_bytes() == first


def test_runs_that_share_no_evaluation_are_left_out_of_the_drawing(tmp_path):
  apart = matched_test.path([0.5], [0.5])
  apart.spent['iterations'][:] = 7
  paths = {'a': PATHS['kth'], 'b': {0: PATHS['kth'][0], 1: apart}}
  frontier.draw({'a': (paths, NAMES)}, str(tmp_path / 'frontier.png'))
  assert (tmp_path / 'frontier.png').exists()
  assert frontier.section(paths, NAMES, '').rows[1][5] == '0 of 0'
