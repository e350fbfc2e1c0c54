"""Supervised warm start: teach a fresh policy a task's demonstrations.

Reinforcement learning needs a policy that is sometimes right. For policies without
pre-training, minimise -log pi(demonstration | prompt), a mean over response tokens, on
problems drawn from the training split.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lpo_jax import images as images_lib
from lpo_jax import prompts, sequence, tasks
from lpo_jax import tokenizer as tokenizers
from lpo_jax.types import Mean, Problem, Rollouts


def demonstrations(problems: Sequence[Problem], task: tasks.base.Task,
                   tokenizer: tokenizers.Tokenizer, buckets: Sequence[int],
                   width: int,
                   processor: images_lib.Processor | None = None) -> Rollouts:
  """Return the problems' demonstrations as rollouts with K = 1.

  A demonstration that does not itself end in a stop token gets one.

  Args:
    problems: B of them.
    task: has demonstrations.
    tokenizer: of the policy.
    buckets: allowed prompt widths.
    width: N.
    processor: of images.

  Raises:
    ValueError: if a demonstration has more than N tokens; names the problem.
  """
  prompt, prompt_mask, images = prompts.encode(problems, tokenizer, buckets, processor)
  response = np.full((len(problems), 1, width), tokenizer.pad_id, np.int32)
  mask = np.zeros(response.shape, bool)
  for row, problem in enumerate(problems):
    tokens = tokenizer.encode_response(task.demonstration(problem))
    if tokens[-1] not in tokenizer.stop_tokens:
      tokens = [*tokens, tokenizer.stop_tokens[0]]
    if len(tokens) > width:
      raise ValueError(f'the demonstration of problem {problem.id!r} has {len(tokens)} '
                       f'tokens: raise sampling.max_new_tokens={width}')
    response[row, 0, :len(tokens)] = tokens
    mask[row, 0, :len(tokens)] = True
  return Rollouts(prompt, prompt_mask, response, mask,
                  np.zeros(response.shape, np.float32), images)


def make_step(optimizer: optax.GradientTransformation, chunk: int = 0):
  """Return the pure function (policy, opt_state, Rollouts) -> (both, loss Mean)."""

  def loss(policy, rollouts):
    logprobs, _ = sequence.response_logprobs(policy, rollouts, chunk=chunk)
    count = jnp.sum(rollouts.response_mask)
    total = -jnp.sum(logprobs)
    return total / count, Mean(total, count.astype(jnp.float32))

  def step(policy, opt_state, rollouts: Rollouts):
    grads, value = jax.grad(loss, has_aux=True)(policy, rollouts)
    updates, opt_state = optimizer.update(grads, opt_state, policy)
    return optax.apply_updates(policy, updates), opt_state, value

  return step
