"""Record what transformers computes on the tiny checkpoints: the parity tests' oracle.

  python -m tests.parity.record            write tests/parity/recordings.npz
  python -m tests.parity.record --check    compare with what is there

Needs torch. Float32, eager attention. Per family and padding: logits f32[3, 16, V]
(zero on padding) and log-probabilities of the next tokens; after left-padded prompts
the greedy continuation.
"""

import pathlib
import sys
import tempfile

import numpy as np

from tests.parity import checkpoints

RECORDINGS = pathlib.Path(__file__).parent / 'recordings.npz'


def load(folder: str):
  """Return transformers' model of a folder, in float32."""
  import torch
  import transformers
  model = transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32, attn_implementation='eager', local_files_only=True)
  return model.eval()


def logits(model, padding: str) -> np.ndarray:
  """Return logits f32[3, 16, V] of the padded batch, zero on padding."""
  import torch
  tokens, positions, mask = checkpoints.batch(padding)
  with torch.no_grad():
    found = model(input_ids=torch.tensor(tokens, dtype=torch.long),
                  position_ids=torch.tensor(positions, dtype=torch.long),
                  attention_mask=torch.tensor(mask, dtype=torch.long)).logits
  return np.where(mask[..., None], found.float().numpy(), 0)


def observe(folder: str) -> dict[str, np.ndarray]:
  """Return everything that is recorded of one checkpoint."""
  import torch
  model = load(folder)
  found = {}
  for padding in ('left', 'right'):
    tokens, _, mask = checkpoints.batch(padding)
    found[f'{padding}/logits'] = logits(model, padding)
    logprobs = torch.log_softmax(torch.tensor(found[f'{padding}/logits']), -1).numpy()
    chosen = np.take_along_axis(logprobs[:, :-1], tokens[:, 1:, None], -1)[..., 0]
    found[f'{padding}/logprobs'] = np.where(mask[:, 1:] & mask[:, :-1], chosen, 0)
  tokens, _, mask = checkpoints.batch('left')
  with torch.no_grad():
    generated = model.generate(
      input_ids=torch.tensor(tokens, dtype=torch.long),
      attention_mask=torch.tensor(mask, dtype=torch.long), do_sample=False,
      max_new_tokens=checkpoints.NEW, eos_token_id=None, pad_token_id=0)
  found['greedy'] = generated[:, tokens.shape[1]:].numpy().astype(np.int32)
  return found


def keep(found: dict, path: pathlib.Path, argv: list[str]) -> int:
  """Write what was found, or with --check compare it with the file; return the rc."""
  if '--check' in argv:
    with np.load(path) as recorded:
      worst = max(np.abs(found[name] - recorded[name]).max() for name in found)
      assert set(recorded) == set(found)
    print(f'largest difference {worst:.1e}')
    return int(worst > 1e-5)
  np.savez_compressed(path, **found)
  print(f'{path}: {len(found)} arrays, {path.stat().st_size} bytes')
  return 0


def main(argv: list[str]) -> int:
  """Record every family, or compare with the recordings."""
  found = {}
  for family in checkpoints.FAMILIES:
    with tempfile.TemporaryDirectory() as folder:
      checkpoints.write(folder, checkpoints.config(family))
      found |= {f'{family}/{name}': value for name, value in observe(folder).items()}
  return keep(found, RECORDINGS, argv)


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
