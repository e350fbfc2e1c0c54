"""The command's help is there; what it writes is read back in batches_test."""

import pytest

from lpo_jax import lists


def test_the_command_says_what_it_needs(capsys):
  with pytest.raises(SystemExit):
    lists.main(['--help'])
  assert '--mixed' in capsys.readouterr().out
