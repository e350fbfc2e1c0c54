"""What one step needs, counted from sizes alone: bytes that live, work, seconds.

A phase takes at least
  max(operations / peak, bytes moved / memory bandwidth, bytes sent / link bandwidth),
each per device; nothing runs faster, and real programs run slower (short messages
have latencies, and not everything overlaps). Scans are multiplied out, which XLA's own
`cost_analysis` does not do, and masked attention scores count, since they are computed.
What lives meanwhile is in `footprint`.
"""

import dataclasses
import math
from typing import NamedTuple

from lpo_jax import hardware, sampler
from lpo_jax.policy import PolicyConfig, blockwise

BYTES = {'float32': 4, 'bfloat16': 2, 'float16': 2, 'int8': 1}


@dataclasses.dataclass(frozen=True)
class Setting:
  """Everything that decides what a step costs, in plain numbers."""

  policy: PolicyConfig
  prompts: int  # B
  samples: int  # K
  prompt_width: int  # P
  new_tokens: int  # N
  chunk: int  # of decoding
  micro_prompts: int
  micro_responses: int  # 0: all K
  logprob_chunk: int  # 0: all N
  minibatches: int
  epochs: int
  behavior_pass: bool  # whether the learner recomputes log pi_b
  moment_dtype: str
  data: int  # devices along each axis of the mesh
  fsdp: int
  tensor: int
  sampling_mesh: tuple[int, ...] = ()  # the same while sampling, where it is otherwise
  apart: bool = False  # sampling has devices of its own, see `sampling`
  prompts_at_once: int = 0  # of B, decoded at once; 0: all
  parked: float = 0.0  # room for rows that wait, in loads; see `sampler.sample`
  patches: int = 0  # M, of a prompt's images
  copy_weights: bool = False  # for sampling, of those that need it; see `resharding`
  pack: int = 1  # times as many groups to a microbatch; see `cut`

  @property
  def sampling(self) -> 'Setting':
    """Return the setting on the mesh that samples."""
    mesh = dict(zip(('data', 'fsdp', 'tensor'), self.sampling_mesh, strict=False))
    return dataclasses.replace(self, sampling_mesh=(), **mesh)

  @property
  def at_once(self) -> int:
    """Return the prompts whose responses are decoded at once."""
    return self.prompts_at_once or self.prompts

  @property
  def devices(self) -> int:
    """Return the devices of the mesh."""
    return self.data * self.fsdp * self.tensor

  @property
  def shards(self) -> int:
    """Return into how many parts the batch is split."""
    return self.data * self.fsdp

  @property
  def responses(self) -> int:
    """Return the responses of a prompt in a microbatch."""
    return self.micro_responses or self.samples

  @property
  def microbatches(self) -> int:
    """Return the microbatches whose gradient a step takes."""
    per_epoch = self.prompts // self.micro_prompts * (self.samples // self.responses)
    return self.epochs * per_epoch


class Work(NamedTuple):
  """What a phase does on one device."""

  flops: float
  moved: float  # bytes to and from its memory
  sent: float  # bytes to other devices, along data and fsdp: over all links
  passed: float  # bytes to other devices, along tensor: over one ring

  def __add__(self, other: 'Work') -> 'Work':
    return Work(*(a + b for a, b in zip(self, other, strict=True)))

  def times(self, count: float) -> 'Work':
    """Return the work of doing it `count` times."""
    return Work(*(count * a for a in self))


def parameters(policy: PolicyConfig) -> tuple[int, int]:
  """Count a policy's parameters in matrices, without adapters; in norms and biases."""
  tables = policy.vocab_size * policy.width
  matrices = policy.matmul_params_per_token + (0 if policy.tied_embeddings else tables)
  a_layer = 2 * policy.width
  if policy.qk_norm:
    a_layer += 2 * policy.head_dim
  if policy.qkv_bias:
    a_layer += (policy.heads + 2 * policy.kv_heads) * policy.head_dim
  tower = policy.vision.parameters(policy.width) if policy.vision else (0, 0)
  return matrices + tower[0], policy.layers * a_layer + policy.width + tower[1]


def trained(policy: PolicyConfig) -> tuple[int, int]:
  """Count the parameters that are trained, and the bytes of each."""
  if policy.lora is not None:
    return policy.adapter_params, BYTES['float32']
  frozen = policy.vision.parameters(policy.width) if policy.vision_is_frozen else ()
  return sum(parameters(policy)) - sum(frozen), BYTES[policy.param_dtype]


def forward_flops(policy: PolicyConfig, sequences: int, tokens: int,
                  context: float) -> tuple[float, float]:
  """Return the operations of blocks' matrices, adapters too, and of attention, forward.

  Args:
    policy: its sizes.
    sequences: how many; the rest is per sequence.
    tokens: taken in this pass.
    context: keys that a token is multiplied with on average, masked ones included.
  """
  blocks = policy.matmul_params_per_token - policy.vocab_size * policy.width
  blocks += policy.adapter_params
  attention = 4.0 * policy.layers * policy.heads * policy.head_dim * tokens * context
  return sequences * tokens * 2.0 * blocks, sequences * attention


def logit_flops(policy: PolicyConfig, positions: int) -> float:
  """Return the operations of the logits of some positions."""
  return 2.0 * positions * policy.vocab_size * policy.width


def kv_bytes(policy: PolicyConfig, tokens: int) -> float:
  """Return the bytes of the keys and values of some tokens, all layers and heads."""
  size = BYTES[policy.dtype]
  return 2.0 * policy.layers * policy.kv_heads * policy.head_dim * tokens * size


def cache_bytes(policy: PolicyConfig, tokens: int) -> float:
  """Return the bytes of the slots that sampling holds of some response tokens."""
  if policy.cache_dtype == 'same':
    return kv_bytes(policy, tokens)
  size = policy.head_dim * BYTES[policy.cache_dtype]
  scale = BYTES['float32'] if policy.cache_dtype == 'int8' else 0
  return 2.0 * policy.layers * policy.kv_heads * tokens * (size + scale)


def encode(s: Setting, prompts: float | None = None) -> Work:
  """Return the work of encoding the images of some prompts, by default of all."""
  policy, prompts = s.policy, s.prompts if prompts is None else prompts
  if policy.vision is None:
    return Work(0.0, 0.0, 0.0, 0.0)
  flops = prompts * policy.vision.forward_flops(s.patches, policy.width)
  size = BYTES[policy.dtype]
  weights = policy.vision.parameters(policy.width)[0] * size / s.tensor
  passes = max(prompts / s.shards / sampler.ENCODED_AT_ONCE, 1.0)
  rows = prompts / s.shards * s.patches * policy.vision.width * policy.vision.layers
  rows *= size
  return Work(flops / s.devices, passes * weights + 12 * rows,
              passes * weights * (s.fsdp - 1) / s.fsdp,
              4 * rows * (s.tensor - 1) / s.tensor)


def copy_bytes(s: Setting) -> float:
  """Return the bytes on a device of what sampling has a copy of, see `resharding`."""
  policy, count, there = s.policy, 0.0, s.sampling
  tower = policy.vision.parameters(policy.width)[0] if policy.vision else 0
  if s.fsdp > 1 or there != s or policy.param_dtype != policy.dtype:
    count += (parameters(policy)[0] - tower) / there.tensor
  if policy.lora and (s.fsdp > 1 or there != s or policy.dtype != 'float32'):
    whole = policy.layers * policy.lora.rank * policy.width * len(policy.lora.targets)
    count += whole + (policy.adapter_params - whole) / there.tensor
  count += (there != s) * tower / (there.fsdp * there.tensor)  # copied as it lies
  return s.copy_weights * count * BYTES[policy.dtype]


def reshard(s: Setting) -> Work:
  """Return the work of making that copy."""
  made = copy_bytes(s)
  held = made * s.sampling.tensor / (s.tensor * s.fsdp)
  held *= BYTES[s.policy.param_dtype] / BYTES[s.policy.dtype]
  kept = 0 if s.sampling_mesh else 1 / s.fsdp  # of it is on the device already
  return Work(0.0, held + made, made * (1 - kept), 0.0)


def prefill(s: Setting) -> Work:
  """Return the work of prefilling all prompts."""
  s = s.sampling
  blocks, attention = forward_flops(s.policy, s.prompts, s.prompt_width,
                                    _causal(s.prompt_width))
  flops = (blocks + attention + logit_flops(s.policy, s.prompts)) / s.devices
  tokens = s.prompts * s.prompt_width / s.shards
  moved = _weights(s) + kv_bytes(s.policy, tokens) / kv_parts(s)
  return Work(flops, moved, (not s.copy_weights) * _gather(s), 2 * _reduce(s, tokens))


def decode(s: Setting) -> Work:
  """Return the work of decoding N tokens of every response, none of which ends early.

  Each token reads the weights, gathered anew unless there is a copy, and the cache,
  filled or not; prompts that are not decoded at once are decoded part after part.
  """
  s, policy, rows = s.sampling, s.policy, s.at_once * s.samples
  total = Work(0.0, 0.0, 0.0, 0.0)
  for steps, capacity in sampler.capacities(s.new_tokens, s.chunk):
    blocks, attention = forward_flops(policy, rows, 1, capacity + s.prompt_width)
    flops = blocks + attention + logit_flops(policy, rows)
    cache = (cache_bytes(policy, rows * capacity)
             + kv_bytes(policy, s.at_once * s.prompt_width))
    logits = 4.0 * rows / s.shards * policy.vocab_size / s.tensor
    moved = _weights(s) + cache / (s.shards * kv_parts(s)) + 3 * logits
    step = Work(flops / s.devices, moved, (not s.copy_weights) * _gather(s),
                2 * _reduce(s, rows / s.shards))
    total += step.times(steps)
  return total.times(s.prompts / s.at_once)


def update(s: Setting) -> Work:
  """Return the work of a step's whole update: log pi_b, gradients, the optimiser."""
  policy, rows = s.policy, s.prompts * s.samples
  own = forward_flops(policy, rows, s.new_tokens,
                      s.prompt_width + _causal(s.new_tokens, s.prompt_width))
  prompt = forward_flops(policy, s.prompts, s.prompt_width, _causal(s.prompt_width))
  blocks, attention = (a + b for a, b in zip(own, prompt, strict=True))
  logits = logit_flops(policy, rows * s.new_tokens)
  forward = blocks + attention + logits
  again = {'none': 0.0, 'dots': attention, 'full': blocks + attention}[policy.remat]
  # Attention's backward pass computes the weights again: 5 products to 2.
  gradient = 3 * blocks + 3.5 * attention + again + 4 * logits
  passes = int(s.behavior_pass) + s.epochs * bool(s.micro_responses)  # without gradient
  flops = passes * forward + s.epochs * gradient
  tokens = (rows * s.new_tokens + s.prompts * s.prompt_width) / s.shards
  if policy.lora is not None:  # whose base has no gradient
    adapters = 2.0 * policy.adapter_params * tokens * s.shards
    flops -= s.epochs * (blocks - adapters + logits)
  looks = 2 + (policy.remat == 'full')  # at the weights, by a microbatch's gradient
  without = s.microbatches / s.epochs * passes  # microbatches without gradient
  activations = _activation_traffic(s, tokens)
  updates = s.epochs * s.minibatches
  count, size = trained(policy)
  state = count / (s.fsdp * s.tensor) * (4 * size + 4 * BYTES[s.moment_dtype])
  moved = (_weights(s) * (without + s.microbatches * looks)
           + activations * (passes + (2 + looks) * s.epochs) + updates * state)
  reduce = (_gather(s) + 2 * _weights(s) / s.fsdp * (s.data - 1) / s.data
            ) * count / (sum(parameters(policy)) + policy.adapter_params)
  sent = (without + s.microbatches * looks) * _gather(s) + s.microbatches * reduce
  passed = 2 * _reduce(s, tokens) * (passes + s.epochs * looks)
  tower = passes + 4 * s.epochs if not policy.vision_is_frozen else 0  # twice back
  return Work(flops / s.devices, moved, sent, passed) + encode(s).times(tower)


def seconds(work: Work, chip: hardware.Chip) -> dict[str, float]:
  """Return the seconds a phase needs at least: `flops`, `memory`, `links`, `total`."""
  parts = {'flops': work.flops / chip.flops, 'memory': work.moved / chip.bandwidth,
           'links': (work.sent + work.passed / chip.ring) / chip.links}
  return parts | {'total': max(parts.values())}


def phases(policy: PolicyConfig) -> dict:
  """Return the phases of a step: name -> what counts its work."""
  found = {'reshard': reshard, 'prefill': prefill, 'decode': decode, 'update': update}
  return {'encode': lambda s: encode(s.sampling)} | found if policy.vision else found


def step(s: Setting, chip: hardware.Chip) -> dict[str, dict[str, float]]:
  """Return `seconds` of every phase, and of the whole as `step`."""
  found = {name: seconds(phase(s), chip) for name, phase in phases(s.policy).items()}
  found['step'] = {key: sum(phase[key] for phase in found.values())
                   for key in ('flops', 'memory', 'links', 'total')}
  return found


def _causal(width: int, before: int = 0) -> float:
  """Return the keys of its own that a query meets on average, masked ones included."""
  return (width + min(blockwise.block_of(width, before), width)) / 2


def stored(policy: PolicyConfig) -> bool:
  """Return whether attention's scores leave the chip: a kernel's do not."""
  return policy.attention == 'xla'


def kv_parts(s: Setting) -> int:
  """Return into how many parts keys and values are split by head."""
  return math.gcd(s.tensor, s.policy.kv_heads)


def _weights(s: Setting) -> float:
  """Return the bytes of the weights that one device multiplies with, all layers."""
  count = s.policy.matmul_params_per_token + s.policy.adapter_params
  return count * BYTES[s.policy.dtype] / s.tensor


def _gather(s: Setting) -> float:
  """Return the bytes received to gather those weights from the fsdp axis."""
  return _weights(s) * (s.fsdp - 1) / s.fsdp


def _reduce(s: Setting, tokens: float) -> float:
  """Return the bytes sent by one all-reduce a layer of `tokens` on each device."""
  size = s.policy.width * BYTES[s.policy.dtype] * s.policy.layers * tokens
  return 2 * size * (s.tensor - 1) / s.tensor


def _activation_traffic(s: Setting, tokens: float) -> float:
  """Return the bytes of activations that a forward pass writes and reads again."""
  policy, size = s.policy, BYTES[s.policy.dtype]
  keys = s.prompt_width + _causal(s.new_tokens, s.prompt_width)
  a_token = 8 * policy.width + (4 * policy.heads * policy.head_dim
                                + 4 * policy.mlp_width) / s.tensor
  scores = stored(policy) * policy.heads / s.tensor * keys * (4 + size)
  logits = 4.0 * policy.vocab_size / s.tensor
  return 2 * tokens * (policy.layers * (a_token * size + scores) + logits)
