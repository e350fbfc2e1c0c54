"""Policies: the one decoder, its configuration, and its keys and values."""

from lpo_jax.policy.config import PolicyConfig, RopeScaling
from lpo_jax.policy.transformer import Cache, Policy, Prompt

__all__ = ['Cache', 'Policy', 'PolicyConfig', 'Prompt', 'RopeScaling']
