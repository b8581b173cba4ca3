"""What a network is, as opposed to how it runs: each field of a `SamConfig` is in exactly one of three sets."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from sam_jax.config.checks import require
from sam_jax.config.model import ATTENTION, INFERENCE_DTYPES, SamConfig, sam_config_from_dict, to_dict

# Shapes and meaning of parameters: weights trained with one value are useless with another.
NETWORK = frozenset(
    {
        "image_encoder.image_size",
        "image_encoder.patch_size",
        "image_encoder.embed_dim",
        "image_encoder.depth",
        "image_encoder.num_heads",
        "image_encoder.mlp_ratio",
        "image_encoder.window_size",
        "image_encoder.global_attn_indexes",
        "image_encoder.widths",
        "image_encoder.depths",
        "image_encoder.window_sizes",
        "image_encoder.expand_ratio",
        "prompt_encoder.mask_in_chans",
        "mask_decoder.depth",
        "mask_decoder.num_heads",
        "mask_decoder.mlp_dim",
        "mask_decoder.attention_downsample_rate",
        "mask_decoder.num_multimask_outputs",
        "mask_decoder.iou_head_depth",
        "mask_decoder.iou_head_hidden_dim",
        "mask_decoder.iou_times_stability",
        "prompt_embed_dim",
        "details",
        "text_embed_dim",
        "pixel_mean",
        "pixel_std",
    }
)
# How a network with given parameters is run, in training or inference. The caller chooses; a model directory does not
# store it.
RUNNING = frozenset(
    {
        "image_encoder.drop_path_rate",
        "image_encoder.remat",
        "image_encoder.scan",
        "image_encoder.attention",
        "image_encoder.token_order",
        "image_encoder.int8_mlp",
        "mask_decoder.kernels",
        "mask_decoder.dropout_rate",
        "dtype",
    }
)
# What inference does with the network's outputs. A model directory stores it as the defaults of its weights.
ANSWERS = frozenset(
    {"mask_decoder.hq_token_only", "crf", "mask_threshold", "pred_iou_thresh", "stability_score_thresh"}
)


def sam_fields(config: SamConfig) -> dict[str, Any]:
    """Values of all fields by dotted name: {"image_encoder.depth": 12, ..., "dtype": "float32"}."""
    values: dict[str, Any] = {}
    for name, value in to_dict(config).items():
        values |= {f"{name}.{inner}": x for inner, x in value.items()} if isinstance(value, dict) else {name: value}
    return values


def to_saved_dict(config: SamConfig) -> dict[str, Any]:
    """What a model directory stores of a config: `to_dict` without the fields of `RUNNING`."""
    values = to_dict(config)
    for name in RUNNING:
        *part, leaf = name.split(".")
        (values[part[0]] if part else values).pop(leaf, None)  # a TinyViT has fewer
    return values


def bare_network(config: SamConfig) -> SamConfig:
    """The config with every field of `RUNNING` at its default."""
    return sam_config_from_dict(to_saved_dict(config))


def network_differences(stored: SamConfig, wanted: SamConfig) -> list[str]:
    """Why weights of `stored` do not fit `wanted`: each `NETWORK` field that differs, with both values."""
    ours = sam_fields(wanted)
    for part in ("image_encoder", "mask_decoder"):
        kinds = [type(getattr(config, part)) for config in (stored, wanted)]
        if kinds[0] is not kinds[1]:
            return [f"{part} of kind {kinds[0].__name__}, not {kinds[1].__name__}"]
    return [
        f"{name} {value}, not {ours[name]}"
        for name, value in sam_fields(stored).items()
        if name in NETWORK and not _equal(value, ours[name])
    ]


def _equal(one: Any, other: Any) -> bool:
    """Equality, up to rounding: `mlp_ratio` is a quotient of widths."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-6)
    return bool(one == other)


def for_inference(config: SamConfig, dtype: str = "float32", kernels: str = "auto") -> SamConfig:
    """The config of a network for inference; all other fields of `RUNNING` get their defaults.

    Args:
      dtype: one of INFERENCE_DTYPES; "int8" is bfloat16 with `ImageEncoderConfig.int8_mlp`.
      kernels: one of ATTENTION, for the encoder's attention and the mask decoder; see `ImageEncoderConfig.attention`.
        A TinyViT has no kernels; only the decoder uses it then. With "triton" the decoder keeps "auto": it has no
        kernels for GPUs.

    Raises:
      ValueError: an unknown dtype or kernels, "pallas" for a network with details or HQ-SAM, or "int8" for a TinyViT.
    """
    require(dtype in INFERENCE_DTYPES, f"dtype {dtype!r} is not one of {', '.join(INFERENCE_DTYPES)}")
    require(kernels in ATTENTION, f"kernels {kernels!r} is not one of {', '.join(ATTENTION)}")
    bare = bare_network(config)
    encoder = bare.image_encoder
    if not bare.is_mobile or dtype == "int8":
        encoder = dataclasses.replace(bare.vit, attention=kernels, int8_mlp=dtype == "int8")
    decoder = dataclasses.replace(bare.mask_decoder, kernels="auto" if kernels == "triton" else kernels)
    dtype = "bfloat16" if dtype == "int8" else dtype
    return dataclasses.replace(bare, image_encoder=encoder, mask_decoder=decoder, dtype=dtype)


def for_training(
    config: SamConfig, drop_path_rate: float = 0.0, remat: bool = True, dropout_rate: float = 0.0
) -> SamConfig:
    """The config of a network for training on TPUs, in bfloat16.

    `drop_path_rate` and `remat` are the encoder's, `dropout_rate` the decoder's. Raises ValueError for a TinyViT.
    """
    encoder = dataclasses.replace(config.vit, drop_path_rate=drop_path_rate, remat=remat)
    decoder = dataclasses.replace(config.mask_decoder, kernels="auto", dropout_rate=dropout_rate)
    return dataclasses.replace(config, image_encoder=encoder, mask_decoder=decoder, dtype="bfloat16")
