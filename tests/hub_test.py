"""A path is a folder or a hub id; what cannot be had is named, with the remedy."""

import huggingface_hub
import pytest

from lpo_jax import hub


def test_a_folder_is_itself(tmp_path):
  assert hub.resolve(str(tmp_path)) == str(tmp_path)


@pytest.mark.parametrize('path', ['/no/such/folder', './nowhere', 'a/b/c', ''])
def test_what_is_no_hub_id_is_not_asked_for(path, monkeypatch):
  monkeypatch.setattr(huggingface_hub, 'snapshot_download', None)
  with pytest.raises(ValueError, match=f'no folder .*{path}'):
    hub.resolve(path)


def test_a_hub_id_is_downloaded(monkeypatch):
  asked = []
  monkeypatch.setattr(huggingface_hub, 'snapshot_download',
                      lambda name, **kw: asked.append((name, kw)) or '/cache')
  assert hub.resolve('Qwen/Qwen3-4B-Base') == '/cache'
  name, how = asked[0]
  assert name == 'Qwen/Qwen3-4B-Base'
  assert '*.safetensors' in how['allow_patterns']
  assert not any('bin' in pattern or 'pt' in pattern for pattern in
                 how['allow_patterns'])


def test_offline_names_the_id_and_the_remedy(monkeypatch, tmp_path):
  monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
  monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path))
  with pytest.raises(ValueError, match='nobody/nothing.*Give a local folder'):
    hub.resolve('nobody/nothing')
