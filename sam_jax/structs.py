"""The two structs that the whole library shares, and the letters used in every shape.

B  images                    N  prompts per image (one prompt = one object to segment)
P  points per prompt         T  prompt tokens
M  masks per prompt          C  channels
H W  pixels of the input frame      h w  embedding grid (H / patch_size, W / patch_size)

The input frame is the resized, padded image that the image encoder sees. Arrays are NHWC.
"""

from __future__ import annotations

from typing import Any

from flax import struct

Array = Any  # jax.Array inside compiled programs, numpy.ndarray outside them


@struct.dataclass
class Prompts:
    """What to segment: N prompts for each of B images. All parts are optional; absent parts are None.

    Ragged counts are padded: points with label -1, and boxes and masks whose flag is False, are ignored; prompts with
    `valid` False yield masks that the caller ignores.

    Attributes:
      point_coords: (B, N, P, 2) float32, (x, y) in pixels of the input frame.
      point_labels: (B, N, P) int32: 1 foreground, 0 background, -1 absent.
      boxes: (B, N, 4) float32, (x0, y0, x1, y1) in pixels of the input frame.
      box_valid: (B, N) bool; None means that every box counts.
      mask_inputs: (B, N, 4h, 4w) float32 mask logits, such as an earlier `MaskPredictions.low_res_masks`.
      mask_valid: (B, N) bool; None means that every mask counts.
      text_embeddings: (B, N, E) float32 of length one, of a model with `SamConfig.text_embed_dim` E: what the text
        tower gives of a phrase, or the image tower of an object.
      text_valid: (B, N) bool; None means that every text counts.
      valid: (B, N) bool; None means that every prompt counts.
    """

    point_coords: Array | None = None
    point_labels: Array | None = None
    boxes: Array | None = None
    box_valid: Array | None = None
    mask_inputs: Array | None = None
    mask_valid: Array | None = None
    text_embeddings: Array | None = None
    text_valid: Array | None = None
    valid: Array | None = None


@struct.dataclass
class MaskPredictions:
    """Masks of the mask decoder.

    Attributes:
      low_res_masks: (B, N, M, 4h, 4w) float32 logits on a grid four times finer than the image embedding.
      iou_predictions: (B, N, M) float32, the model's own estimate of each mask's IoU. It is a regression without a
        sigmoid: values slightly above 1 are possible, and not clipped.
    """

    low_res_masks: Array
    iou_predictions: Array
