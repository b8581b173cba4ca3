"""Draws masks, points and boxes with matplotlib, also inline in notebooks; needs pip install "sam_jax[plot]".

    plotting.show(image, records)                                    from everything mode, or any records
    plotting.show(image, masks, points=points, labels=labels)        from `SamPredictor.predict` with points

`show` makes a figure; the other functions draw onto your axes, with the arguments of the official notebooks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from sam_jax.inference.images import as_array
from sam_jax.inference.overlays import BACKGROUND, COLOURS, FOREGROUND
from sam_jax.ops.rle import decode_mask

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Masks = Sequence[Any] | np.ndarray
_OPACITY = 0.5
_OUTLINE = 0.6  # share of white in an outline's colour: visible on dark and light images


def show(
    image: np.ndarray | Image.Image,
    masks: Masks = (),
    *,
    points: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    boxes: np.ndarray | None = None,
    scores: Sequence[float] | np.ndarray | None = None,
    axes: Axes | None = None,
    side: float = 8.0,
) -> Figure:
    """Draws an image with masks and prompts over it, and returns the figure.

    Args:
      image: (H, W, 3) uint8 RGB, or a Pillow image.
      masks: (M, H, W) bool, or records with `segmentation`, from everything mode or result files.
      points: (P, 2) x, y in pixels of the image.
      labels: (P,) 1 on the object, 0 off it; None means 1 for all.
      boxes: (N, 4) or (4,) xyxy in pixels of the image.
      scores: (M,), such as predicted IoU, written on the masks; None: see `show_masks`.
      axes: where to draw; None: a new figure whose longer side is `side` inches.

    Raises:
      ValueError: masks do not have the size of the image, or there are not as many scores as masks.
      ImportError: matplotlib is not installed.
    """
    pixels = as_array(image)
    h, w = pixels.shape[:2]
    if axes is None:
        scale = side / max(h, w)
        axes = _pyplot().subplots(figsize=(max(1.0, w * scale), max(1.0, h * scale)), layout="constrained")[1]
    axes.imshow(pixels)
    show_masks(masks, axes, scores=scores, size=(h, w))
    if boxes is not None:
        for number, box in enumerate(np.asarray(boxes, float).reshape(-1, 4)):
            show_box(box, axes, colour=COLOURS[number % len(COLOURS)])
    if points is not None:
        show_points(points, np.ones(len(points), int) if labels is None else labels, axes)
    axes.set_axis_off()
    figure = axes.get_figure()
    assert figure is not None
    return figure  # type: ignore[return-value]


def show_masks(
    masks: Masks,
    axes: Axes,
    *,
    scores: Sequence[float] | np.ndarray | None = None,
    size: tuple[int, int] | None = None,
) -> None:
    """Tints each mask in its own colour and outlines it; smaller masks are drawn over larger ones.

    Args:
      masks: (M, H, W) bool, or records with `segmentation`.
      scores: (M,), written at each mask's centre; None uses `predicted_iou` of up to seven records.
      size: (H, W) that masks must have; None means that of the first.

    Raises:
      ValueError: masks have different sizes, or there are not as many scores as masks.
    """
    arrays = [_mask(mask) for mask in masks]
    if not arrays:
        return
    if scores is None and len(arrays) <= len(COLOURS) and all(isinstance(mask, dict) for mask in masks):
        scores = [mask["predicted_iou"] for mask in masks if "predicted_iou" in mask]
        scores = scores if len(scores) == len(arrays) else None
    size = arrays[0].shape if size is None else size
    if wrong := [mask.shape for mask in arrays if mask.shape != size]:
        raise ValueError(f"a mask is {wrong[0]}; expected {size}, the image's height and width")
    if scores is not None and len(scores) != len(arrays):
        raise ValueError(f"{len(scores)} scores for {len(arrays)} masks; give one per mask")
    layer = np.zeros((*size, 4), np.float32)
    order = sorted(range(len(arrays)), key=lambda index: -int(arrays[index].sum()))
    for index in order:
        layer[arrays[index]] = (*np.array(COLOURS[index % len(COLOURS)]) / 255, _OPACITY)
    axes.imshow(layer)
    axes.autoscale(False)  # outlines reach half a pixel beyond the image
    for index in order:
        mask, colour = arrays[index], np.array(COLOURS[index % len(COLOURS)]) / 255
        if mask.any() and not mask.all():
            pale = colour + (1 - colour) * _OUTLINE
            axes.contour(np.pad(mask, 1).astype(float), [0.5], colors=[pale], linewidths=1, extent=_extent(size))
        if scores is not None and mask.any():
            rows, columns = np.nonzero(mask)
            label = {"boxstyle": "round", "facecolor": (0, 0, 0, 0.6), "edgecolor": "none"}
            axes.text(columns.mean(), rows.mean(), f"{scores[index]:.2f}", color="white", ha="center", bbox=label)


def show_points(points: np.ndarray, labels: np.ndarray, axes: Axes, marker_size: float = 160) -> None:
    """Draws points as stars: green on the object (label 1), red off it (0); other labels are not drawn.

    Args:
      points: (P, 2) x, y in pixels of the image.
      labels: (P,).
      marker_size: area of the stars, square points.

    Raises:
      ValueError: there are not as many labels as points.
    """
    points, labels = np.asarray(points, float).reshape(-1, 2), np.asarray(labels).reshape(-1)
    if len(points) != len(labels):
        raise ValueError(f"{len(labels)} labels for {len(points)} points; give one per point")
    for label, colour in ((1, FOREGROUND), (0, BACKGROUND)):
        chosen = points[labels == label]
        style: dict[str, Any] = {"marker": "*", "edgecolor": "white", "linewidth": 1, "zorder": 3}
        axes.scatter(chosen[:, 0], chosen[:, 1], marker_size, [tuple(np.array(colour) / 255)], **style)


def show_box(box: np.ndarray, axes: Axes, colour: tuple[int, int, int] = COLOURS[0]) -> None:
    """Draws the outline of a box (4,) xyxy in pixels of the image; `colour` is RGB in 0..255."""
    from matplotlib.patches import Rectangle

    x0, y0, x1, y1 = np.asarray(box, float).reshape(4)
    axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, edgecolor=np.array(colour) / 255, facecolor="none", lw=2))


def _mask(mask: Any) -> np.ndarray:
    """(H, W) bool of an array, or of a record with any form of segmentation."""
    segmentation = mask["segmentation"] if isinstance(mask, dict) else mask
    return decode_mask(segmentation) if isinstance(segmentation, dict) else np.asarray(segmentation, bool)


def _extent(size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The `extent` of contour for a mask that was padded by a pixel on each side."""
    h, w = size
    return -1, w, -1, h


def _pyplot() -> Any:
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError(f'{error}: plotting needs matplotlib: pip install "sam_jax[plot]"') from None
    return pyplot
