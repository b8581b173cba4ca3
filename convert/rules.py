"""How each Flax leaf is called, and laid out, in the checkpoints of others. Rules are data; the first match wins.

Both directions are driven from the Flax side: a `SamConfig` tells every leaf (`jax.eval_shape`), a table tells the
leaf's key there and the axes that turn their tensor into ours. A path reads `image_encoder/blocks_0/attn/qkv/kernel`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

SAME: tuple[int, ...] | None = None
DENSE = (1, 0)  # torch (out, in) -> (in, out)
CONV = (2, 3, 1, 0)  # torch (out, in, kh, kw) -> (kh, kw, in, out)
# torch (in, out, kh, kw) -> (kh, kw, in, out); our SubpixelConv indexes its kernel by output sub-pixel, as torch does,
# so that nothing is flipped.
CONV_TRANSPOSE = (2, 3, 0, 1)


class Rule(NamedTuple):
    """A Flax path pattern, the replacement that makes the foreign key of it, and the axes permutation."""

    pattern: str
    key: str
    axes: tuple[int, ...] | None


OFFICIAL = (
    Rule(r"(.*/output_upscaling_[03])/kernel", r"\1.weight", CONV_TRANSPOSE),
    Rule(r"(.*/(?:patch_embed/proj|neck_[02]|mask_downscaling_[036]))/kernel", r"\1.weight", CONV),
    Rule(r"(.*)/kernel", r"\1.weight", DENSE),
    Rule(r"(.*)/scale", r"\1.weight", SAME),
    Rule(r"(.*/(?:iou_token|mask_tokens|point_embeddings_\d|not_a_point_embed|no_mask_embed))", r"\1.weight", SAME),
    Rule(r"(.*)", r"\1", SAME),
)


def official_key(path: str) -> tuple[str, tuple[int, ...] | None]:
    """The official state-dict key of a Flax leaf and the axes permutation of its tensor."""
    key, axes = _apply(OFFICIAL, path)
    return re.sub(r"_(\d+)(?=\.|$)", r".\1", key.replace("/", ".")), axes


def _apply(rules: tuple[Rule, ...], path: str) -> tuple[str, tuple[int, ...] | None]:
    for rule in rules:
        if match := re.fullmatch(rule.pattern, path):
            return match.expand(rule.key), rule.axes
    raise KeyError(path)
