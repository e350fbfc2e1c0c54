"""What a step holds on one device, estimated from sizes alone.

`ahead` replaces the estimate by the compiler's numbers where it compiles.
"""

from lpo_jax import roofline, sampler
from lpo_jax.policy import blockwise

KINDS = ('params', 'optimizer', 'kv_cache', 'activations', 'total')


def memory(s: roofline.Setting) -> dict[str, dict[str, float]]:
  """Return estimated bytes on one device: {phase: {kind: bytes}}.

  Phases are `sample` and `update`; kinds are `params`, `optimizer`, `kv_cache`,
  `activations` and `total`. The optimiser's moments stay where they are meanwhile; so
  do the parameters while sampling reads a copy, and both are `params` then. Devices
  that only sample hold the copy alone.
  """
  policy = s.policy
  matrices, vectors = roofline.parameters(policy)
  count = matrices / (s.fsdp * s.tensor) + vectors
  params = count * roofline.BYTES[policy.param_dtype]
  if policy.vision_is_frozen:
    matrices, vectors = policy.vision.parameters(policy.width)
    count -= matrices / (s.fsdp * s.tensor) + vectors
  own = count * roofline.BYTES[policy.param_dtype]  # of what is trained
  if policy.lora is not None:  # A and B are split along one axis each
    count = policy.adapter_params * (1 / s.fsdp + 1 / s.tensor) / 2
    own = count * roofline.BYTES['float32']
    params += own
  moments = 2 * count * roofline.BYTES[s.moment_dtype]
  t, sizes = s.sampling, {}
  prompts = s.at_once / t.shards
  rows = prompts * s.samples
  caches = [capacity for _, capacity in sampler.capacities(s.new_tokens, s.chunk)]
  held = sum(sorted(set(caches))[-2:])  # the old one and the new, while it grows
  if s.at_once < s.prompts and s.parked:  # rows come together without their groups
    held, prompts = held + s.parked * s.new_tokens, (1 + s.parked) * rows
  cache = (roofline.cache_bytes(policy, rows * held)
           + roofline.kv_bytes(policy, prompts * s.prompt_width))
  logits = 4.0 * rows * policy.vocab_size / t.tensor
  sizes['sample'] = {'kv_cache': cache / roofline.kv_parts(t), 'activations':
                     3 * logits + _one_layer(t) + _pictures(t, s.prompts / t.shards)}
  # Gradients of the minibatch and of the microbatch, and the new moments.
  gradients = 2 * own + 4 * count
  sizes['update'] = {'kv_cache': 0.0, 'activations': gradients + _kept(s)
                     + _pictures(s, s.prompts / s.shards)}
  for phase, kinds in sizes.items():
    copy = roofline.copy_bytes(s) if phase == 'sample' else 0.0
    trains = not (s.apart and phase == 'sample')
    kinds |= {'params': trains * params + copy, 'optimizer': trains * moments}
    kinds['total'] = sum(kinds.values())
  return sizes


def _pictures(s: roofline.Setting, prompts: float) -> float:
  """Return the bytes of prompts' images, as they are held: vectors, or patches."""
  policy = s.policy
  if policy.vision is None:
    return 0.0
  size = policy.width * roofline.BYTES[policy.dtype] / policy.vision.unit
  if not policy.vision_is_frozen:
    size += policy.vision.patch_dim * roofline.BYTES['float32']
  return prompts * s.patches * size


def _kept(s: roofline.Setting) -> float:
  """Return the bytes a microbatch keeps for its backward pass, and works in."""
  policy, size = s.policy, roofline.BYTES[s.policy.dtype]
  prompts = max(s.micro_prompts / s.shards, 1)
  rows = prompts * s.responses
  tokens = rows * s.new_tokens + prompts * s.prompt_width
  keys = s.prompt_width + s.new_tokens
  block = blockwise.block_of(s.new_tokens, s.prompt_width)
  scores = roofline.stored(policy) * rows * policy.heads / s.tensor * block * keys
  heads = 3 * policy.heads * policy.head_dim
  if s.pack > 1:  # for attention they lie as padded groups, too
    heads *= 1 + s.pack
  inner = (4 * policy.width + (heads + 4 * policy.mlp_width) / s.tensor) * size
  stream = policy.width * size
  if policy.sequence_sharding:
    stream /= s.tensor
  layers = policy.layers
  kept = {'full': layers * tokens * stream, 'dots': layers * tokens * (stream + inner),
          'none': layers * tokens * (stream + 2 * inner)}
  positions = rows * (s.logprob_chunk or s.new_tokens)
  logits = 3 * 4.0 * positions * policy.vocab_size / s.tensor
  working = tokens * inner * 2 + scores * 4 * 4
  return kept[policy.remat] + max(logits, working) + _one_layer(s)


def _one_layer(s: roofline.Setting) -> float:
  """Return the bytes of one layer's weights, gathered, or of the vocabulary's."""
  policy = s.policy
  tables = policy.vocab_size * policy.width
  layer = (policy.matmul_params_per_token - tables) / policy.layers
  size = roofline.BYTES[policy.dtype] / s.tensor
  return 2.0 * max(layer, tables) * size * (s.fsdp > 1)
