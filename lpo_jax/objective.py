"""From a group to the coefficients of its gradient: every objective through one seam.

  grad L = sum_{k,i} c_{k,i} grad log pi(y_{k,i})

LPO gives c_{k,i} = c_k / |y_k| inside the token band, c_k = dL/ds_k
(arXiv:2605.06139, Algorithm 1 and D.3); the baselines -a A_k r_{k,i} where they are
not clipped. `build` reads an `ObjectiveConfig` once and returns a pure function of one
`Group`, to be vmapped and jitted; nobody differentiates through it.
"""

import dataclasses
import difflib
import functools
import math
from collections.abc import Callable, Collection

import chex
import jax
import jax.numpy as jnp

from lpo_jax import baselines, methods, simplex, tilt
from lpo_jax import schedule as schedules
from lpo_jax.simplex import geometry
from lpo_jax.types import Array, Coefficients, Group, Mean

_DIVERGENCES = {
  'lpo_fwd': simplex.forward_kl,
  'lpo_rev': simplex.reverse_kl,
  'lpo_js': simplex.jensen_shannon,
  'lpo_jeffreys': simplex.jeffreys,
  'lpo_alpha': simplex.alpha_divergence,
  'lpo_chi2': simplex.chi_square,
  'lpo_hellinger': simplex.hellinger,
}

MIX = 'lpo_mix'  # (1 - m) forward KL + m reverse KL, m by a schedule
NAMES = (*_DIVERGENCES, MIX, *methods.METHODS, 'pointwise')

# Lengths [K] -> what each token weighs in its sequence's score f32[K].
_PER_TOKEN = {
  'mean': lambda lengths: 1.0 / jnp.maximum(lengths, 1),
  'sum': lambda lengths: jnp.ones(lengths.shape),
}

TEMPERATURE_RULES = tuple(tilt.RULES)
_RULES_FOR_ONE = ('constant', 'batch_std')  # these need no second response


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
  """Which objective, and its choices; errors name the value and the remedy."""

  name: str = 'lpo_fwd'  # one of NAMES
  score: str = 'mean'  # LPO: a sequence's log-ratio is its tokens' 'mean' or 'sum'
  token_clip: float | None = 0.2  # LPO: no gradient outside log(1 -+ this); None: all
  temperature_rule: str = 'group_std'  # LPO: one of TEMPERATURE_RULES
  temperature_value: float = 1.0  # tau itself (constant), its factor, or what to solve
  temperature_end: float | None = None  # the value after `schedule_steps`
  entropy_bonus: float = 0.0  # LPO: gamma in units of reward, see tilt.py
  entropy_of: str = 'simplex'  # one of tilt.ENTROPIES
  alpha: float = 0.5  # lpo_alpha only; 0 is reverse KL, 1 forward KL
  mix: float = 0.0  # lpo_mix only: share of reverse KL, the rest is forward KL
  mix_end: float | None = None  # the share after `schedule_steps`
  schedule: str = 'linear'  # how both get there, see schedule.SHAPES
  schedule_steps: int = 0  # iterations
  clip_low: float | None = None  # baselines: ratios above 1 - this; None: as published
  clip_high: float | None = None  # baselines: ratios below 1 + this
  aggregation: str | None = None  # baselines: one of baselines.AGGREGATIONS

  def __post_init__(self):
    _check_choice('name', self.name, NAMES)
    _check_choice('score', self.score, _PER_TOKEN)
    _check_choice('temperature_rule', self.temperature_rule, tilt.RULES)
    if self.token_clip is not None and not 0 < self.token_clip < 1:
      raise ValueError(f'token_clip={self.token_clip} is not between 0 and 1; use 0.2, '
                       'or None for no clip')
    if not 0 < self.temperature_value < math.inf:
      raise ValueError(f'temperature_value={self.temperature_value} is not positive '
                       f'and finite; use 1.0 for the plain {self.temperature_rule}')
    self.temperatures.check('temperature_value', 1e-6)
    self.mixture.check('mix', 0.0, 1.0)
    if self.mix_end is not None and self.name != MIX:
      raise ValueError(f'mix_end={self.mix_end} has no effect on name={self.name}: '
                       f'use {MIX}')
    if self.temperature_rule == 'target_ess' and self.temperature_value <= 1:
      raise ValueError(f'temperature_value={self.temperature_value} with '
                       'temperature_rule=target_ess: an effective sample size is above '
                       '1; use a value between 1 and samples_per_prompt')
    if not math.isfinite(self.alpha):
      raise ValueError(f'alpha={self.alpha} is not finite; use a value such as 0.5')
    tilt.check(self.temperature_rule, self.entropy_bonus, self.entropy_of)
    if self.entropy_bonus and self.name in methods.METHODS:
      raise ValueError(f'entropy_bonus={self.entropy_bonus} has no effect on name='
                       f'{self.name}: it belongs to the target; leave it 0')
    self._check_stated()

  @property
  def temperatures(self) -> schedules.Schedule:
    """Return the schedule of `temperature_value`."""
    return self._schedule(self.temperature_value, self.temperature_end)

  @property
  def mixture(self) -> schedules.Schedule:
    """Return the schedule of `mix`."""
    return self._schedule(self.mix, self.mix_end)

  def _schedule(self, start: float, end: float | None) -> schedules.Schedule:
    steps = 0 if end is None else self.schedule_steps
    return schedules.Schedule(start, end, steps, self.schedule)

  def stated(self) -> dict:
    """Return the baseline's choices that are not left as published."""
    choices = {'clip_low': self.clip_low, 'clip_high': self.clip_high,
               'aggregation': self.aggregation}
    return {field: value for field, value in choices.items() if value is not None}

  def _check_stated(self):
    stated = self.stated()
    if stated and self.name not in methods.METHODS:
      raise ValueError(f'{next(iter(stated))}={next(iter(stated.values()))} has no '
                       f'effect on name={self.name}: leave it None; see token_clip')
    if 'aggregation' in stated:
      _check_choice('aggregation', self.aggregation, baselines.AGGREGATIONS)
    if not 0 < stated.get('clip_low', 1) <= 1:
      raise ValueError(f'clip_low={self.clip_low} is not in (0, 1]; use 0.2, or 1 for '
                       'no lower bound')
    if not 0 < stated.get('clip_high', 1):
      raise ValueError(f'clip_high={self.clip_high} is not positive; use 0.2')


def build(config: ObjectiveConfig,
          samples_per_prompt: int) -> Callable[[Group], Coefficients]:
  """Return the objective: a pure function of one group, its coefficients and log.

  With samples_per_prompt = 1 every LPO objective is the virtual pair of
  `simplex.virtual_pair_coefficient` against the batch's mean reward.

  Args:
    config: the objective's choices.
    samples_per_prompt: K, the responses of each group.

  Raises:
    ValueError: if the objective is undefined for that K.
  """
  _check_group_size(config, samples_per_prompt)
  if config.name in methods.METHODS:
    objective = _policy_gradient(config)
  else:
    objective = _listwise(config, samples_per_prompt)

  def coefficients(group: Group) -> Coefficients:
    chex.assert_shape([group.logprobs, group.behavior_logprobs, group.mask],
                      (samples_per_prompt, None))
    chex.assert_shape([group.rewards, group.anchor_scores], (samples_per_prompt,))
    return objective(jax.lax.stop_gradient(group))

  return coefficients


def target(config: ObjectiveConfig) -> Callable[[Group], tuple[Array, Array]]:
  """Return the map from a group to its target's temperature and anchor; see `tilt`."""
  return tilt.build(config.temperature_rule, config.temperatures, config.entropy_bonus,
                    config.entropy_of, config.score)


def _listwise(config: ObjectiveConfig,
              samples_per_prompt: int) -> Callable[[Group], Coefficients]:
  """Return LPO, its virtual pair where K = 1, or the pointwise ablation."""
  target_of = target(config)
  band = (-math.inf, math.inf) if config.token_clip is None else (
    math.log1p(-config.token_clip), math.log1p(config.token_clip))
  if samples_per_prompt == 1:
    project = _virtual_pair
  elif config.name == 'pointwise':
    project = _pointwise
  else:
    project = functools.partial(_project, _divergence(config))

  def objective(group: Group) -> Coefficients:
    log_ratio = jnp.where(group.mask, group.logprobs - group.behavior_logprobs, 0.0)
    lengths = jnp.sum(group.mask, axis=1)
    per_token = _PER_TOKEN[config.score](lengths)
    scores = per_token * jnp.sum(log_ratio, axis=1)
    tau, anchor = target_of(group)
    group = group.replace(anchor_scores=anchor)
    c, loss, log_p, log_target = project(group, scores, tau)
    outside = group.mask & ((log_ratio < band[0]) | (log_ratio > band[1]))
    values = jnp.where(group.mask & ~outside, (c * per_token)[:, None], 0.0)
    tokens = jnp.sum(lengths).astype(float)
    metrics = _target_metrics(c, log_p, log_target, tau)
    metrics['lpo/token_clip_frac'] = Mean(jnp.sum(outside).astype(float), tokens)
    return Coefficients(values, loss, metrics)

  return objective


def _divergence(config: ObjectiveConfig) -> Callable[[Group], Callable]:
  """Return the map from a group to its divergence, a function of `simplex`."""
  if config.name == 'lpo_alpha':
    return lambda group: functools.partial(simplex.alpha_divergence, alpha=config.alpha)
  if config.name != MIX:
    return lambda group: _DIVERGENCES[config.name]

  def mixed(group: Group):
    share = config.mixture(group.step)
    return lambda scores, log_target: (
      (1 - share) * simplex.forward_kl(scores, log_target)
      + share * simplex.reverse_kl(scores, log_target))

  return mixed


def _project(divergence_of, group: Group, scores: Array, tau: Array):
  """Return c, the loss, log P and log w* of a projection onto the Gibbs target."""
  divergence = divergence_of(group)
  log_target = simplex.gibbs_target(group.rewards, tau, group.anchor_scores)
  c = simplex.coefficients(divergence, scores, log_target)
  return c, divergence(scores, log_target), geometry.log_policy(scores), log_target


def _pointwise(group: Group, scores: Array, tau: Array):
  """Return the same for the ablation without a projection."""
  log_target = simplex.gibbs_target(group.rewards, tau, group.anchor_scores)
  c = baselines.pointwise_coefficients(log_target)
  return (c, baselines.pointwise(scores, log_target), geometry.log_policy(scores),
          log_target)


def _virtual_pair(group: Group, scores: Array, tau: Array):
  """Return the same for one response beside a virtual one of average reward."""
  reward, zeros = group.rewards[0], jnp.zeros(2)
  c = simplex.virtual_pair_coefficient(reward, group.batch_mean, tau)[None]
  log_target = simplex.gibbs_target(jnp.stack([reward, group.batch_mean]), tau)
  return c, jnp.sum(c * scores), geometry.log_policy(zeros), log_target


def _policy_gradient(config: ObjectiveConfig) -> Callable[[Group], Coefficients]:
  """Return a baseline, with the config's choices where it states any."""
  method = methods.METHODS[config.name]._replace(**config.stated())
  choices = method.clip_low, method.clip_high, method.aggregation

  def objective(group: Group) -> Coefficients:
    inputs = (group.logprobs, group.behavior_logprobs, method.advantage(group),
              group.mask, *choices)
    values, clipped = method.coefficients(*inputs)
    tokens = jnp.sum(group.mask).astype(float)
    log_ratio = jnp.where(group.mask, group.logprobs - group.behavior_logprobs, 0.0)
    return Coefficients(values, method.loss(*inputs), {
      'actor/pg_clipfrac': Mean(jnp.sum(clipped).astype(float), tokens),
      'actor/ppo_kl': Mean(-jnp.sum(log_ratio), tokens),
      'lpo/coef_abs_sum': Mean(jnp.sum(jnp.abs(values)), jnp.ones(())),
    })

  return objective


def _target_metrics(c: Array, log_p: Array, log_target: Array, tau: Array) -> dict:
  values = {
    'lpo/kl_fwd_before': simplex.forward_kl(log_p, log_target),
    'lpo/target_entropy': geometry.entropy(log_target),
    'lpo/target_ess': geometry.effective_sample_size(log_target),
    'lpo/coef_abs_sum': jnp.sum(jnp.abs(c)),
    'lpo/tau': tau,
  }
  return {name: Mean(value, jnp.ones(())) for name, value in values.items()}


def _check_group_size(config: ObjectiveConfig, samples_per_prompt: int):
  rule, value = config.temperature_rule, config.temperature_value
  if samples_per_prompt < 1:
    raise ValueError(f'samples_per_prompt={samples_per_prompt} is not positive')
  if samples_per_prompt == 1:
    if config.name not in (*_DIVERGENCES, MIX):
      raise ValueError(f'samples_per_prompt=1 with name={config.name}: one response '
                       'has no group to compare with; use samples_per_prompt >= 2, or '
                       'lpo_fwd with temperature_rule constant or batch_std')
    if rule not in _RULES_FOR_ONE:
      raise ValueError(f'samples_per_prompt=1 with temperature_rule={rule}: K = 1 with '
                       'a group rule; use constant or batch_std')
    if config.entropy_bonus:
      raise ValueError(f'samples_per_prompt=1 with entropy_bonus={config.entropy_bonus}'
                       ': one response has no entropy; leave it 0')
  reads_rule = config.name not in methods.METHODS
  if reads_rule and rule == 'target_ess' and value > samples_per_prompt:
    raise ValueError(f'temperature_value={value} with temperature_rule=target_ess is '
                     f'above samples_per_prompt={samples_per_prompt}; lower it')


def _check_choice(field: str, value: str, choices: Collection[str]):
  if value in choices:
    return
  near = difflib.get_close_matches(str(value), choices, n=1)
  hint = f'; did you mean {near[0]!r}?' if near else ''
  raise ValueError(f'{field}={value!r} is not one of {", ".join(choices)}{hint}')
