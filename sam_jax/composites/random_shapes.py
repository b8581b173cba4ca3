"""Random closed shapes, random divisions of an area, and smooth random fields."""

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

CANVAS = 192  # side at which shapes are drawn before resizing: enough for a smooth outline, cheap to fill


def _fill(points: np.ndarray) -> Image.Image:
    """Fills the polygon of (n, 2) points in [-1, 1]²."""
    image = Image.new("L", (CANVAS, CANVAS))
    scaled = (np.clip(points, -1, 1) * 0.98 + 1) * (CANVAS - 1) / 2
    ImageDraw.Draw(image).polygon([tuple(point) for point in scaled], fill=255)
    return image


def _circle(radii: np.ndarray, angles: np.ndarray) -> np.ndarray:
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _blob(rng: np.random.Generator) -> Image.Image:
    """A closed curve whose radius is a short Fourier series, egg-like to star-like."""
    angles = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    waves = np.arange(1, 8)
    sizes = rng.normal(size=7) * rng.uniform(0.05, 0.45) / waves**0.8
    phases = rng.uniform(0, 2 * np.pi, 7)
    radii = 1 + (sizes[:, None] * np.cos(waves[:, None] * angles + phases[:, None])).sum(0)
    radii = np.maximum(radii, 0.15)
    return _fill(_circle(radii / radii.max(), angles))


def _polygon(rng: np.random.Generator) -> Image.Image:
    """A star-shaped polygon with 3 to 8 corners."""
    n = rng.integers(3, 9)
    angles = 2 * np.pi * (np.arange(n) + rng.uniform(-0.3, 0.3, n)) / n + rng.uniform(0, 2 * np.pi)
    return _fill(_circle(rng.uniform(0.55, 1, n), angles))


def _rectangle(rng: np.random.Generator) -> Image.Image:
    """A rectangle with round or sharp corners."""
    image = Image.new("L", (CANVAS, CANVAS))
    radius = rng.choice([0, 12, 40, CANVAS // 2])
    ImageDraw.Draw(image).rounded_rectangle((3, 3, CANVAS - 4, CANVAS - 4), radius, fill=255)
    return image


def _cell(rng: np.random.Generator) -> Image.Image:
    """The Voronoi cell of the centre among random sites, with bent edges."""
    sites = _circle(rng.uniform(0.7, 1.4, 6), 2 * np.pi * (np.arange(6) + rng.uniform(0, 0.9, 6)) / 6)
    grid = np.linspace(-1, 1, CANVAS)
    x = grid[None, :] + 0.08 * np.sin(grid[:, None] * rng.uniform(2, 9) + rng.uniform(0, 6))
    y = grid[:, None] + 0.08 * np.sin(grid[None, :] * rng.uniform(2, 9) + rng.uniform(0, 6))
    inside = np.hypot(x, y) < 0.98
    for sx, sy in sites:
        inside &= 2 * (x * sx + y * sy) < sx * sx + sy * sy
    return Image.fromarray(inside.astype(np.uint8) * 255)


def _cloud(rng: np.random.Generator) -> Image.Image:
    """The largest piece of thresholded smooth noise, with bays, necks and holes."""
    noise = smooth_field(rng, CANVAS, CANVAS, int(rng.integers(4, 9)))
    radius = np.hypot(*np.meshgrid(np.linspace(-1, 1, CANVAS), np.linspace(-1, 1, CANVAS)))
    pieces, count = ndimage.label(noise - 1.5 * radius**2 > -0.4)
    if not count:
        return _blob(rng)
    largest = np.bincount(pieces.ravel())[1:].argmax() + 1
    return Image.fromarray((pieces == largest).astype(np.uint8) * 255)


def _stroke(rng: np.random.Generator) -> Image.Image:
    """A bent ribbon, like a cable, stem, handle or leg."""
    t = np.linspace(-1, 1, 40)
    points = np.stack([t, rng.uniform(-0.6, 0.6) * np.sin(t * rng.uniform(1, 5) + rng.uniform(0, 6))], 1)
    points = (points * 0.8 + 1) * CANVAS / 2
    image = Image.new("L", (CANVAS, CANVAS))
    width = int(rng.integers(8, 36))
    ImageDraw.Draw(image).line([tuple(point) for point in points], fill=255, width=width, joint="curve")
    return image


def _ring(rng: np.random.Generator) -> Image.Image:
    """A blob with a hole."""
    outer, inner = np.asarray(_blob(rng)), _blob(rng)
    side = int(CANVAS * rng.uniform(0.3, 0.6))
    offset = (CANVAS - side) // 2 + int(rng.integers(-12, 13))
    hole = np.zeros_like(outer)
    hole[offset : offset + side, offset : offset + side] = np.asarray(inner.resize((side, side)))
    return Image.fromarray(np.minimum(outer, 255 - hole))


_SHAPES = (_blob, _polygon, _rectangle, _cell, _cloud, _stroke, _ring)
_SHARES = np.cumsum([0.30, 0.14, 0.12, 0.18, 0.14, 0.06, 0.06])


def random_shape(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    """A filled random shape with smooth edges: (h, w) uint8 alpha, 0 to 255."""
    shape = _SHAPES[int(np.searchsorted(_SHARES, rng.random() * _SHARES[-1]))](rng)
    box = shape.getbbox() or (0, 0, CANVAS, CANVAS)
    return np.asarray(shape.resize((max(w, 2), max(h, 2)), Image.Resampling.BILINEAR, box=box))


def smooth_field(rng: np.random.Generator, h: int, w: int, cells: int) -> np.ndarray:
    """Smooth noise of about unit variance, (h, w) float32, from `cells` random values along each side."""
    coarse = Image.fromarray(rng.normal(size=(cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((w, h), Image.Resampling.BICUBIC))


def random_split(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    """One side of a bent line across the area, or a bent band: (h, w) float32 alpha, 0 to 1."""
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[-1 : 1 : h * 1j, -1 : 1 : w * 1j].astype(np.float32)
    height = x * np.cos(angle) + y * np.sin(angle)
    height += rng.uniform(0, 0.25) * smooth_field(rng, h, w, int(rng.integers(2, 5)))
    level = rng.uniform(-0.4, 0.4)
    sharpness = min(h, w) / 2 / rng.uniform(0.7, 2.5)  # an edge about one to three pixels wide
    side = np.clip((height - level) * sharpness + 0.5, 0, 1)
    if rng.random() < 0.35:
        side *= np.clip((level + rng.uniform(0.2, 0.6) - height) * sharpness + 0.5, 0, 1)
    return side
