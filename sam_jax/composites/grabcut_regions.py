"""Regions of unlabelled photographs by GrabCut (Rother et al. 2004), as masks for training.

GrabCut takes a box and removes from it what looks like the surroundings. A region is kept if its own bounding box
gives the same region again.
"""

import math

import numpy as np
from PIL import Image

from sam_jax.composites.pseudo_regions import distinct, has_edge, largest_piece, smooth_and_slope, stands_out
from sam_jax.composites.scene import bounding_window

WORK_SIDE = 80  # pixels of a box's longest side at which GrabCut runs
CONTEXT = 0.35  # margin around a box that GrabCut sees, as a share of its sides
ITERATIONS = 3
MIN_AGREEMENT = 0.85  # IoU of the regions of a box and of that region's own box
MIN_FILL, MAX_FILL = 0.2, 0.93  # share of its box that a region fills
Window = tuple[slice, slice]


def find_grabcut_regions(rng: np.random.Generator, photo: np.ndarray, tries: int) -> np.ndarray:
    """Regions of an (h, w, 3) uint8 photograph from `tries` random boxes: (n, h, w) bool; n may be 0.

    Raises ImportError without OpenCV.
    """
    try:
        import cv2  # noqa: F401  (before the first box is tried)
    except ImportError:
        raise ImportError("GrabCut comes from OpenCV: pip install opencv-python-headless") from None
    found: list[np.ndarray] = []
    for _ in range(tries):
        region = _region_of(photo, _random_window(rng, photo.shape[:2]))
        if region is not None and distinct(region, found):
            found.append(region)
    return np.array(found, bool).reshape(-1, *photo.shape[:2])


def _random_window(rng: np.random.Generator, size: tuple[int, ...]) -> Window:
    """A random box of 10 to 75 % of the photo's longer side, rarely more than 2.5 times as long as wide."""
    side = max(size) * math.exp(rng.uniform(math.log(0.1), math.log(0.75)))
    stretch = math.exp(rng.normal(0, 0.4))
    sides = [max(16, min(0.95 * length, side * f)) for length, f in zip(size, (stretch, 1 / stretch), strict=True)]
    corner = [rng.uniform(0, length - s) for length, s in zip(size, sides, strict=True)]
    return tuple(slice(int(c), int(c + s)) for c, s in zip(corner, sides, strict=True))  # type: ignore[return-value]


def _region_of(photo: np.ndarray, window: Window) -> np.ndarray | None:
    """GrabCut's region of a box, repeated with the region's box until stable; None if it is unstable or no object."""
    before = None
    for _ in range(3):
        answer = _grabcut(photo, window)
        if not answer.any():
            return None
        if before is not None and (before & answer).sum() > MIN_AGREEMENT * (before | answer).sum():
            fill = answer[bounding_window(answer)].mean()
            return answer if MIN_FILL < fill < MAX_FILL and _is_object(photo, answer) else None
        before, window = answer, bounding_window(answer)
        if min(side.stop - side.start for side in window) < 12:
            return None
    return None


def _around(window: Window, size: tuple[int, ...]) -> Window:
    """The window with its context, clipped to the photo."""
    margins = [max(4, round(CONTEXT * (side.stop - side.start))) for side in window]
    return tuple(  # type: ignore[return-value]
        slice(max(0, side.start - m), min(length, side.stop + m))
        for side, m, length in zip(window, margins, size, strict=True)
    )


def _grabcut(photo: np.ndarray, window: Window) -> np.ndarray:
    """The largest connected region that GrabCut finds in a box: (h, w) bool."""
    import cv2

    outer = _around(window, photo.shape[:2])
    crop = np.ascontiguousarray(photo[outer])
    scale = min(1.0, WORK_SIDE / max(side.stop - side.start for side in window))
    h, w = (max(8, round(scale * length)) for length in crop.shape[:2])
    small = np.asarray(Image.fromarray(crop).resize((w, h), Image.Resampling.BOX))
    labels = np.full((h, w), cv2.GC_BGD, np.uint8)
    inner = tuple(
        slice(round(scale * (a.start - b.start)), round(scale * (a.stop - b.start)))
        for a, b in zip(window, outer, strict=True)
    )
    labels[inner] = cv2.GC_PR_FGD
    answer = np.zeros(photo.shape[:2], bool)
    if (labels == cv2.GC_BGD).sum() < 0.1 * labels.size:  # nothing around it to learn the background from
        return answer
    cv2.setRNGSeed(0)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(small, labels, (0, 0, 0, 0), *models, ITERATIONS, cv2.GC_INIT_WITH_MASK)
    cut = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
    if cut.sum() < 30:
        return answer
    grey = Image.fromarray(largest_piece(cut).astype(np.uint8) * 255)
    answer[outer] = np.asarray(grey.resize(crop.shape[1::-1], Image.Resampling.BICUBIC)) > 127
    return answer


def _is_object(photo: np.ndarray, region: np.ndarray) -> bool:
    mask, small = _shrunk(photo, region)
    return bool(mask.any()) and stands_out(mask, *smooth_and_slope(small), MIN_FILL)


def outlines_an_edge(photo: np.ndarray, region: np.ndarray) -> bool:
    """Whether the outline of a non-empty (h, w) bool region is an edge of the (h, w, 3) uint8 photograph.

    Unlike GrabCut's, a region may be of any shape: hollow, long, or as large as its box.
    """
    mask, small = _shrunk(photo, region)
    return bool(mask.any()) and has_edge(mask, *smooth_and_slope(small))


def _shrunk(photo: np.ndarray, region: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A region (h, w) bool and the photograph around it (h, w, 3), at most `WORK_SIDE` on the longer side."""
    outer = _around(bounding_window(region), photo.shape[:2])
    scale = min(1.0, WORK_SIDE / max(region[outer].shape))
    w, h = (max(8, round(scale * length)) for length in region[outer].shape[::-1])
    small = np.asarray(Image.fromarray(np.ascontiguousarray(photo[outer])).resize((w, h), Image.Resampling.BOX))
    mask = np.asarray(Image.fromarray(region[outer]).resize((w, h), Image.Resampling.NEAREST))
    return mask, small
