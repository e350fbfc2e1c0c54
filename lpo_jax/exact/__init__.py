"""A world small enough to know the truth: every response enumerated, nothing sampled.

`worlds` has tabular policies over bandits, contexts and trees; `improvement` the exact
proximal steps and their projections onto a policy; `groups` the expectation over every
group of K responses that sampling could give. All built on the same `simplex/` that
training uses, so what is proved here is proved of that code.
"""

from lpo_jax.exact import groups, improvement, worlds

__all__ = ['groups', 'improvement', 'worlds']
