"""Names and layouts of all Flax leaves in PyTorch checkpoints, as tables of rules.

The official state dict is the common format. A `SamConfig` determines all Flax leaves (`jax.eval_shape`); `OFFICIAL`
gives the official key of each leaf and the permutation of axes from the torch tensor to ours, for both directions.
`HUGGING_FACE` renames the keys of a `SamModel` to official ones; its tensors have the same layout.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
from flax.traverse_util import flatten_dict

from sam_jax.config import SamConfig
from sam_jax.models.sam import Sam, init_variables

Axes = tuple[int, ...] | None

SAME: Axes = None
DENSE: Axes = (1, 0)  # torch (out, in) -> (in, out)
CONV: Axes = (2, 3, 1, 0)  # torch (out, in, kh, kw) -> (kh, kw, in, out)
# torch (in, out, kh, kw) -> (kh, kw, in, out). Our PlaneSubpixelConv indexes its kernel by output sub-pixel, as torch
# does, so the kernel is not flipped.
CONV_TRANSPOSE: Axes = (2, 3, 0, 1)


class Rule(NamedTuple):
    """A pattern for whole Flax paths, the replacement that gives the official key, and the permutation of axes."""

    pattern: str
    key: str
    axes: Axes


# Paths look like image_encoder/blocks_0/attn/qkv/kernel. The first match wins; "/" and the "_" of indices become ".".
OFFICIAL = (
    # HQ-SAM's decoder computes the fine features for each prompt; here they are a module of their own.
    Rule(r"hq_features/(.*)/kernel", r"mask_decoder.\1.weight", CONV_TRANSPOSE),
    Rule(r"hq_features/(.*)/scale", r"mask_decoder.\1.weight", SAME),
    Rule(r"hq_features/(.*)", r"mask_decoder.\1", SAME),
    Rule(r"(.*/output_upscaling_[03])/kernel", r"\1.weight", CONV_TRANSPOSE),
    Rule(
        r"(.*/(?:patch_embed/proj|neck_[02]|mask_downscaling_[036]|embedding_maskfeature_[03]|c))/kernel",
        r"\1.weight",
        CONV,
    ),
    Rule(r"(.*)/kernel", r"\1.weight", DENSE),
    Rule(r"(.*)/scale", r"\1.weight", SAME),
    Rule(
        r"(.*/(?:iou_token|mask_tokens|hf_token|point_embeddings_\d|not_a_point_embed|no_mask_embed))",
        r"\1.weight",
        SAME,
    ),
    Rule(r"(.*)", r"\1", SAME),
)

# Tensors that the network does not use: the classifier that MobileSAM's TinyViT was pre-trained with, and the batch
# counts of its batch normalisation.
UNUSED = re.compile(r"image_encoder\.(norm_head|head)\..*|image_encoder\..*\.bn\.num_batches_tracked")

# Hugging Face name -> official name; all lines that match are applied, in order.
HUGGING_FACE = (
    (r"^vision_encoder\.layers\.", "image_encoder.blocks."),
    (r"^vision_encoder\.", "image_encoder."),
    (r"\.patch_embed\.projection\.", ".patch_embed.proj."),
    (r"\.neck\.conv1\.", ".neck.0."),
    (r"\.neck\.layer_norm1\.", ".neck.1."),
    (r"\.neck\.conv2\.", ".neck.2."),
    (r"\.neck\.layer_norm2\.", ".neck.3."),
    # The model has this matrix under two names; a file may have either or both.
    (
        r"^(shared_image_embedding|prompt_encoder\.shared_embedding)\.positional_embedding$",
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
    ),
    (r"\.point_embed\.", ".point_embeddings."),
    (r"\.mask_embed\.conv1\.", ".mask_downscaling.0."),
    (r"\.mask_embed\.layer_norm1\.", ".mask_downscaling.1."),
    (r"\.mask_embed\.conv2\.", ".mask_downscaling.3."),
    (r"\.mask_embed\.layer_norm2\.", ".mask_downscaling.4."),
    (r"\.mask_embed\.conv3\.", ".mask_downscaling.6."),
    (r"\.upscale_conv1\.", ".output_upscaling.0."),
    (r"\.upscale_layer_norm\.", ".output_upscaling.1."),
    (r"\.upscale_conv2\.", ".output_upscaling.3."),
    (r"\.layer_norm", ".norm"),
    # `SamHQModel`
    (r"\.hq_token\.", ".hf_token."),
    (r"\.compress_vit_conv1\.", ".compress_vit_feat.0."),
    (r"\.compress_vit_norm\.", ".compress_vit_feat.1."),
    (r"\.compress_vit_conv2\.", ".compress_vit_feat.3."),
    (r"\.encoder_conv1\.", ".embedding_encoder.0."),
    (r"\.encoder_norm\.", ".embedding_encoder.1."),
    (r"\.encoder_conv2\.", ".embedding_encoder.3."),
    (r"\.mask_conv1\.", ".embedding_maskfeature.0."),
    (r"\.mask_norm\.", ".embedding_maskfeature.1."),
    (r"\.mask_conv2\.", ".embedding_maskfeature.3."),
)
# Only the MLPs of the decoder are numbered differently: proj_in, layers.0 .. layers.n, proj_out.
_HUGGING_FACE_MLP = re.compile(
    r"(mask_decoder\.(?:iou_prediction_head|hq_mask_mlp|output_hypernetworks_mlps\.\d+))\.(proj_in|proj_out|layers\.(\d+))\.(.*)"
)


def official_key(path: str) -> tuple[str, Axes]:
    """The official state-dict key of a Flax leaf (its path without the collection), and the permutation of its axes."""
    return foreign_key(path, OFFICIAL)


def foreign_key(path: str, rules: Iterable[Rule]) -> tuple[str, Axes]:
    """As `official_key`, by any table of rules."""
    for rule in rules:
        if match := re.fullmatch(rule.pattern, path):
            key = match.expand(rule.key).replace("/", ".")
            return re.sub(r"_(\d+)(?=\.|$)", r".\1", key), rule.axes
    raise KeyError(path)


def expected_leaves(config: SamConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape of every leaf of a model by its path, which starts with the collection: params/image_encoder/pos_embed."""
    shapes: Any = jax.eval_shape(lambda: init_variables(Sam(config), jax.random.key(0)))
    return flatten_dict(shapes, sep="/")


def official_name(key: str, keys: Iterable[str]) -> str:
    """The official key of a Hugging Face key. `keys` are all keys of the file; they show the number of layers."""
    for pattern, replacement in HUGGING_FACE:
        key = re.sub(pattern, replacement, key)
    match = _HUGGING_FACE_MLP.fullmatch(key)
    if not match:
        return key
    mlp, layer, index, leaf = match.groups()
    if layer == "proj_out":
        index = sum(k.startswith(f"{mlp}.layers.") and k.endswith(".weight") for k in keys)
    number = 0 if layer == "proj_in" else int(index) + 1
    return f"{mlp.replace('hq_mask_mlp', 'hf_mlp')}.layers.{number}.{leaf}"
