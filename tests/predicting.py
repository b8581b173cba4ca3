"""An image for the tiny model, and prompts inside it."""

import numpy as np

H, W = 60, 96  # wide, and larger than the frame of 80
GRID, LOW = 5, 20


def make_image(h, w, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), np.uint8)


def points(n, p, seed=0, size=(H, W)):
    """(N, P, 2) points inside an image and their labels (N, P)."""
    rng = np.random.default_rng(seed)
    return rng.random((n, p, 2)) * (size[1], size[0]), rng.integers(0, 2, (n, p))


def boxes(n, seed=0, size=(H, W)):
    corners = np.random.default_rng(seed).random((n, 2, 2)) * (size[1], size[0])
    return np.sort(corners, axis=1).reshape(n, 4)


def logits(n, seed=0):
    return np.random.default_rng(seed).normal(scale=3, size=(n, 1, LOW, LOW)).astype(np.float32)


MANY = {
    "points": lambda n: dict(zip(("point_coords", "point_labels"), points(n, 3), strict=True)),
    "boxes": lambda n: {"boxes": boxes(n)},
    "masks": lambda n: {"mask_inputs": logits(n)},
    "all": lambda n: MANY["points"](n) | MANY["boxes"](n) | MANY["masks"](n),
}
