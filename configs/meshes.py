"""Meshes by machine: (data, fsdp, tensor) sizes for `config.mesh.shape`."""

MESHES = {
  'one_device': (1, 1, 1),
  'eight_devices': (1, 8, 1),
}
