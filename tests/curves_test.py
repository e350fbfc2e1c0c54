"""Bands are over seeds at shared steps; smoothing keeps what it should."""

import numpy as np
import pytest
from matplotlib import image

from lpo_jax import curves


def test_smoothing_is_the_mean_of_a_centred_window_cut_at_the_ends():
  values = np.random.default_rng(0).normal(size=40)
  smoothed = curves.smooth(values, 5)
  for at in range(40):
    assert smoothed[at] == pytest.approx(values[max(at - 2, 0) : at + 3].mean())
  np.testing.assert_allclose(curves.smooth(values, 1), values)


def test_band_is_mean_and_sample_deviation_at_the_steps_all_seeds_have():
  one = (np.array([0, 1, 2, 3]), np.array([0.0, 1.0, 2.0, 3.0]))
  two = (np.array([1, 3, 5]), np.array([3.0, 7.0, 9.0]))
  steps, mean, deviation = curves.band([one, two, (np.array([], int), np.array([]))])
  assert steps.tolist() == [1, 3] and mean.tolist() == [2.0, 5.0]
  np.testing.assert_allclose(
    deviation, [np.std([1, 3], ddof=1), np.std([3, 7], ddof=1)]
  )


def test_one_seed_has_no_band():
  _, mean, deviation = curves.band([(np.array([0, 1]), np.array([2.0, 3.0]))])
  assert mean.tolist() == [2.0, 3.0] and deviation.tolist() == [0.0, 0.0]


def test_panels_take_the_largest_count_of_each_validation_set():
  names = ['val/a/pass@2', 'val/a/pass@16', 'val/a/mean@8', 'val/a/mean@8_stderr']
  rows = [{'step': 0} | dict.fromkeys([*names, 'val/b/mean@4', 'actor/entropy'], 0.5)]
  assert [panel.metric for panel in curves.panels(rows)] == [
    'val/a/mean@8',
    'val/a/pass@16',
    'val/b/mean@4',
    'actor/entropy',
  ]


def test_panels_of_an_average_take_each_set_at_its_own_n():
  names = ['val/average/pass@1', 'val/average/pass@n', 'val/average/mean@n_stderr']
  panels = curves.panels([{'step': 0} | dict.fromkeys(names, 0.5)])
  assert [(panel.metric, panel.title) for panel in panels] == [
    ('val/average/pass@n', 'average, held out: pass@n')]


def test_no_two_groups_look_alike_even_without_colour():
  looks = [curves.line_style(index) for index in range(20)]
  assert len({(str(look['linestyle']), look['marker']) for look in looks}) == 20


def test_runs_of_different_length_and_missing_numbers_can_be_drawn(tmp_path):
  rows = [{'step': s, 'actor/entropy': 1.0, 'reward/mean': None} for s in range(30)]
  groups = {'long': [rows, rows[:9]], 'short': [rows[:3]], 'none': [[{'step': 0}]]}
  assert curves.draw(groups, str(tmp_path / 'figure.png'))
  assert image.imread(tmp_path / 'figure.png').ndim == 3


def test_nothing_to_draw_writes_no_file(tmp_path):
  assert not curves.draw({'a': [[{'step': 0}]]}, str(tmp_path / 'figure.png'))
  assert not (tmp_path / 'figure.png').exists()
