"""Edges that are not of objects, so that a model cannot learn to segment by paste edges alone."""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from sam_jax.composites.patches import blend, feather, random_crop, recolour, scale
from sam_jax.composites.random_shapes import random_shape, smooth_field

Window = tuple[slice, slice]  # rows, columns


def _shape_somewhere(rng: np.random.Generator, h: int, w: int) -> tuple[np.ndarray, tuple[slice, slice]]:
    """A random shape at a random place in an (h, w) image: its alpha (h', w') float32 0 to 1, and its window."""
    height, width = (max(4, int(side * rng.uniform(0.06, 0.5))) for side in (h, w))
    top, left = rng.integers(0, h - height + 1), rng.integers(0, w - width + 1)
    alpha = random_shape(rng, height, width).astype(np.float32) / 255
    if rng.random() < 0.6 and min(height, width) > 24:
        alpha = feather(alpha, rng.uniform(0.7, 4))
    return alpha, np.s_[top : top + height, left : left + width]


def _same_texture(rng: np.random.Generator, canvas: np.ndarray) -> Window:
    """A piece of the image itself, pasted elsewhere."""
    alpha, window = _shape_somewhere(rng, *canvas.shape[:2])
    piece = recolour(rng, random_piece(rng, canvas, *alpha.shape), 0.3)
    blend(canvas[window], piece, alpha)
    return window


def random_piece(rng: np.random.Generator, canvas: np.ndarray, h: int, w: int) -> np.ndarray:
    """An (h, w, 3) float32 copy of a random place of the canvas, unscaled."""
    return random_crop(rng, canvas.astype(np.uint8), h, w, 1.0).astype(np.float32)


def _blurred_area(rng: np.random.Generator, canvas: np.ndarray) -> Window:
    """A local loss of focus."""
    alpha, window = _shape_somewhere(rng, *canvas.shape[:2])
    image = Image.fromarray(canvas[window].astype(np.uint8))
    blurred = np.asarray(image.filter(ImageFilter.GaussianBlur(rng.uniform(1, 5))), np.float32)
    blend(canvas[window], blurred, alpha)
    return window


def _lit_area(rng: np.random.Generator, canvas: np.ndarray) -> Window:
    """A patch of light or shadow with a sharp to very soft edge."""
    alpha, window = _shape_somewhere(rng, *canvas.shape[:2])
    if rng.random() < 0.6:
        alpha = feather(alpha, min(alpha.shape) * rng.uniform(0.03, 0.12))
    scale(canvas[window], 1 + alpha * rng.uniform(-0.45, 0.35))
    return window


def draw_lines(rng: np.random.Generator, canvas: np.ndarray) -> Window:
    """Draws one to four thin lines across (h, w, 3) float32, in place."""
    h, w = canvas.shape[:2]
    image = Image.fromarray(canvas.astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(1, 5)):
        ends = rng.uniform(-0.2, 1.2, 4) * (w, h, w, h)
        colour = tuple(int(value) for value in rng.integers(0, 256, 3))
        draw.line([float(end) for end in ends], fill=colour, width=int(rng.integers(1, 3)))
    canvas[:] = np.asarray(image)
    return np.s_[:h, :w]


def light(rng: np.random.Generator, canvas: np.ndarray) -> None:
    """Multiplies (h, w, 3) float32 by a smooth lighting field around one, in place."""
    h, w = canvas.shape[:2]
    field = smooth_field(rng, h, w, int(rng.integers(2, 4)))
    scale(canvas, np.exp(rng.uniform(0.03, 0.18) * field))


_KINDS = (*[_same_texture] * 4, *[_blurred_area] * 2, *[_lit_area] * 3, draw_lines)


def add_distractors(rng: np.random.Generator, canvas: np.ndarray, most: int) -> None:
    """Draws up to `most` distractors into (h, w, 3) float32, 0 to 255, in place."""
    for _ in range(rng.integers(0, most + 1)):
        changed = canvas[_KINDS[rng.integers(len(_KINDS))](rng, canvas)]
        np.clip(changed, 0, 255, out=changed)
