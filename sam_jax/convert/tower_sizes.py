"""The size of CLIP's and SigLIP's towers, read off the shapes of their tensors and a config.json beside them."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sam_jax.config import TextTowerConfig, TowersConfig, VisionTowerConfig, clip_vit_b_32, siglip2_base
from sam_jax.convert.errors import ConversionError

Shapes = Mapping[str, tuple[int, ...]]
_ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}
# Of a width that is no multiple of 64: SigLIP's so400m.
_HEADS = {1152: 16}
# Sides that are no multiple of the patch, by grid and patch: no tensor tells what is left out.
_SIDES = {(27, 14): 384}


def read_tower_hints(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The parts "vision_config" and "text_config" of a Hugging Face config.json beside a file; empty without one."""
    try:
        content = json.loads((Path(path).parent / "config.json").read_text())
    except (OSError, ValueError):
        return {}
    parts = {name: content.get(name) for name in ("vision_config", "text_config")} if isinstance(content, dict) else {}
    return {name: part for name, part in parts.items() if isinstance(part, dict)}


def infer_towers(shapes: Shapes, hints: Mapping[str, Any]) -> TowersConfig:
    """The config of a Hugging Face state dict.

    Args:
      shapes: shape by key.
      hints: what `read_tower_hints` gave: heads, activations and the image's side, where no tensor tells them.

    Raises:
      ConversionError: a tensor that tells a size is missing, or the sizes contradict each other.
    """
    is_clip = "vision_model.embeddings.class_embedding" in shapes
    start = clip_vit_b_32() if is_clip else siglip2_base()
    vision_hints, text_hints = hints.get("vision_config", {}), hints.get("text_config", {})
    projection = "visual_projection.weight" if is_clip else "text_model.head.weight"
    try:
        return TowersConfig(
            family=start.family,
            vision=_vision(shapes, is_clip, vision_hints),
            text=_text(shapes, text_hints),
            embed_dim=_shape(shapes, projection, 2)[0],
            activation=_activation(start.activation, vision_hints, text_hints),
            pixel_mean=start.pixel_mean,
            pixel_std=start.pixel_std,
        )
    except ConversionError:
        raise
    except (ValueError, TypeError) as error:
        raise ConversionError(f"its tensors give an impossible size ({error})") from error


def _vision(shapes: Shapes, is_clip: bool, hints: Mapping[str, Any]) -> VisionTowerConfig:
    kernel = shapes.get("vision_model.embeddings.patch_embedding.weight", ())
    if len(kernel) == 2:
        raise ConversionError(
            "looks like SigLIP 2 NaFlex, which takes images of any shape and is another network; convert one of fixed "
            "size, such as siglip2-base-patch16-224"
        )
    width, _, _, patch = _shape(shapes, "vision_model.embeddings.patch_embedding.weight", 4)
    tokens = _shape(shapes, "vision_model.embeddings.position_embedding.weight", 2)[0] - is_clip
    grid = math.isqrt(max(0, tokens))
    if grid < 1 or grid * grid != tokens:
        raise ConversionError(f"its {tokens} image tokens are no square grid")
    side = hints.get("image_size", _SIDES.get((grid, patch), grid * patch))
    if not isinstance(side, int) or side // patch != grid:
        raise ConversionError(
            f"config.json says image_size {side}, but its {grid} x {grid} patches are {patch} px each"
        )
    return VisionTowerConfig(side, patch, width, **_blocks(shapes, "vision_model", width, hints))


def _text(shapes: Shapes, hints: Mapping[str, Any]) -> TextTowerConfig:
    vocabulary, width = _shape(shapes, "text_model.embeddings.token_embedding.weight", 2)
    length = _shape(shapes, "text_model.embeddings.position_embedding.weight", 2)[0]
    return TextTowerConfig(vocabulary, length, width, **_blocks(shapes, "text_model", width, hints))


def _blocks(shapes: Shapes, tower: str, width: int, hints: Mapping[str, Any]) -> dict[str, int]:
    numbers = {int(m[1]) for key in shapes if (m := re.match(rf"{tower}\.encoder\.layers\.(\d+)\.", key))}
    heads = hints.get("num_attention_heads", _HEADS.get(width, max(1, width // 64)))
    mlp_dim = _shape(shapes, f"{tower}.encoder.layers.0.mlp.fc1.weight", 2)[0]
    return {"depth": max(numbers, default=-1) + 1, "num_heads": heads, "mlp_dim": mlp_dim}


def _activation(default: str, *hints: Mapping[str, Any]) -> str:
    named = {hint["hidden_act"] for hint in hints if "hidden_act" in hint}
    if len(named) > 1 or not named <= _ACTIVATIONS.keys():
        raise ConversionError(
            f"config.json says hidden_act {', '.join(sorted(named))}; one of {', '.join(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[named.pop()] if named else default


def _shape(shapes: Shapes, key: str, ndim: int) -> tuple[int, ...]:
    if len(shapes.get(key, ())) != ndim:
        some = ", ".join(list(shapes)[:3]) or "none"
        raise ConversionError(
            f"it lacks {key} of {ndim} axes, and its {len(shapes)} tensors are others ({some}, ...); give the weights "
            "of a CLIP with a ViT or of a SigLIP 2"
        )
    return shapes[key]
