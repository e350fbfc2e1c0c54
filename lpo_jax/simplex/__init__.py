"""The mathematics of Listwise Policy Optimization, on the simplex of one group's K
responses: scores, targets, temperatures, divergences and Theorem 2's certificate.

Every function is written for one group [K]; the caller vmaps. `temperature_batch_std`
alone sees a batch, because its statistic is the batch's.
"""

from lpo_jax.simplex.certificate import certificate
from lpo_jax.simplex.divergence import (
  alpha_divergence,
  chi_square,
  coefficients,
  forward_kl,
  hellinger,
  jeffreys,
  jensen_shannon,
  reverse_kl,
)
from lpo_jax.simplex.target import gibbs_target, virtual_pair_coefficient
from lpo_jax.simplex.temperature import (
  temperature_batch_std,
  temperature_constant,
  temperature_group_mean,
  temperature_group_std,
  temperature_target_ess,
  temperature_target_kl,
)

__all__ = [
  'alpha_divergence',
  'certificate',
  'chi_square',
  'coefficients',
  'forward_kl',
  'gibbs_target',
  'hellinger',
  'jeffreys',
  'jensen_shannon',
  'reverse_kl',
  'temperature_batch_std',
  'temperature_constant',
  'temperature_group_mean',
  'temperature_group_std',
  'temperature_target_ess',
  'temperature_target_kl',
  'virtual_pair_coefficient',
]
