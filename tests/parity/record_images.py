"""Record what transformers computes of prompts with images: see `record`.

  python -m tests.parity.record_images            write tests/parity/images.npz
  python -m tests.parity.record_images --check    compare with what is there

Per family: the vectors of all image tokens; per padding, positions i32[3, 4, 32],
logits f32[4, 32, V] and log-probabilities of the next tokens; the greedy continuation.
"""

import pathlib
import sys
import tempfile

import numpy as np

from tests.parity import checkpoints, images, record

RECORDINGS = pathlib.Path(__file__).parent / 'images.npz'


def load(folder: str, dtype: str = 'float32'):
  """Return transformers' model of a folder."""
  import torch
  import transformers
  model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
    folder, dtype=getattr(torch, dtype), attn_implementation='eager',
    local_files_only=True)
  return model.eval()


def inputs(padding: str) -> dict:
  """Return what the model is called with."""
  import torch
  tokens, mask = images.batch(padding)
  patches, grid = images.pictures()
  return dict(
    input_ids=torch.tensor(tokens, dtype=torch.long),
    attention_mask=torch.tensor(mask, dtype=torch.long),
    mm_token_type_ids=torch.tensor(tokens == images.IMAGE, dtype=torch.int),
    pixel_values=torch.tensor(patches), image_grid_thw=torch.tensor(grid).long())


def features(model) -> np.ndarray:
  """Return the vectors f32[tokens, D] of all images."""
  import torch
  given = inputs('left')
  with torch.no_grad():
    found = model.model.get_image_features(given['pixel_values'],
                                           given['image_grid_thw'])
  return torch.cat(tuple(found.pooler_output)).float().numpy()


def logits(model, padding: str) -> np.ndarray:
  """Return logits f32[4, 32, V], zero on padding."""
  import torch
  given = inputs(padding)
  with torch.no_grad():
    found = model(**given).logits.float().numpy()
  return np.where(images.batch(padding)[1][..., None], found, 0)


def positions(model, padding: str) -> np.ndarray:
  """Return the three-part positions i32[3, 4, 32]."""
  given = inputs(padding)
  found, _ = model.model.get_rope_index(
    given['input_ids'], given['mm_token_type_ids'],
    image_grid_thw=given['image_grid_thw'], attention_mask=given['attention_mask'])
  return found.numpy().astype(np.int32)


def observe(folder: str) -> dict[str, np.ndarray]:
  """Return everything that is recorded of one checkpoint."""
  import torch
  model = load(folder)
  found = {'features': features(model)}
  for padding in ('left', 'right'):
    tokens, mask = images.batch(padding)
    found[f'{padding}/positions'] = positions(model, padding)
    found[f'{padding}/logits'] = logits(model, padding)
    logprobs = torch.log_softmax(torch.tensor(found[f'{padding}/logits']), -1).numpy()
    chosen = np.take_along_axis(logprobs[:, :-1], tokens[:, 1:, None], -1)[..., 0]
    found[f'{padding}/logprobs'] = np.where(mask[:, 1:] & mask[:, :-1], chosen, 0)
  with torch.no_grad():
    generated = model.generate(**inputs('left'), do_sample=False, pad_token_id=0,
                               max_new_tokens=checkpoints.NEW, eos_token_id=None)
  found['greedy'] = generated[:, images.WIDTH:].numpy().astype(np.int32)
  return found


def main(argv: list[str]) -> int:
  """Record every family, or compare with the recordings."""
  found = {}
  for family in images.FAMILIES:
    with tempfile.TemporaryDirectory() as folder:
      images.write(folder, family)
      found |= {f'{family}/{name}': value for name, value in observe(folder).items()}
  return record.keep(found, RECORDINGS, argv)


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
