"""Policies: the one decoder, its configuration, its caches; Hugging Face in and out."""

from lpo_jax.policy.config import Lora, PolicyConfig, RopeScaling
from lpo_jax.policy.export import check_empty, save_pretrained
from lpo_jax.policy.flash import choose_attention, platform_of
from lpo_jax.policy.kv import Cache, Prompt, Slots
from lpo_jax.policy.pretrained import check, from_pretrained, load, read_config
from lpo_jax.policy.transformer import Policy
from lpo_jax.policy.vision_config import VisionConfig

__all__ = ['Cache', 'Lora', 'Policy', 'PolicyConfig', 'Prompt', 'RopeScaling', 'Slots',
           'VisionConfig', 'check', 'check_empty', 'choose_attention',
           'from_pretrained', 'load', 'platform_of', 'read_config', 'save_pretrained']
