"""Flags of tests: programs that run once or twice are compiled quickly, not well."""

QUICK = ('--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false '
         '--xla_cpu_parallel_codegen_split_count=1')
ONE_DEVICE = {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': QUICK}


def devices(count: int) -> str:
  """Return XLA_FLAGS of so many CPU devices."""
  return f'--xla_force_host_platform_device_count={count} {QUICK}'
