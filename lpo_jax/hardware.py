"""What accelerators can do, as their makers publish it: memory, arithmetic, links.

TPU figures are of Google Cloud's pages "TPU v4", "v5e", "v5p" and "v6e"
(cloud.google.com/tpu/docs); `memory` is what the TPU compiler lets a program use of
them. GPU figures are of NVIDIA's data sheets (SXM, dense arithmetic). `links` counts
one direction: what a chip sends over all its links at once. A device that is not here
gets no prediction, and says so.
"""

from typing import NamedTuple

GIB = 2**30


class Chip(NamedTuple):
  """One accelerator."""

  name: str
  kinds: tuple[str, ...]  # how JAX calls it, or the start of that
  memory: float  # bytes a program may use
  flops: float  # bfloat16 operations a second
  bandwidth: float  # bytes a second to and from its memory
  links: float  # bytes a second sent to its neighbours
  ring: float  # of `links`, the share that one ring of neighbours has


CHIPS = (
  Chip('TPU v4', ('TPU v4',), 30.75 * GIB, 275e12, 1.228e12, 300e9, 1 / 3),
  Chip('TPU v5e', ('TPU v5 lite', 'TPU v5e'), 15.75 * GIB, 197e12, 0.819e12, 200e9,
       1 / 2),
  Chip('TPU v5p', ('TPU v5p', 'TPU v5'), 95.74 * GIB, 459e12, 2.765e12, 600e9, 1 / 3),
  Chip('TPU v6e', ('TPU v6 lite', 'TPU v6e'), 31.25 * GIB, 918e12, 1.64e12, 400e9,
       1 / 2),
  Chip('A100 80 GB', ('NVIDIA A100',), 80e9, 312e12, 2.039e12, 300e9, 1.0),
  Chip('H100 80 GB', ('NVIDIA H100',), 80e9, 989e12, 3.35e12, 450e9, 1.0),
  Chip('H200 141 GB', ('NVIDIA H200',), 141e9, 989e12, 4.8e12, 450e9, 1.0),
)


def chip(kind: str) -> Chip | None:
  """Return the chip of a JAX `device_kind` or a name of the table; None if unknown."""
  for found in CHIPS:
    if kind == found.name:
      return found
  starts = [(start, found) for found in CHIPS for start in found.kinds
            if kind.startswith(start)]
  return max(starts, default=(None, None), key=lambda pair: len(pair[0]))[1]
