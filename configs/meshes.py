"""Meshes by machine: (data, fsdp, tensor) sizes for `config.mesh.shape`.

`topology` is the name under which JAX describes a TPU slice without having it, see
`--mode=compile`; GPUs have none. Four along `tensor` is what every backbone of the
paper splits into (Qwen2.5-1.5B has 12 heads), and what decoding needs: along `fsdp`
the weights are gathered again for every token. docs/scale.md says what fits where.
"""

from typing import NamedTuple


class Machine(NamedTuple):
  """A machine and how its devices are laid out."""

  shape: tuple[int, int, int]  # (data, fsdp, tensor)
  device: str  # kind of device
  topology: str = ''


MESHES = {
  'one_device': Machine((1, 1, 1), 'any'),
  'eight_devices': Machine((1, 8, 1), 'any'),
  'one_16gb': Machine((1, 1, 1), 'TPU v5e', 'v5e:1x1'),
  'one_80gb': Machine((1, 1, 1), 'H100 80 GB'),
  'one_141gb': Machine((1, 1, 1), 'H200 141 GB'),
  'gpus_8': Machine((1, 2, 4), 'H100 80 GB'),
  'v5e_16': Machine((1, 4, 4), 'TPU v5e', 'v5e:4x4'),
  'v5p_64': Machine((1, 16, 4), 'TPU v5p', 'v5p:4x4x4'),
  'v6e_64': Machine((1, 16, 4), 'TPU v6e', 'v6e:8x8'),
}
