"""Bad input ends with a clear error that names the value, before any compile."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def run(*flags, config='experiments/countdown.py:tiny', **variables):
  environment = os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '',
                              # An error that came from a compiled program would show.
                              'JAX_LOG_COMPILES': '1'} | variables
  return subprocess.run(
    [sys.executable, '-m', 'lpo_jax.main', f'--config={config}', *flags], cwd=ROOT,
    env=environment, capture_output=True, text=True, timeout=120)


def test_an_unknown_field_names_the_nearest(tmp_path):
  found = run(f'--workdir={tmp_path}', '--config.objective.tokn_clip=1')
  assert found.returncode != 0
  assert 'Did you mean "token_clip"' in found.stderr
  assert 'Traceback' not in found.stderr


def test_a_value_of_the_wrong_type_is_refused(tmp_path):
  found = run(f'--workdir={tmp_path}', '--config.num_steps=many')
  assert found.returncode != 0
  assert 'num_steps=many' in found.stderr


def test_none_is_refused_where_a_value_is_needed(tmp_path):
  found = run(f'--workdir={tmp_path}', '--config.num_steps=None')
  assert found.returncode != 0
  assert 'num_steps' in found.stderr


@pytest.mark.parametrize('flags', [('--config.objective.name=lpo_fw',)])
def test_a_refused_value_compiles_nothing(flags, tmp_path):
  found = run(f'--workdir={tmp_path}/run', *flags)
  assert found.returncode == 2
  assert found.stderr.startswith('error: ') or '\nerror: ' in found.stderr
  assert "did you mean 'lpo_fwd'" in found.stderr
  assert 'Finished XLA compilation' not in found.stderr
  assert not (tmp_path / 'run').exists()


def test_workdir_is_required():
  found = run()
  assert found.returncode != 0
  assert 'workdir' in found.stderr


@pytest.mark.parametrize(('flags', 'message'), [
  (('--mode=export',), '--export_dir=DIR'), (('--export_dir=out',), '--mode=export'),
])
def test_export_needs_its_folder_and_its_mode(flags, message, tmp_path):
  found = run(f'--workdir={tmp_path}/run', *flags)
  assert found.returncode == 2
  assert message in found.stderr
  assert 'Traceback' not in found.stderr


def test_export_of_nothing_says_so(tmp_path):
  found = run(f'--workdir={tmp_path}/run', '--mode=export',
              f'--export_dir={tmp_path}/out')
  assert found.returncode == 2
  assert 'holds no checkpoint' in found.stderr
  assert not (tmp_path / 'out').exists()


def test_an_export_over_something_is_refused(tmp_path):
  (tmp_path / 'mine').write_text('')
  found = run(f'--workdir={tmp_path}/run', '--mode=export', f'--export_dir={tmp_path}')
  assert found.returncode == 2
  assert 'is not an empty folder' in found.stderr
