"""docs/scale.md is what its generator writes, and keeps what the project promises."""

import json
import pathlib

import pytest

from benchmarks import scale

DOCS = pathlib.Path(__file__).parents[1] / 'docs'


@pytest.fixture(scope='module')
def found():
  cache = DOCS / 'scale.json'
  return scale.rows(json.loads(cache.read_text()) if cache.exists() else {})


def test_the_document_is_up_to_date(found):
  text = (DOCS / 'scale.md').read_text()
  assert text == scale.document(found), 'run python -m benchmarks.scale'


def test_the_largest_backbone_fits_a_pod_at_the_longest_lengths(found):
  row = found['qwen3_14b/v5p_64/math']
  assert row['fits'] and row['at_once'] == 256


def test_a_small_backbone_fits_one_device_of_16_gb(found):
  row = found['qwen3_0.6b/one_16gb/countdown']
  assert row['fits'] and row['rank'] == 0
  row = found['qwen3_1.7b/one_16gb/countdown']
  assert row['fits'] and row['rank'] == scale.RANK and row['how'] == 'compiled'


def test_a_policy_that_reads_images_fits_sixteen_small_devices(found):
  row = found['qwen2.5_vl_3b/v5e_16/geometry3k']
  assert row['fits'] and row['how'] == 'compiled' and row['rank'] == 0
  assert {'encode', 'prefill', 'decode', 'update'} <= row['kinds'].keys()
  assert 'qwen2.5_vl_3b/v5e_16/math' not in found
  assert 'qwen3_4b/v5e_16/geometry3k' not in found


def test_fewer_prompts_are_tried_until_they_fit():
  row = scale.estimate('qwen3_4b', 'one_80gb', 'countdown')
  assert row['fits'] and row['at_once'] < 128
  config = scale.config_of('qwen3_4b', 'one_80gb', 'countdown', 2 * row['at_once'])
  sizes = scale.footprint.memory(scale.setting_of(config))
  assert max(kinds['total'] for kinds in sizes.values()) > scale.MARGIN * row['limit']


def test_an_unknown_row_is_named_with_the_choices(monkeypatch, tmp_path):
  monkeypatch.setattr('sys.argv', ['scale', '--compile=qwen3_14b/v5p_64/maths',
                                   f'--folder={tmp_path}'])
  with pytest.raises(SystemExit, match='qwen3_14b/v5p_64/maths.*countdown, math'):
    scale.main()
