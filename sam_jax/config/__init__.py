"""Configurations: frozen, hashable dataclasses, so that a config is a static argument of `jax.jit`.

This room imports the standard library only.
"""

from sam_jax.config.amg import AmgConfig
from sam_jax.config.data import CompositeConfig, CompositeDataConfig, RecordDataConfig
from sam_jax.config.engine import EngineConfig
from sam_jax.config.engine_models import AutomaticConfig, FillConfig, RetrainConfig
from sam_jax.config.model import (
    ATTENTION,
    COMPUTE_DTYPES,
    INFERENCE_DTYPES,
    HqMaskDecoderConfig,
    ImageEncoderConfig,
    MaskDecoderConfig,
    PromptEncoderConfig,
    SamConfig,
    mobile_sam,
    sam_config_from_dict,
    to_dict,
    vit_b,
    vit_h,
    vit_l,
    vit_tiny,
)
from sam_jax.config.running import (
    bare_network,
    for_inference,
    for_training,
    network_differences,
    to_saved_dict,
)
from sam_jax.config.serving import ServingConfig
from sam_jax.config.text import TextOptions
from sam_jax.config.tiny_vit import TinyVitConfig
from sam_jax.config.towers import (
    TextTowerConfig,
    TowersConfig,
    VisionTowerConfig,
    clip_vit_b_16,
    clip_vit_b_32,
    clip_vit_l_14,
    clip_vit_l_14_336,
    siglip2_base,
    siglip2_so400m,
    towers_config_from_dict,
)
from sam_jax.config.training import (
    AugmentConfig,
    FinetuneConfig,
    InteractionConfig,
    LossConfig,
    MeshConfig,
    OptimConfig,
    StageConfig,
    TextPromptConfig,
    TrainConfig,
    for_stage,
)
from sam_jax.config.video import VideoConfig

__all__ = [
    "ATTENTION",
    "COMPUTE_DTYPES",
    "INFERENCE_DTYPES",
    "AmgConfig",
    "AugmentConfig",
    "AutomaticConfig",
    "CompositeConfig",
    "CompositeDataConfig",
    "EngineConfig",
    "FillConfig",
    "FinetuneConfig",
    "HqMaskDecoderConfig",
    "ImageEncoderConfig",
    "InteractionConfig",
    "LossConfig",
    "MaskDecoderConfig",
    "MeshConfig",
    "OptimConfig",
    "PromptEncoderConfig",
    "RecordDataConfig",
    "RetrainConfig",
    "SamConfig",
    "ServingConfig",
    "StageConfig",
    "TextOptions",
    "TextPromptConfig",
    "TextTowerConfig",
    "TinyVitConfig",
    "TowersConfig",
    "TrainConfig",
    "VideoConfig",
    "VisionTowerConfig",
    "bare_network",
    "clip_vit_b_16",
    "clip_vit_b_32",
    "clip_vit_l_14",
    "clip_vit_l_14_336",
    "for_inference",
    "for_stage",
    "for_training",
    "mobile_sam",
    "network_differences",
    "sam_config_from_dict",
    "siglip2_base",
    "siglip2_so400m",
    "to_dict",
    "to_saved_dict",
    "towers_config_from_dict",
    "vit_b",
    "vit_h",
    "vit_l",
    "vit_tiny",
]
