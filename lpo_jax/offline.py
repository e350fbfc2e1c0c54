"""Fixed lists: a file's prompts, K responses to each, and their rewards.

One list a line of FILE.jsonl, every line with the same K:
  {"prompt": text or messages, "responses": [text], "rewards": [number],
   "logprobs": [number] or [[number a token]], "truncated": [bool], "id": name}
The last three are optional. `logprobs` are natural logarithms under the policy that
wrote the responses, the stop token included: pi_b. Without them pi_b is the policy
before the first step. A response that is not `truncated` ends in a stop token.
LPO then fits softmax(s), s = log pi_theta - log pi_b, to w* = softmax(R / tau), which
stays where it is; K = 2 is soft DPO (arXiv:2605.06139, Eq. 55; arXiv:2305.18290).
"""

import dataclasses
import difflib
import hashlib
import json
import math
import pathlib
from collections.abc import Sequence

import numpy as np

from lpo_jax import methods, objective
from lpo_jax import tokenizer as tokenizers
from lpo_jax.types import Problem

KEYS = ('prompt', 'responses', 'rewards', 'logprobs', 'truncated', 'id')


@dataclasses.dataclass(frozen=True)
class Lists:
  """M lists as arrays, on the host."""

  problems: tuple[Problem, ...]  # their ids name the line
  texts: list[list[str]]  # [M][K]
  response: np.ndarray  # i32[M, K, N], right-padded
  mask: np.ndarray  # bool[M, K, N]
  rewards: np.ndarray  # f32[M, K] in [0, 1]
  logprobs: np.ndarray | None  # f32[M, K, N] log pi_b, 0 off mask; None: not stated
  per_token: bool  # log pi_b is known of every token, not of whole responses alone
  described: dict  # as of a problem set: place, counts and a hash


@dataclasses.dataclass(frozen=True)
class _Line:
  """One list as written, and the place that errors name."""

  place: str
  problem: Problem
  responses: list[str]
  rewards: list[float]
  logprobs: list | None
  truncated: list[bool]


def read(path: str, tokenizer: tokenizers.Tokenizer, samples: int, width: int,
         rewards: str = 'unit') -> Lists:
  """Return the lists of a file.

  Args:
    path: FILE.jsonl.
    tokenizer: of the policy.
    samples: K, responses of every list.
    width: N, the most tokens of a response.
    rewards: how the file's become rewards in [0, 1], one of REWARDS.

  Raises:
    ValueError: names file and line of what cannot be, and the remedy.
  """
  if rewards not in REWARDS:
    raise ValueError(f'offline.rewards={rewards!r}: choose one of {", ".join(REWARDS)}')
  try:
    data = pathlib.Path(path).read_bytes()
  except OSError as error:
    raise ValueError(f'offline.path={path!r} cannot be read: {error.strerror}'
                     ) from error
  lines = [_line(f'{path}:{number}', text, samples)
           for number, text in enumerate(data.split(b'\n'), 1) if text.strip()]
  if not lines:
    raise ValueError(f'offline.path={path!r} holds no list')
  shape = (len(lines), samples, width)
  response, mask = np.full(shape, tokenizer.pad_id, np.int32), np.zeros(shape, bool)
  for row, line in enumerate(lines):
    for k, found in enumerate(_tokens(line, tokenizer, width)):
      response[row, k, :len(found)], mask[row, k, :len(found)] = found, True
  found = REWARDS[rewards](np.array([line.rewards for line in lines]), lines)
  logprobs, per_token = _logprobs(lines, mask)
  described = {
    'place': path, 'split': 'lists', 'problems': len(lines), 'rows': len(lines),
    'dropped': {}, 'sha256': hashlib.sha256(data).hexdigest()}
  return Lists(tuple(line.problem for line in lines),
               [line.responses for line in lines], response, mask,
               found.astype(np.float32), logprobs, per_token, described)


def check(lists: Lists, config: objective.ObjectiveConfig, behavior: str) -> None:
  """Raise a ValueError where an objective cannot learn from the lists.

  Args:
    lists: to learn from.
    config: of the objective.
    behavior: who says log pi_b, see `microbatch.UpdateConfig`.
  """
  if behavior != 'sampler':
    raise ValueError(f'objective.behavior={behavior!r} with offline.path: pi_b is who '
                     'wrote the lists, or the policy before the first step; set '
                     'objective.behavior=sampler')
  if not lists.per_token and (config.token_clip or config.name in methods.METHODS):
    raise ValueError(
      f'{lists.described["place"]} states log pi_b of whole responses, but '
      f'objective.name={config.name} with objective.token_clip={config.token_clip} '
      'reads it of each token: set objective.token_clip=None and one of lpo_*, or '
      'state it of each token')


def _line(place: str, text: bytes, samples: int) -> _Line:
  """Return one line, checked."""
  try:
    found = json.loads(text)
  except ValueError as error:
    raise ValueError(f'{place}: not JSON: {error}') from error
  if not isinstance(found, dict):
    raise ValueError(f'{place}: {type(found).__name__}, not an object with '
                     f'{", ".join(KEYS[:3])}')
  for key in found.keys() - set(KEYS):
    if near := difflib.get_close_matches(key, KEYS, n=1):
      raise ValueError(f'{place}: {key!r} is not read; did you mean {near[0]!r}?')
  if missing := [key for key in KEYS[:3] if key not in found]:
    raise ValueError(f'{place}: has no {missing[0]!r}; a list needs '
                     f'{", ".join(KEYS[:3])}')
  _check_prompt(place, found['prompt'])
  fields = {'responses': (str, 'texts'), 'rewards': (float, 'finite numbers'),
            'truncated': (bool, 'true or false')}
  for key, (kind, said) in fields.items():
    values = found.get(key)
    if key in found and not (isinstance(values, list)
                             and all(_is(kind, value) for value in values)):
      raise ValueError(f'{place}: {key!r} must be a list of {said}: '
                       f'{str(values)[:80]}')
  for key in ('responses', 'rewards', 'truncated', 'logprobs'):
    values = found.get(key)
    if key in found and (not isinstance(values, list) or len(values) != samples):
      count = len(values) if isinstance(values, list) else str(values)[:80]
      raise ValueError(
        f'{place}: {key!r} has {count} entries, but samples_per_prompt={samples}: all '
        'lists of a file are of one K; set samples_per_prompt to it, or split the file')
  return _Line(place, Problem(found['prompt'], None, str(found.get('id', place))),
               found['responses'], found['rewards'], found.get('logprobs'),
               found.get('truncated', [False] * samples))


def _is(kind: type, value) -> bool:
  if kind is float:
    return (isinstance(value, int | float) and not isinstance(value, bool)
            and math.isfinite(value))
  return isinstance(value, kind)


def _check_prompt(place: str, prompt) -> None:
  messages = isinstance(prompt, list) and prompt and all(
    isinstance(message, dict) and isinstance(message.get('role'), str)
    and isinstance(message.get('content'), str) for message in prompt)
  if not messages and not (isinstance(prompt, str) and prompt):
    raise ValueError(f"{place}: 'prompt' must be text or a list of role and content, "
                     f'both texts: {str(prompt)[:80]}')


def tokens(text: str, truncated: bool, tokenizer: tokenizers.Tokenizer) -> list[int]:
  """Return a response's tokens, with a stop token unless it was cut before one.

  Raises:
    ValueError: the vocabulary does not have them.
  """
  found = list(tokenizer.encode_response(text))
  if not truncated and (not found or found[-1] not in tokenizer.stop_tokens):
    found.append(tokenizer.stop_tokens[0])
  return found


def _tokens(line: _Line, tokenizer: tokenizers.Tokenizer, width: int):
  """Yield the tokens of each response of a line."""
  for k, (text, cut) in enumerate(zip(line.responses, line.truncated, strict=True)):
    try:
      found = tokens(text, cut, tokenizer)
    except ValueError as error:
      raise ValueError(f'{line.place}: response {k}: {error}') from error
    if not 0 < len(found) <= width:
      raise ValueError(f'{line.place}: response {k} has {len(found)} tokens: must '
                       f'have 1 to sampling.max_new_tokens={width}')
    yield found


def _logprobs(lines: Sequence[_Line], mask: np.ndarray):
  """Return log pi_b f32[M, K, N], or None, and whether it is known of each token.

  Where it is known of whole responses, it is spread evenly over their tokens, which
  leaves every score as it is.
  """
  if all(line.logprobs is None for line in lines):
    return None, True
  found, kinds = np.zeros(mask.shape), set()
  for row, line in enumerate(lines):
    if line.logprobs is None:
      raise ValueError(f"{line.place}: has no 'logprobs', but other lines have: state "
                       'them in every line, or in none')
    for k, values in enumerate(line.logprobs):
      length = int(mask[row, k].sum())
      kinds.add(isinstance(values, list))
      values = values if isinstance(values, list) else [values]
      if not all(_is(float, value) and value <= 0 for value in values):
        raise ValueError(f'{line.place}: log-probabilities of response {k} must be '
                         f'finite and at most 0: {str(values)[:80]}')
      if len(kinds) > 1:
        raise ValueError(f"{line.place}: 'logprobs' of response {k} are "
                         f'{"of" if True in kinds else "not of"} each token, unlike '
                         'those before: use one form throughout')
      if kinds == {True} and len(values) != length:
        raise ValueError(
          f'{line.place}: response {k} has {length} tokens, the stop token included, '
          f'but {len(values)} log-probabilities: give one a token, or their sum')
      found[row, k, :length] = values if kinds == {True} else values[0] / length
  return found.astype(np.float32), kinds == {True}


def _unit(rewards, lines):
  for line in lines:
    for k, reward in enumerate(line.rewards):
      if not 0 <= reward <= 1:
        raise ValueError(
          f'{line.place}: reward {k} is {reward}, outside [0, 1]: set offline.rewards '
          'to scale (over the file), sigmoid (of logits), or rank (within each list)')
  return rewards


def _scale(rewards, lines):
  low, high = rewards.min(), rewards.max()
  if low == high:
    raise ValueError(f'offline.rewards=scale: every reward of the file is {low}, so '
                     'that nothing can be learned')
  return (rewards - low) / (high - low)


def _sigmoid(rewards, lines):
  return 0.5 * (1 + np.tanh(rewards / 2))


def _rank(rewards, lines):
  samples = rewards.shape[1]
  if samples == 1:
    raise ValueError('offline.rewards=rank with samples_per_prompt=1: one response has '
                     'no rank; use scale or sigmoid')
  ours, theirs = rewards[:, :, None], rewards[:, None, :]
  below = (theirs < ours).sum(axis=2) + 0.5 * ((theirs == ours).sum(axis=2) - 1)
  return below / (samples - 1)


# A file's rewards f64[M, K] and its lines -> f64[M, K] in [0, 1].
REWARDS = {
  'unit': _unit,  # as they are
  'scale': _scale,  # the lowest of the file becomes 0, the highest 1
  'sigmoid': _sigmoid,  # 1 / (1 + exp(-r)): logits, as of reward models
  'rank': _rank,  # 0 for the worst of a list, 1 for the best, ties between
}
