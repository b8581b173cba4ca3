"""Regions of unlabelled photographs, found without a model, as masks with real edges."""

import numpy as np
from PIL import Image
from scipy import ndimage

from sam_jax.composites.scene import bounding_window

WORK_SIDE = 96  # longest side in pixels of the image in which regions are grown
SCALES = (0.15, 0.6, 2.0)  # a larger scale merges more: parts first, whole objects last
MIN_SHARE, MAX_SHARE = 0.006, 0.4  # area as a share of the image
MIN_FILL = 0.5  # share of its bounding box that a region fills
MIN_ROUNDNESS = 0.025  # area over squared length of the outline; a disc has 0.08
MIN_EDGE_RATIO = 2.0  # gradient on the outline over the gradient inside
MIN_CONTRAST = 28.0  # mean colour distance to the surroundings, 0 to 441


def _edges(image: np.ndarray) -> tuple[list[int], list[int], list[float]]:
    """Pairs of neighbouring pixels, most similar first: indices of both, colour distance."""
    h, w = image.shape[:2]
    index = np.arange(h * w).reshape(h, w)
    across = np.linalg.norm(image[:, 1:] - image[:, :-1], axis=2)
    down = np.linalg.norm(image[1:] - image[:-1], axis=2)
    first = np.concatenate([index[:, :-1].ravel(), index[:-1].ravel()])
    second = np.concatenate([index[:, 1:].ravel(), index[1:].ravel()])
    distance = np.concatenate([across.ravel(), down.ravel()])
    order = np.argsort(distance, kind="stable")
    return first[order].tolist(), second[order].tolist(), distance[order].tolist()


def _grow(edges: tuple[list[int], list[int], list[float]], pixels: int, scale: float) -> np.ndarray:
    """Merges neighbouring regions whose distance is small for both (Felzenszwalb & Huttenlocher 2004).

    Returns (pixels,) int region labels.
    """
    parent = list(range(pixels))
    size = [1] * pixels
    limit = [scale] * pixels
    # The root of a node is looked up in line: calls took half of the time.
    for a, b, distance in zip(*edges, strict=True):
        while parent[a] != a:
            parent[a] = a = parent[parent[a]]
        while parent[b] != b:
            parent[b] = b = parent[parent[b]]
        if a != b and distance <= limit[a] and distance <= limit[b]:
            parent[b] = a
            size[a] += size[b]
            limit[a] = distance + scale / size[a]
    labels = np.array(parent)
    while (labels != labels[labels]).any():
        labels = labels[labels]
    return labels


def _absorb_rims(labels: np.ndarray) -> np.ndarray:
    """Merges thin regions, such as the ramp of a blurred edge, into the nearest thick one: (h, w) int."""
    thick = ndimage.minimum_filter(labels, 4) == ndimage.maximum_filter(labels, 4)
    if not thick.any():
        return labels
    nearest = ndimage.distance_transform_edt(~thick, return_distances=False, return_indices=True)
    return labels[tuple(nearest)]


def smooth_and_slope(photo: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The slightly smoothed image, (h, w, 3) float32, and its gradient magnitude, (h, w)."""
    image = ndimage.gaussian_filter(photo.astype(np.float32), (0.7, 0.7, 0))
    return image, sum(ndimage.gaussian_gradient_magnitude(image[..., channel], 0.8) for channel in range(3))


def stands_out(region: np.ndarray, image: np.ndarray, slope: np.ndarray, min_fill: float = MIN_FILL) -> bool:
    """Whether an (h, w) bool region is compact, touches at most one side of the image, and has a clear edge.

    `slope` is the image's (h, w) gradient magnitude, `min_fill` the smallest share of its box that it must fill.
    """
    box = bounding_window(region)
    sides = sum(side.start == 0 for side in box)
    sides += sum(side.stop == length for side, length in zip(box, region.shape, strict=True))
    if sides > 1 or region[box].mean() < min_fill:
        return False
    # What follows looks three pixels beyond the box, no further.
    near = tuple(slice(max(side.start - 4, 0), side.stop + 4) for side in box)
    region, image, slope = region[near], image[near], slope[near]
    outline = ndimage.binary_dilation(region) & ~ndimage.binary_erosion(region)
    if region.sum() < MIN_ROUNDNESS * (outline.sum() / 2) ** 2:  # thin or ragged
        return False
    return has_edge(region, image, slope)


def has_edge(region: np.ndarray, image: np.ndarray, slope: np.ndarray) -> bool:
    """Whether a non-empty (h, w) bool region differs from what surrounds it, with a step along most of its outline."""
    grown = ndimage.binary_dilation(region)
    outline = grown & ~ndimage.binary_erosion(region)
    ring, inner = ndimage.binary_dilation(grown, iterations=2) & ~grown, region & ~outline
    if not (ring.any() and inner.any()):
        return False
    contrast = np.linalg.norm(image[region].mean(axis=0) - image[ring].mean(axis=0))
    return bool(contrast > MIN_CONTRAST and np.median(slope[outline]) > MIN_EDGE_RATIO * np.median(slope[inner]))


def largest_piece(region: np.ndarray) -> np.ndarray:
    """The largest connected piece of an (h, w) bool region, with holes filled."""
    pieces, _ = ndimage.label(region)
    piece = pieces == np.bincount(pieces.ravel())[1:].argmax() + 1
    box = bounding_window(piece)  # which holds all of its holes
    piece[box] = ndimage.binary_fill_holes(piece[box])
    return piece


def distinct(region: np.ndarray, others: list[np.ndarray]) -> bool:
    """Whether an (h, w) bool region has an IoU below 0.8 with each of the others."""
    count = np.count_nonzero
    return all(count(region & other) < 0.8 * count(region | other) for other in others)


def find_regions(photo: np.ndarray) -> np.ndarray:
    """Compact, well-contrasted regions of an (h, w, 3) uint8 photograph, at several scales.

    Returns (n, h, w) bool; n may be 0. Regions of different scales may contain each other.
    """
    h, w = photo.shape[:2]
    shrink = WORK_SIDE / max(h, w)
    small = Image.fromarray(photo).resize((round(w * shrink), round(h * shrink)), Image.Resampling.BOX)
    image, slope = smooth_and_slope(np.asarray(small))
    edges = _edges(image)
    regions: list[np.ndarray] = []
    for scale in SCALES:
        labels = _grow(edges, image.shape[0] * image.shape[1], scale * 255).reshape(image.shape[:2])
        labels = _absorb_rims(labels)
        names, areas = np.unique(labels, return_counts=True)
        large = (areas > MIN_SHARE * labels.size) & (areas < MAX_SHARE * labels.size)
        for name in names[large]:
            region = largest_piece(labels == name)
            if stands_out(region, image, slope) and distinct(region, regions):
                regions.append(region)
    return np.array([_enlarge(region, h, w) for region in regions], bool).reshape(-1, h, w)


def _enlarge(region: np.ndarray, h: int, w: int) -> np.ndarray:
    grey = Image.fromarray(region.astype(np.uint8) * 255)
    return np.asarray(grey.resize((w, h), Image.Resampling.BICUBIC)) > 127
