"""Writes results: SA-1B-style records, mask PNGs and overlay images. All files are written atomically."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from sam_jax.files import write_atomically
from sam_jax.ops.masks import mask_to_box
from sam_jax.ops.rle import encode_mask

# Distinct on images and for colour-blind readers (Okabe and Ito 2008, brightened).
COLOURS = ((0, 158, 255), (255, 140, 0), (0, 200, 120), (240, 80, 160), (250, 230, 60), (160, 100, 255), (90, 220, 255))
FOREGROUND, BACKGROUND = (40, 220, 80), (235, 50, 50)
_OPACITY = 0.5


def mask_record(index: int, mask: np.ndarray, predicted_iou: float, prompt: dict[str, Any]) -> dict[str, Any]:
    """One annotation in SA-1B's format.

    Args:
      index: the record's id within its image.
      mask: (H, W) bool.
      predicted_iou: the model's estimate.
      prompt: `point_coords` or `box`, copied into the record.

    Returns:
      A dict with `segmentation` (compressed COCO RLE), `bbox` [x, y, w, h] with w = x_max - x_min as in SA-1B, `area`
      in pixels, `predicted_iou` and the prompt.
    """
    x0, y0, x1, y1 = mask_to_box(mask).tolist()
    return {
        "id": index,
        "segmentation": encode_mask(mask),
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": int(mask.sum()),
        "predicted_iou": float(predicted_iou),
        **prompt,
    }


def write_records(path: epath.PathLike, image: dict[str, Any], annotations: Sequence[dict[str, Any]]) -> None:
    """Writes {"image": ..., "annotations": [...]} as JSON."""
    text = json.dumps({"image": image, "annotations": list(annotations)})
    write_atomically(path, text.encode())


def write_image(path: epath.PathLike, image: np.ndarray) -> None:
    """Writes an (H, W, 3) or (H, W) uint8 array as JPEG if the name ends in .jpg or .jpeg, else as PNG."""
    buffer = io.BytesIO()
    jpeg = str(path).lower().endswith((".jpg", ".jpeg"))
    Image.fromarray(image).save(buffer, "JPEG" if jpeg else "PNG", **({"quality": 90} if jpeg else {}))
    write_atomically(path, buffer.getvalue())


def overlay_masks(image: np.ndarray, masks: Sequence[np.ndarray]) -> np.ndarray:
    """An image with each mask tinted in its own colour and outlined; smaller masks are drawn over larger ones.

    Args:
      image: (H, W, 3) uint8.
      masks: (H, W) bool each.

    Returns:
      (H, W, 3) uint8.
    """
    canvas = image.astype(np.float32)
    line = max(1, round(max(image.shape[:2]) / 500))
    for index in sorted(range(len(masks)), key=lambda i: -masks[i].sum()):
        mask, colour = masks[index], np.array(COLOURS[index % len(COLOURS)], np.float32)
        canvas[mask] += (colour - canvas[mask]) * _OPACITY
        edge = mask & ~ndimage.binary_erosion(mask, iterations=line, border_value=1)
        canvas[edge] = colour * 0.4 + 255 * 0.6
    return canvas.astype(np.uint8)


def labels_of(records: Sequence[dict[str, Any]]) -> list[str]:
    """What is written onto each record's mask: its text and score; nothing where it has no text."""
    return [f"{record['text']} {record['score']:.2f}" if "text" in record else "" for record in records]


def label_masks(image: np.ndarray, masks: Sequence[np.ndarray], labels: Sequence[str]) -> np.ndarray:
    """Writes a label onto each mask, on a strip of the mask's colour at the top left of its box.

    Args:
      image: (H, W, 3) uint8, as `overlay_masks` gives it.
      masks: (H, W) bool each. labels: one a mask; empty ones are left out.
    """
    if not any(labels):
        return image
    canvas, size = Image.fromarray(image), max(10, round(max(image.shape[:2]) / 45))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size)
    for index, label in enumerate(labels):
        if not label:
            continue
        x, y, _, _ = mask_to_box(masks[index]).tolist()
        width, height = round(draw.textlength(label, font)) + size // 2, size + size // 2
        x, y = max(0, min(x, image.shape[1] - width)), max(0, min(y, image.shape[0] - height))
        draw.rectangle((x, y, x + width, y + height), fill=COLOURS[index % len(COLOURS)])
        draw.text((x + size // 4, y + size // 8), label, fill=(0, 0, 0), font=font)
    return np.asarray(canvas)


def draw_prompts(
    image: np.ndarray, points: np.ndarray | None, labels: np.ndarray | None, boxes: np.ndarray | None
) -> np.ndarray:
    """Draws points (P, 2), green on the object and red off it, and boxes (N, 4) xyxy, in pixels of the image.

    Returns (H, W, 3) uint8; `labels` are (P,), 1 on the object.
    """
    canvas = Image.fromarray(image)
    draw = ImageDraw.Draw(canvas)
    unit = max(2, round(max(image.shape[:2]) / 250))
    for number, box in enumerate(boxes if boxes is not None else ()):
        draw.rectangle([float(v) for v in box], outline=COLOURS[number % len(COLOURS)], width=max(2, unit // 2))
    if points is not None and labels is not None:
        for (x, y), label in zip(points, labels, strict=True):
            colour = FOREGROUND if label == 1 else BACKGROUND
            draw.ellipse((x - 2 * unit, y - 2 * unit, x + 2 * unit, y + 2 * unit), colour, (255, 255, 255), unit)
    return np.asarray(canvas)


def caption(image: np.ndarray, text: str) -> np.ndarray:
    """The image with a line of text on a dark background in its top left corner."""
    canvas = Image.fromarray(image)
    draw = ImageDraw.Draw(canvas)
    size = max(12, round(max(image.shape[:2]) / 40))
    font = ImageFont.load_default(size)
    box = draw.textbbox((size // 2, size // 3), text, font)
    draw.rectangle((0, 0, box[2] + size // 2, box[3] + size // 3), fill=(20, 20, 20))
    draw.text((size // 2, size // 3), text, fill=(255, 255, 255), font=font)
    return np.asarray(canvas)


def side_by_side(images: Sequence[np.ndarray], longest_side: int = 1024) -> np.ndarray:
    """Images of one size in a row (in a column if w > 2 h), each shrunk to at most `longest_side` pixels."""
    h, w = images[0].shape[:2]
    scale = min(1.0, longest_side / max(h, w))
    size = (max(1, round(w * scale)), max(1, round(h * scale)))
    small = [np.asarray(Image.fromarray(p).resize(size, Image.Resampling.LANCZOS)) for p in images]
    return np.concatenate(small, axis=0 if w > 2 * h else 1)
