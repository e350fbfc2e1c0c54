"""The decoder against float64 NumPy, transformers, and its own other paths."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpo_jax import policy as policies
from tests import tiny

_LLAMA3 = policies.RopeScaling('llama3', factor=4.0, original_max_position=16)
_SWITCHES = {
  'qkv_bias': dict(qkv_bias=True),
  'qk_norm': dict(qk_norm=True),
  'linear_rope': dict(rope_scaling=policies.RopeScaling('linear', factor=3.0)),
  'llama3_rope': dict(rope_scaling=_LLAMA3),
  'rope_theta': dict(rope_theta=50.0),
  'sliding_window': dict(sliding_window=3),
  'tied_embeddings': dict(tied_embeddings=True),
  'one_kv_head': dict(kv_heads=1),
}
_ALL = functools.reduce(lambda a, b: a | b, _SWITCHES.values(), {})
_EVERY = {'plain': {}, **_SWITCHES, 'all': _ALL}
_SOME = {'plain': {}, 'sliding_window': dict(sliding_window=3), 'all': _ALL}

_prefill = jax.jit(policies.Policy.prefill)
_extend = jax.jit(policies.Policy.extend)
_together = jax.jit(policies.Policy.together)


def _each(cases):
  return pytest.mark.parametrize('switches', cases.values(), ids=cases.keys())


def _whole(policy, batch):
  """Return logits f32[B, K, P + N, V] of the joined sequences."""
  logits = tiny.call(policy, *tiny.sequences(batch))
  return np.asarray(logits).reshape(*batch.response.shape[:2], *logits.shape[1:])


def _close(a, b, tolerance=2e-5):
  np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


# An independent decoder: one row, one query, one head at a time, complex rotations.


def _frequencies(config):
  """Return the rotary frequencies f64[d / 2], in transformers' piecewise form."""
  base = config.rope_theta ** (-np.arange(0, config.head_dim, 2) / config.head_dim)
  scaling = config.rope_scaling
  if scaling is None:
    return base
  if scaling.kind == 'linear':
    return base / scaling.factor
  scaled = []
  for frequency in base:
    wavelength = 2 * np.pi / frequency
    if wavelength < scaling.original_max_position / scaling.high_freq_factor:
      scaled.append(frequency)
    elif wavelength > scaling.original_max_position / scaling.low_freq_factor:
      scaled.append(frequency / scaling.factor)
    else:
      smooth = (scaling.original_max_position / wavelength - scaling.low_freq_factor
                ) / (scaling.high_freq_factor - scaling.low_freq_factor)
      scaled.append((1 - smooth) * frequency / scaling.factor + smooth * frequency)
  return np.array(scaled)


def _norm(x, weight, config):
  return weight * x / np.sqrt(np.mean(x ** 2, axis=-1, keepdims=True) + config.norm_eps)


def _rotated(x, config):
  """Rotate x [T, heads, d] at positions 0..T-1 as d / 2 complex numbers."""
  half = config.head_dim // 2
  angles = np.arange(len(x))[:, None] * _frequencies(config)
  z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)[:, None]
  return np.concatenate([z.real, z.imag], axis=-1)


def _decoder(policy, tokens):
  """Return float64 logits [T, V] of one sequence without padding."""
  config = policy.config
  weights = {path[-2].name if hasattr(path[-2], 'name') else path[-2].key:
             np.asarray(leaf, np.float64)
             for path, leaf in jax.tree_util.tree_leaves_with_path(policy)}
  x = weights['embedding'][tokens]
  for layer in range(config.layers):
    w = {name: weight[layer] for name, weight in weights.items()
         if name not in ('embedding', 'unembedding', 'final_norm')}
    y = _norm(x, w['attention_norm'], config)
    heads = {}
    for name in ('query', 'key', 'value'):
      z = y @ w[name] + w.get(f'{name}_bias', 0.0)
      z = z.reshape(len(tokens), -1, config.head_dim)
      if name != 'value':
        z = _norm(z, w[f'{name}_norm'], config) if config.qk_norm else z
        z = _rotated(z, config)
      heads[name] = z
    mixed = np.zeros((len(tokens), config.heads, config.head_dim))
    for t in range(len(tokens)):
      first = max(0, t + 1 - (config.sliding_window or len(tokens)))
      for head in range(config.heads):
        shared = head // (config.heads // config.kv_heads)
        keys = heads['key'][first:t + 1, shared]
        scores = keys @ heads['query'][t, head] / np.sqrt(config.head_dim)
        mixed[t, head] = (np.exp(tiny.log_softmax(scores))
                          @ heads['value'][first:t + 1, shared])
    x = x + mixed.reshape(len(tokens), -1) @ w['out']
    y = _norm(x, w['mlp_norm'], config)
    gate = y @ w['gate']
    x = x + (gate / (1 + np.exp(-gate)) * (y @ w['up'])) @ w['down']
  output = weights.get('unembedding', weights['embedding'].T)
  return _norm(x, weights['final_norm'], config) @ output


@_each(_EVERY)
def test_logits_equal_a_float64_decoder(switches):
  policy = tiny.policy(**switches)
  tokens, mask = tiny.prompts((9, 5, 6), width=9)
  mask[1] = mask[1, ::-1]  # left-padded, right-padded and full rows in one batch
  positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
  logits = tiny.call(policy, tokens, positions, mask)
  for row in range(len(tokens)):
    _close(logits[row][mask[row]], _decoder(policy, tokens[row][mask[row]]), 1e-4)


@pytest.mark.parametrize('name', _SWITCHES)
def test_every_switch_changes_the_output(name):
  tokens = np.arange(9)[None]
  inputs = tokens, tokens, np.ones((1, 9), bool)
  plain, switched = (tiny.call(tiny.policy(**switches), *inputs)
                     for switches in ({}, _SWITCHES[name]))
  # The first position sees itself alone, unrotated: look at the last.
  assert np.abs(plain[0, -1] - switched[0, -1]).max() > 1e-3


@pytest.mark.parametrize('family', ['qwen3', 'qwen2', 'llama', 'mistral'])
def test_logits_equal_transformers(family):
  reason = 'the parity oracle needs torch and transformers'
  torch = pytest.importorskip('torch', reason=reason)
  hub = pytest.importorskip('transformers', reason=reason)
  switches, extras = {
    'qwen3': (dict(qk_norm=True, tied_embeddings=True), {}),
    'qwen2': (dict(qkv_bias=True, head_dim=4), {}),
    'llama': (dict(rope_scaling=_LLAMA3), dict(rope_scaling=dict(
      rope_type='llama3', factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
      original_max_position_embeddings=16))),
    'mistral': (dict(sliding_window=3), dict(sliding_window=3)),
  }[family]
  policy = tiny.policy(**switches)
  config, blocks = policy.config, policy.blocks
  make_config, make_model = {
    'qwen3': (hub.Qwen3Config, hub.Qwen3ForCausalLM),
    'qwen2': (hub.Qwen2Config, hub.Qwen2ForCausalLM),
    'llama': (hub.LlamaConfig, hub.LlamaForCausalLM),
    'mistral': (hub.MistralConfig, hub.MistralForCausalLM)}[family]
  model = make_model(make_config(
    vocab_size=config.vocab_size, hidden_size=config.width,
    intermediate_size=config.mlp_width, num_hidden_layers=config.layers,
    num_attention_heads=config.heads, num_key_value_heads=config.kv_heads,
    head_dim=config.head_dim, rms_norm_eps=config.norm_eps,
    rope_theta=config.rope_theta, tie_word_embeddings=config.tied_embeddings,
    attn_implementation='eager', **extras)).eval()
  weights = {'model.embed_tokens.weight': policy.embedding[...],
             'model.norm.weight': policy.final_norm[...]}
  if not config.tied_embeddings:
    weights['lm_head.weight'] = policy.unembedding[...].T
  names = dict(
    attention_norm='input_layernorm', mlp_norm='post_attention_layernorm',
    query='self_attn.q_proj', key='self_attn.k_proj', value='self_attn.v_proj',
    out='self_attn.o_proj', query_norm='self_attn.q_norm', key_norm='self_attn.k_norm',
    gate='mlp.gate_proj', up='mlp.up_proj', down='mlp.down_proj')
  for ours, theirs in names.items():
    for suffix, end in (('', '.weight'), ('_bias', '.bias')):
      if hasattr(blocks, ours + suffix):
        for layer, weight in enumerate(getattr(blocks, ours + suffix)[...]):
          weights[f'model.layers.{layer}.{theirs}{end}'] = weight.T  # [out, in]
  given = {name: torch.tensor(np.asarray(weight)) for name, weight in weights.items()}
  missing = model.load_state_dict(given, strict=False)
  assert not missing.unexpected_keys
  assert set(missing.missing_keys) <= {'lm_head.weight'}
  tokens = np.random.default_rng(0).integers(config.vocab_size, size=(2, 10))
  positions, mask = np.tile(np.arange(10), (2, 1)), np.ones((2, 10), bool)
  with torch.no_grad():
    expected = model(torch.tensor(tokens)).logits.numpy()
  _close(tiny.call(policy, tokens, positions, mask), expected, 1e-4)


# Who sees whom.


@pytest.mark.parametrize('window', [None, 3])
def test_gradient_reaches_exactly_the_tokens_a_position_may_see(window):
  policy, width = tiny.policy(sliding_window=window), 9
  tokens = np.arange(width)[None]  # all different: one embedding row a position
  inputs = tokens, tokens, np.ones((1, width), bool)
  direction = np.random.default_rng(0).normal(size=(policy.config.vocab_size,))

  @jax.jit
  @jax.jacrev
  def influence(embedding):
    moved = _with_embedding(policy, embedding)
    return moved(*inputs)[0] @ direction.astype(np.float32)

  reached = np.abs(influence(policy.embedding[...])).sum(-1)[:, :width]
  distance = np.arange(width)[:, None] - np.arange(width)
  sight = width if window is None else policy.config.layers * (window - 1) + 1
  np.testing.assert_array_equal(reached > 0, (distance >= 0) & (distance < sight))


def _with_embedding(policy, embedding):
  leaves, structure = jax.tree.flatten(policy)
  leaves = [embedding if leaf is policy.embedding[...] else leaf for leaf in leaves]
  return jax.tree.unflatten(structure, leaves)


def test_response_sees_its_own_prompt_and_no_other_response():
  policy, batch = tiny.policy(), tiny.rollouts()
  other = batch.response.copy()
  other[1, 2] = (other[1, 2] + 1) % 13

  def outputs(prompt, response):
    return np.asarray(_together(policy, prompt, batch.prompt_mask, response)[1])

  before = outputs(batch.prompt, batch.response)
  moved = (outputs(batch.prompt, other) != before).any(axis=(2, 3))
  np.testing.assert_array_equal(np.argwhere(moved), [[1, 2]])
  prompt = batch.prompt.copy()
  prompt[2, -1] = (prompt[2, -1] + 1) % 13
  moved = (outputs(prompt, batch.response) != before).any(axis=(2, 3))
  np.testing.assert_array_equal(moved, np.broadcast_to([[False], [False], [True]],
                                                       moved.shape))


@pytest.mark.parametrize('side', ['left', 'right'])
@_each(_SOME)
def test_padding_does_not_change_real_outputs(switches, side):
  policy = tiny.policy(**switches)
  tokens, mask = tiny.prompts((4, 1, 6))
  if side == 'right':
    mask = mask[:, ::-1]
  positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
  logits = tiny.call(policy, tokens, positions, mask)
  garbage = np.where(mask, tokens, (tokens + 5) % 13)
  again = tiny.call(policy, garbage, positions, mask)
  np.testing.assert_array_equal(logits[mask], again[mask])
  wider = ((0, 0), (3, 0) if side == 'left' else (0, 3))
  more = [np.pad(x, wider) for x in (tokens, positions, mask)]
  _close(tiny.call(policy, *more)[more[2]], logits[mask])


# Every path through the decoder gives the same outputs.


@_each(_SOME)
def test_prompts_and_responses_together_equal_whole_sequences(switches):
  policy, batch = tiny.policy(**switches), tiny.rollouts()
  width = batch.prompt.shape[1]
  expected = _whole(policy, batch)
  last, hidden = _together(policy, batch.prompt, batch.prompt_mask, batch.response)
  _close(policy.logits(last), expected[:, 0, width - 1])
  _close(policy.logits(hidden), expected[:, :, width:])
  _close(last, _prefill(policy, batch.prompt, batch.prompt_mask)[0])


@pytest.mark.parametrize('lay', ['scanned', 'unrolled', 'turned'])
@_each(_SOME)
def test_cache_equals_no_cache(switches, lay):
  policy = tiny.policy(**switches)
  batch = tiny.rollouts((4, 6), samples=2, width=8)
  _, expected = _together(policy, batch.prompt, batch.prompt_mask, batch.response)
  policy = {'scanned': policy, 'unrolled': policy.unstack(),
            'turned': policy.turn()}[lay]
  _, context = _prefill(policy, batch.prompt, batch.prompt_mask)

  # Seven slots, then ten for eight tokens, filled with what must not be seen.
  cache = policies.Cache.empty(context, samples=2, slots=7)
  cache = cache._replace(layers=jax.tree.map(lambda x: x + 7.0, cache.layers))
  outputs = []
  for tokens in np.split(batch.response, [1, 2, 3, 7], axis=-1):  # 1 1 1 4 1 tokens
    hidden, cache = _extend(policy, tokens, context, cache)
    outputs.append(hidden)
    if cache.length == 3:
      cache = cache.grown(10)
  assert (cache.length, cache.slots) == (8, 10)
  _close(np.concatenate(outputs, axis=2), expected)


@_each(_SOME)
def test_unstacked_equals_stacked(switches):
  policy, batch = tiny.policy(**switches), tiny.rollouts()
  unstacked = policy.unstack()
  assert len(unstacked.blocks) == policy.config.layers
  assert not isinstance(policy.blocks, tuple | list)  # the original is untouched
  _close(_whole(unstacked, batch), _whole(policy, batch))


@_each(_SOME | {'lora': dict(lora=policies.Lora(2, 8.0, ('gate', 'out')))})
def test_a_turned_policy_is_the_same_and_the_original_untouched(switches):
  policy, batch = tiny.policy(**switches), tiny.rollouts()
  if policy.config.lora:  # else the second factor is zero
    policy = jax.tree.map(lambda x: x + 0.01, policy)
  turned = policy.turn()
  one, first = turned.blocks[0], policy.unstack().blocks[0]
  assert one.down.shape == policy.blocks.down.shape[:0:-1]
  np.testing.assert_array_equal(one.gate_up[...], np.concatenate(
    [first.gate[...].T, first.up[...].T]))
  assert one.turned and not first.turned and not hasattr(one, 'gate')
  _close(_whole(turned, batch), _whole(policy, batch))


def test_remat_recomputes_and_gives_the_same_gradient():
  inputs = tiny.sequences(tiny.rollouts())
  loss = jax.jit(jax.grad(lambda policy: jnp.sum(jnp.sin(policy(*inputs)))))
  gradients = {}
  for remat in ('none', 'dots', 'full'):
    traced = loss.trace(tiny.policy(remat=remat))
    assert ('remat' in str(traced.jaxpr)) == (remat != 'none')
    compiled = traced.lower().compile()
    gradients[remat] = jax.tree.leaves(compiled(tiny.policy(remat=remat)))
  for remat in ('dots', 'full'):
    for a, b in zip(gradients[remat], gradients['none'], strict=True):
      scale = np.abs(b).max()  # of sums over all logits: hundreds
      _close(a / scale, b / scale, 1e-5)


# Positions.


@_each({'plain': {}, 'llama3_rope': _SWITCHES['llama3_rope']})
def test_positions_matter_by_their_differences_only(switches):
  policy = tiny.policy(**switches)
  tokens, positions, mask = tiny.sequences(tiny.rollouts())
  logits = tiny.call(policy, tokens, positions, mask)
  _close(tiny.call(policy, tokens, positions + 50, mask)[mask], logits[mask], 1e-4)
  stretched = tiny.call(policy, tokens, 2 * positions, mask)
  assert np.abs(stretched[mask] - logits[mask]).max() > 1e-3


# Dtypes and refusals.


def test_low_precision_activations_keep_float32_logits():
  policy, batch = tiny.policy(dtype='bfloat16'), tiny.rollouts()
  inputs = batch.prompt, batch.prompt_mask
  last, hidden = _together(policy, *inputs, batch.response)
  outputs = last, hidden, _prefill(policy, *inputs)[1].layers
  assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(outputs))
  logits = policy.logits(hidden)
  assert logits.dtype == jnp.float32
  assert (logits != logits.astype(jnp.bfloat16)).any()  # not rounded on the way
  expected = _whole(tiny.policy(), batch)[:, :, batch.prompt.shape[1]:]
  _close(logits, expected, 0.15)


def test_parameters_have_the_dtype_the_configuration_says():
  config = policies.PolicyConfig(**tiny.SIZES, param_dtype='bfloat16')
  assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(tiny.shapes(config)))


def test_images_are_refused():
  tokens = np.zeros((1, 2), np.int32)
  with pytest.raises(ValueError, match='images given to a policy that reads text only'):
    tiny.policy()(tokens, tokens, tokens == 0, images=(tokens, tokens))
