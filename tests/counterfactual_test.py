"""The groups are those that the run saw, and gradients agree where theory says so."""

import json

import numpy as np
import pytest

from experiments import countdown
from lpo_jax import counterfactual, metrics, train
from lpo_jax.tasks import countdown as countdown_task
from tests import origin_test


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('counterfactual') / 'run'
  config = countdown.get_config('tiny')
  config.num_steps = 2
  config.checkpoint.every = 1
  config.eval.update(every=9, problems=4)
  config.log.update(groups_every=1, groups=8, tensorboard=False)
  config.objective.skip_flat_groups = False
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(countdown_task.Countdown, 'verify', origin_test.by_checksum)
    train.Run(config, str(workdir)).train()
  return workdir


@pytest.fixture(scope='module')
def batch(run):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(countdown_task.Countdown, 'verify', origin_test.by_checksum)
    return counterfactual.sample_again(run, 2)


@pytest.fixture(scope='module')
def found(batch):
  return counterfactual.compare(batch, ['lpo_fwd', 'lpo_rev', 'grpo', 'dr_grpo'])


def test_the_groups_are_those_of_the_run(run, batch):
  lines = (run / 'rollouts' / 'step_000002.jsonl').read_text().splitlines()
  seen = [json.loads(line) for line in lines]
  assert [row['responses'] for row in seen] == batch.graded.texts
  np.testing.assert_array_equal([row['rewards'] for row in seen], batch.graded.rewards)
  row = metrics.read(str(run))[2]
  assert row['reward/mean'] == pytest.approx(float(batch.graded.rewards.mean()))


@pytest.mark.parametrize('field', ['async_rollouts', 'replay'])
def test_groups_that_came_from_several_policies_are_refused(run, tmp_path, field):
  config = json.loads((run / 'config.json').read_text())
  config[field] = 1 if field == 'async_rollouts' else config[field] | {'fraction': 0.5}
  (tmp_path / 'config.json').write_text(json.dumps(config))
  with pytest.raises(ValueError, match='cannot be sampled again'):
    counterfactual.sample_again(tmp_path, 2)


def test_on_policy_reverse_kl_and_grpo_are_one_direction(found):
  norms, between = counterfactual.cosines(
    {name: gradient for name, (_, gradient) in found.items()})
  names = list(found)
  assert between[names.index('lpo_rev'), names.index('grpo')] > 0.9999
  assert norms['lpo_rev'] == pytest.approx(norms['grpo'], rel=1e-3)
  np.testing.assert_allclose(np.diag(between), 1, atol=1e-6)
  assert 0.1 < between[names.index('lpo_fwd'), names.index('dr_grpo')] < 0.9999


def test_coefficients_are_those_of_the_objective(batch, found):
  for row, rewards in enumerate(batch.graded.rewards):
    centred = rewards - rewards.mean()
    spread = np.sqrt((centred ** 2).mean())
    expected = -centred / spread / len(rewards) if spread else centred
    np.testing.assert_allclose(found['lpo_rev'][0][row], expected, atol=1e-4)
    target = np.exp(rewards / spread) if spread else np.ones(len(rewards))
    np.testing.assert_allclose(found['lpo_fwd'][0][row],
                               1 / len(rewards) - target / target.sum(), atol=1e-4)


def test_a_step_without_its_policy_is_named_with_those_that_can_be_had(run, capsys):
  assert counterfactual.main([str(run), '--step=9']) == 2
  assert 'needs the policy after step 8, which is not kept: choose one of [' in (
    capsys.readouterr().err)
  assert counterfactual.main([str(run / 'nothing')]) == 2
  assert 'give a run folder' in capsys.readouterr().err


def test_the_table_and_the_file_say_the_same(run, batch, found, tmp_path, monkeypatch,
                                             capsys):
  monkeypatch.setattr(counterfactual, 'sample_again', lambda *_: batch)
  monkeypatch.setattr(counterfactual, 'compare', lambda *_: found)
  out = tmp_path / 'out.json'
  assert counterfactual.main([str(run), f'--out={out}']) == 0
  text = capsys.readouterr().out
  written = json.loads(out.read_text())
  assert written['step'] == 2 and '| grpo | ' in text and 'Group ' in text
  assert f'{written["norms"]["grpo"]:.3g}' in text
