"""The best, the median and the worst object of a set as small images."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

from sam_jax.evaluation.options import BOX, REFINED
from sam_jax.evaluation.results import EvaluationResult
from sam_jax.evaluation.sets.image_sets import ImageSet
from sam_jax.inference.overlays import draw_prompts, overlay_masks
from sam_jax.ops.masks import mask_to_box
from sam_jax.ops.rle import decode_mask

LONGEST_SIDE = 400
_QUALITY = 82


@dataclass(frozen=True)
class Case:
    """One object, drawn.

    Attributes:
      kind: "best", "median" or "worst".
      caption: scores, image and mask number.
      jpeg: the image with the predicted mask tinted, the true one outlined in white, and the prompt.
    """

    kind: str
    caption: str
    jpeg: bytes

    @property
    def data_url(self) -> str:
        """The JPEG as a data URL, for a self-contained HTML page."""
        return "data:image/jpeg;base64," + base64.b64encode(self.jpeg).decode("ascii")


def pick_cases(result: EvaluationResult, column: str) -> dict[str, int]:
    """Numbers of the masks with the highest, the median and the lowest IoU; fewer if the set has fewer masks."""
    order = np.argsort(-result.iou[:, result.columns.index(column)], kind="stable")
    picked = {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}
    return {kind: int(number) for i, (kind, number) in enumerate(picked.items()) if i < len(order)}


def draw_cases(result: EvaluationResult, image_set: ImageSet, column: str) -> list[Case]:
    """Draws the masks of `pick_cases`. Raises ValueError if the result kept no masks."""
    if result.masks is None:
        raise ValueError("this result kept no masks to draw; evaluate with keep_masks=True")
    place, cases = result.columns.index(column), []
    for kind, number in pick_cases(result, column).items():
        image = image_set[int(result.indices[result.image_of[number]])]
        true = decode_mask(image.segmentations[result.mask_of[number]])
        predicted = decode_mask(result.masks[number][place])
        drawn = _draw(image.image, true, predicted, _prompt(result, number, column, true))
        estimate = result.predicted_iou[number, place]
        believed = "" if np.isnan(estimate) else f", predicted {estimate:.3f}"
        caption = f"IoU {result.iou[number, place]:.3f}{believed}: {image.name}, mask {result.mask_of[number]}"
        cases.append(Case(kind, caption, drawn))
    return cases


def _prompt(
    result: EvaluationResult, number: int, column: str, true: np.ndarray
) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """The prompt of a column, in pixels of the image: points (P, 2), labels (P,) and boxes (1, 4)."""
    if column in (BOX, REFINED):
        return None, None, mask_to_box(true)[None]
    clicks = result.clicks[number, : int(column.split()[0])]
    clicks = clicks[clicks[:, 2] >= 0]
    return clicks[:, :2] + 0.5, clicks[:, 2], None


def _draw(
    image: np.ndarray,
    true: np.ndarray,
    predicted: np.ndarray,
    prompt: tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None],
) -> bytes:
    h, w = true.shape
    scale = min(1.0, LONGEST_SIDE / max(h, w))
    size = max(1, round(w * scale)), max(1, round(h * scale))
    small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
    found, wanted = (np.asarray(Image.fromarray(m).resize(size, Image.Resampling.NEAREST)) for m in (predicted, true))
    canvas = overlay_masks(small, [found])
    canvas[wanted & ~ndimage.binary_erosion(wanted)] = 255
    points, labels, boxes = prompt
    ratio = np.array([size[0] / w, size[1] / h])
    points = None if points is None else points * ratio
    boxes = None if boxes is None else boxes * np.tile(ratio, 2)
    buffer = io.BytesIO()
    Image.fromarray(draw_prompts(canvas, points, labels, boxes)).save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()
