"""Mosaics: images cut into a few surfaces, each with another texture. They are the easiest images to learn from.

Masks of mosaics are large and of any shape, so a prompt alone says little about them: a model that ignores the image
fails here, while on composites a blob around the prompt is often good enough.
"""

import numpy as np
from scipy import ndimage

from sam_jax.composites.patches import mean_colour, random_crop, recolour
from sam_jax.composites.pool import CutoutPool
from sam_jax.composites.random_shapes import random_split, smooth_field
from sam_jax.composites.scene import MAX_IMAGE_SHARE

MIN_REGION_SHARE = 0.01  # of the image; smaller pieces belong to no mask


def mosaic(rng: np.random.Generator, pool: CutoutPool, h: int, w: int) -> tuple[np.ndarray, np.ndarray]:
    """An image (h, w, 3) uint8 and the masks (n, h, w) bool of its connected surfaces."""
    labels = _partition(rng, h, w)
    canvas = np.zeros((h, w, 3), np.float32)
    for label in range(labels.max() + 1):
        inside = labels == label
        canvas[inside] = _surface(rng, pool, inside)
    image = ndimage.gaussian_filter(canvas, [rng.uniform(0, 0.8)] * 2, axes=(0, 1))
    kept = []
    for label in range(labels.max() + 1):
        pieces, _ = ndimage.label(labels == label)
        shares = np.bincount(pieces.ravel()) / (h * w)
        large = (shares > MIN_REGION_SHARE) & (shares < MAX_IMAGE_SHARE)
        kept += [pieces == index for index in np.flatnonzero(large[1:]) + 1]
    return np.clip(image, 0, 255).astype(np.uint8), np.array(kept, bool).reshape(-1, h, w)


def _partition(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    """(h, w) int labels of 2 to 8 areas: maxima of smooth noise, bent Voronoi cells, or successive cuts."""
    count, kind = int(rng.integers(2, 7)), rng.random()
    if kind < 0.4:
        cells = int(rng.integers(3, 6))
        return np.argmax([smooth_field(rng, h, w, cells) for _ in range(count)], axis=0)
    if kind < 0.75:
        y, x = np.mgrid[0 : h / w : h * 1j, 0 : 1 : w * 1j]
        bend = rng.uniform(0, 0.1)
        x, y = x + bend * smooth_field(rng, h, w, 4), y + bend * smooth_field(rng, h, w, 4)
        return np.argmin([np.hypot(x - rng.random(), y - rng.random() * h / w) for _ in range(count + 2)], axis=0)
    labels = np.zeros((h, w), int)
    for bit in range(min(count, 3)):
        labels += (random_split(rng, h, w) > 0.5).astype(int) << bit
    return labels


def _surface(rng: np.random.Generator, pool: CutoutPool, inside: np.ndarray) -> np.ndarray:
    """(n, 3) float32, of the pixels `inside` (h, w) bool of a surface.

    The surface is a recoloured photograph with random contrast, down to a plain colour.
    """
    h, w = inside.shape
    texture = random_crop(rng, pool.random_background(rng), h, w, rng.uniform(0.6, 3)).astype(np.float32)
    contrast = rng.choice([0.0, rng.uniform(0.1, 0.5), 1.0], p=[0.2, 0.5, 0.3])
    middle = mean_colour(texture.reshape(-1, 3))
    mean = middle + rng.normal(0, 30, 3).astype(np.float32)
    surface = recolour(rng, np.float32(contrast) * texture[inside] + (mean - np.float32(contrast) * middle), 1.0)
    surface += np.float32(rng.uniform(0, 30)) * smooth_field(rng, h, w, 2)[inside][:, None]
    return surface
