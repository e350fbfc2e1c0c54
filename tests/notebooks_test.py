"""The notebooks run from the first cell to the last, at small settings."""

import os
import pathlib
import re

import nbformat
import pytest
from nbclient import NotebookClient

from tests import compiler

FOLDER = pathlib.Path(__file__).parents[1] / 'notebooks'
SMALL = {  # notebook -> setting -> value
  'compare': {'VARIANT': "'grpo_tiny'", 'SEEDS': "'0'"},
  'countdown': {'POLICY': "'countdown_tiny'", 'WARM_STEPS': 4, 'STEPS': 2,
                'PROMPTS': 8},
  'simplex': {'SIDE': 6, 'STEPS': 60},
}


def test_every_notebook_is_run():
  assert {path.stem for path in FOLDER.glob('*.ipynb')} == set(SMALL)


@pytest.mark.parametrize('name', SMALL)
def test_a_notebook_runs_and_was_committed_with_its_outputs(name, monkeypatch):
  notebook = nbformat.read(FOLDER / f'{name}.ipynb', as_version=4)
  cells = [cell for cell in notebook.cells if cell.cell_type == 'code']
  assert sum(len(str(cell.outputs)) for cell in cells) < 1 << 20
  assert any('image/png' in output.get('data', {}) for cell in cells
             for output in cell.outputs)
  for setting, value in SMALL[name].items():
    found = 0
    for cell in cells:
      cell.source, count = re.subn(rf'(?m)^{setting} = .*?(?=  #|$)',
                                   f'{setting} = {value}', cell.source)
      found += count
    assert found == 1, setting
  for name, value in compiler.ONE_DEVICE.items():
    monkeypatch.setenv(name, value)
  monkeypatch.setenv('PYTHONPATH', str(FOLDER.parent), prepend=os.pathsep)
  NotebookClient(notebook, timeout=600, kernel_name='python3',
                 resources={'metadata': {'path': str(FOLDER)}}).execute()
