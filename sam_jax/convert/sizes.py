"""Infers the config of a SAM model from the shapes of its tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from sam_jax.config import (
    HqMaskDecoderConfig,
    ImageEncoderConfig,
    MaskDecoderConfig,
    PromptEncoderConfig,
    SamConfig,
    TinyVitConfig,
)
from sam_jax.convert.errors import ConversionError

TINY_VIT = "image_encoder.patch_embed.seq.0.c.weight"  # only in TinyViTs
HQ_TOKEN = "mask_decoder.hf_token.weight"  # only in HQ-SAM

Shapes = Mapping[str, tuple[int, ...]]


def infer_config(shapes: Shapes, decoder_num_heads: int = 8) -> SamConfig:
    """The config of an official state dict.

    Args:
      shapes: shape by official key.
      decoder_num_heads: attention heads of the mask decoder, the only number that shapes do not determine.

    Raises:
      ConversionError: a tensor that determines a size is missing, or the sizes contradict each other.
    """
    if decoder_num_heads < 1:
        raise ConversionError(f"--decoder-num-heads must be positive, not {decoder_num_heads}")
    try:
        return SamConfig(
            image_encoder=_tiny_vit(shapes) if TINY_VIT in shapes else _image_encoder(shapes),
            prompt_encoder=PromptEncoderConfig(_shape(shapes, "prompt_encoder.mask_downscaling.3.weight", 4)[0]),
            mask_decoder=_mask_decoder(shapes, decoder_num_heads),
            prompt_embed_dim=_shape(shapes, "image_encoder.neck.0.weight", 4)[0],
        )
    except ConversionError:
        raise
    except ValueError as error:
        raise ConversionError(
            f"its tensors give an impossible size ({error}); if the decoder does not have {decoder_num_heads} heads, "
            "give --decoder-num-heads"
        ) from error


def _image_encoder(shapes: Shapes) -> ImageEncoderConfig:
    _, grid, _, embed_dim = _shape(shapes, "image_encoder.pos_embed", 4)
    patch_size = _shape(shapes, "image_encoder.patch_embed.proj.weight", 4)[2]
    hidden = _shape(shapes, "image_encoder.blocks.0.mlp.lin1.weight", 2)[0]
    head_dim = _shape(shapes, "image_encoder.blocks.0.attn.rel_pos_h", 2)[1]
    depth = _count(shapes, r"image_encoder\.blocks\.(\d+)\.attn\.rel_pos_h")
    window_size, global_blocks = _windows(shapes, depth, grid)
    return ImageEncoderConfig(
        image_size=grid * patch_size,
        patch_size=patch_size,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=_divide(embed_dim, head_dim, "width of the image encoder", "width of a head (rel_pos_h)"),
        mlp_ratio=_mlp_ratio(hidden, embed_dim),
        window_size=window_size,
        global_attn_indexes=global_blocks,
    )


def _tiny_vit(shapes: Shapes) -> TinyVitConfig:
    """A TinyViT. Its tensors do not depend on the image size, so that of MobileSAM is used."""
    layers = "image_encoder.layers"
    stages = _count(shapes, re.escape(layers) + r"\.(\d+)\..*")
    first = f"{layers}.0.blocks.0.conv1.c.weight"
    tables = [_shape(shapes, f"{layers}.{i}.blocks.0.attn.attention_biases", 2) for i in range(1, stages)]
    widths = [_shape(shapes, f"{layers}.{i}.downsample.conv1.c.weight", 4)[0] for i in range(stages - 1)]
    hidden, width = _shape(shapes, f"{layers}.1.blocks.0.mlp.fc1.weight", 2)
    return TinyVitConfig(
        widths=(_shape(shapes, first, 4)[1], *widths),
        depths=tuple(_count(shapes, rf"{re.escape(layers)}\.{i}\.blocks\.(\d+)\..*") for i in range(stages)),
        num_heads=tuple(heads for heads, _ in tables),
        window_sizes=tuple(math.isqrt(cells) for _, cells in tables),
        mlp_ratio=_mlp_ratio(hidden, width),
        expand_ratio=_mlp_ratio(*_shape(shapes, first, 4)[:2]),
    )


def _windows(shapes: Shapes, depth: int, grid: int) -> tuple[int, tuple[int, ...]]:
    """Window size and global blocks. A block's table has 2 * side - 1 rows; in global blocks `side` is the grid's."""
    keys = [f"image_encoder.blocks.{i}.attn.rel_pos_h" for i in range(depth)]
    sides = [(_shape(shapes, key, 2)[0] + 1) // 2 for key in keys]
    windows = sorted({side for side in sides if side != grid})
    if len(windows) > 1:
        raise ConversionError(f"its blocks have windows of several sizes ({windows}); SAM has one")
    # A window as large as the grid cannot be told from a global block. At the native input size both compute the same;
    # treating such blocks as global also avoids seams at other input sizes.
    return (windows or [grid])[0], tuple(i for i, side in enumerate(sides) if side == grid)


def _mask_decoder(shapes: Shapes, num_heads: int) -> MaskDecoderConfig:
    transformer, head = "mask_decoder.transformer", "mask_decoder.iou_prediction_head.layers"
    tokens, dim = _shape(shapes, "mask_decoder.mask_tokens.weight", 2)
    inner = _shape(shapes, f"{transformer}.final_attn_token_to_image.q_proj.weight", 2)[0]
    return (HqMaskDecoderConfig if HQ_TOKEN in shapes else MaskDecoderConfig)(
        depth=_count(shapes, re.escape(transformer) + r"\.layers\.(\d+)\.norm1\.weight"),
        num_heads=num_heads,
        mlp_dim=_shape(shapes, f"{transformer}.layers.0.mlp.lin1.weight", 2)[0],
        attention_downsample_rate=_divide(dim, inner, "width of the mask decoder", "width of its cross-attention"),
        num_multimask_outputs=tokens - 1,
        iou_head_depth=_count(shapes, re.escape(head) + r"\.(\d+)\.weight"),
        iou_head_hidden_dim=_shape(shapes, f"{head}.0.weight", 2)[0],
    )


def _shape(shapes: Shapes, key: str, ndim: int) -> tuple[int, ...]:
    if key not in shapes:
        raise ConversionError(f"it lacks {key}; {_describe(shapes)}")
    if len(shapes[key]) != ndim:
        raise ConversionError(f"{key} has shape {shapes[key]}; expected {ndim} axes")
    return shapes[key]


def _describe(shapes: Shapes) -> str:
    some = ", ".join(list(shapes)[:3]) or "none"
    return f"its {len(shapes)} tensors are others ({some}, ...); convert a SAM file such as sam_vit_b_01ec64.pth"


def _count(shapes: Shapes, pattern: str) -> int:
    """One more than the highest index that `pattern` finds; gaps are reported later as missing tensors."""
    found = [int(match[1]) for key in shapes if (match := re.fullmatch(pattern, key))]
    return max(found, default=-1) + 1


def _divide(whole: int, part: int, whole_name: str, part_name: str) -> int:
    if part < 1 or whole % part:
        raise ConversionError(f"the {whole_name}, {whole}, is not a multiple of the {part_name}, {part}")
    return whole // part


def _mlp_ratio(hidden: int, width: int) -> float:
    """A ratio for which `int(width * ratio)` is `hidden`: with the nearest float it may be one less."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)
