"""Where a group's target lies: its temperature and the anchor that it tilts.

  w* = argmax_w <w, R> - tau KL(w || P_t) = softmax(R / tau + s_t)

With an entropy bonus gamma > 0 the maximiser is softmax(R / (tau + gamma) + s'):
  + gamma H(w)                        s' = tau s_t / (tau + gamma)
  + gamma E_w[-log(w(y) pi_b(y))]     s' = (tau s_t - gamma log pi_b) / (tau + gamma)
The first counts the simplex's K places alike and on-policy, s_t = 0, is only a warmer
temperature, as the paper remarks. The second is the entropy over all responses, of
which the K are draws from pi_b: there an unlikely response is worth more.
"""

import math
from collections.abc import Callable

from lpo_jax import schedule, sequence, simplex
from lpo_jax.types import Array, Group

# (group, value) -> tau f32[].
RULES = {
  'constant': lambda g, value: simplex.temperature_constant(g.rewards, value),
  'group_std': lambda g, value: value * simplex.temperature_group_std(g.rewards),
  'group_mean': lambda g, value: value * simplex.temperature_group_mean(g.rewards),
  'batch_std': lambda g, value: value * g.batch_std,
  'target_kl': lambda g, value: simplex.temperature_target_kl(
    g.rewards, g.anchor_scores, value),
  'target_ess': lambda g, value: simplex.temperature_target_ess(
    g.rewards, g.anchor_scores, value),
}
SOLVED = ('target_kl', 'target_ess')  # these ask for a target, not for a temperature
ENTROPIES = ('simplex', 'policy')


def build(rule: str, value: schedule.Schedule, bonus: float = 0.0,
          entropy: str = 'simplex', score: str = 'mean',
          ) -> Callable[[Group], tuple[Array, Array]]:
  """Return the map from a group to tau f32[] and the anchor f32[K] of its target.

  The target is `simplex.gibbs_target` of both.

  Args:
    rule: one of RULES.
    value: tau itself, its factor, or what to solve for, by iteration.
    bonus: gamma in units of reward.
    entropy: one of ENTROPIES: of the K places, or of the policy.
    score: how log pi of a sequence is taken, `mean` or `sum` over its tokens.
  """
  def tilt(group: Group) -> tuple[Array, Array]:
    tau, anchor = RULES[rule](group, value(group.step)), group.anchor_scores
    if not bonus:
      return tau, anchor
    pull = tau * anchor
    if entropy == 'policy':
      behavior = group.behavior_logprobs
      pull -= bonus * sequence.sequence_scores(behavior, 0 * behavior, group.mask,
                                               score)
    return tau + bonus, pull / (tau + bonus)

  return tilt


def check(rule: str, bonus: float, entropy: str) -> None:
  """Raise a ValueError for an entropy bonus that cannot be."""
  if not 0 <= bonus < math.inf:
    raise ValueError(f'entropy_bonus={bonus}: must be finite and at least 0, in units '
                     'of reward')
  if entropy not in ENTROPIES:
    raise ValueError(f'entropy_of={entropy!r}: choose one of {", ".join(ENTROPIES)}')
  if bonus and rule in SOLVED:
    raise ValueError(f'entropy_bonus={bonus} with temperature_rule={rule}: a bonus '
                     'would move the target off what is solved for; use '
                     'entropy_bonus=0, or another rule')
