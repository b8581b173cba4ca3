"""Patches: cut-outs that are ready to paste (warped, recoloured, feathered)."""

import dataclasses
import math
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from sam_jax.composites.random_shapes import random_shape

_RGB_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_YIQ_TO_RGB = np.linalg.inv(_RGB_TO_YIQ)


@dataclasses.dataclass(frozen=True, eq=False)
class Patch:
    """An image with alpha to paste.

    Attributes:
        rgb: (h, w, 3) float32, 0 to 255.
        alpha: (h, w) float32, 0 to 1.
    """

    rgb: np.ndarray
    alpha: np.ndarray

    @classmethod
    def from_rgba(cls, rgba: np.ndarray) -> "Patch":
        """From (h, w, 4) uint8."""
        return cls(rgba[..., :3].astype(np.float32), rgba[..., 3].astype(np.float32) / 255)


def _homography(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The 8 coefficients, in Pillow's order, that map four (x, y) source points to four target points."""
    rows, values = [], []
    for (x, y), (u, v) in zip(source, target, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return np.linalg.solve(np.array(rows), np.array(values))


@dataclasses.dataclass(frozen=True)
class Warp:
    """Scaling to `size` (w, h), a flip, and a perspective with `coefficients` into an image of `extent` (w, h)."""

    size: tuple[int, int]
    flip: bool
    extent: tuple[int, int]
    coefficients: tuple[float, ...]

    def of_image(self, rgba: np.ndarray) -> np.ndarray:
        """(h, w, 4) uint8 -> (h', w', 4)."""
        # Premultiplied throughout: Pillow would go there and back in each step.
        warped = self._apply(Image.fromarray(rgba).convert("RGBa"), Image.Resampling.BILINEAR)
        return np.asarray(warped.convert("RGBA"))

    def of_parts(self, parts: np.ndarray) -> np.ndarray:
        """Numbers of parts (h, w) uint8 -> (h', w')."""
        return np.asarray(self._apply(Image.fromarray(parts), Image.Resampling.NEAREST))

    def _apply(self, image: Image.Image, resampling: Any) -> Image.Image:
        image = image.resize(self.size, resampling)
        if self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image.transform(self.extent, Image.Transform.PERSPECTIVE, self.coefficients, resampling)


def warp(rng: np.random.Generator, rgba: np.ndarray, length: float, max_angle: float) -> np.ndarray:
    """`random_warp` of a cut-out (h, w, 4) uint8: (h', w', 4), large enough for all of it."""
    return random_warp(rng, rgba.shape[:2], length, max_angle).of_image(rgba)


def random_warp(rng: np.random.Generator, shape: tuple[int, ...], length: float, max_angle: float) -> Warp:
    """Scales, flips, rotates and slightly tilts.

    Args:
        rng: source of the random flip, angle, stretch and tilt.
        shape: (h, w) of the cut-out.
        length: longest side after scaling, in pixels.
        max_angle: rotation limit, in degrees.
    """
    h, w = shape
    stretch = math.exp(rng.uniform(-0.12, 0.12))
    scale = length / max(h, w)
    size = np.array([max(3, round(w * scale * stretch)), max(3, round(h * scale / stretch))])
    flip = rng.random() < 0.5
    unit = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
    angle = math.radians(rng.uniform(-max_angle, max_angle))
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    corners = ((unit + rng.uniform(-0.05, 0.05, (4, 2))) * size) @ rotation.T
    corners -= corners.min(axis=0) - 1
    right, bottom = corners.max(axis=0)
    extent = math.ceil(right) + 1, math.ceil(bottom) + 1
    coefficients = tuple(_homography(corners, (unit + 0.5) * size).tolist())
    return Warp((int(size[0]), int(size[1])), flip, extent, coefficients)


def photo_region(rng: np.random.Generator, photo: np.ndarray, length: float) -> np.ndarray:
    """A random shape cut out of a photograph: (h, w, 4) uint8 with its longest side about `length` pixels."""
    aspect = math.exp(rng.uniform(-0.7, 0.7))
    w = max(4, round(length * min(1, aspect)))
    h = max(4, round(length * min(1, 1 / aspect)))
    texture = random_crop(rng, photo, h, w, rng.uniform(0.6, 2.5))
    return np.dstack([texture, random_shape(rng, h, w)])


def random_box(
    rng: np.random.Generator, size: tuple[int, int], h: int, w: int, scale: float
) -> tuple[float, float, float, float]:
    """A random (left, top, right, bottom) in a photo of `size` (height, width) pixels.

    It spans (h, w) times `scale`, or less if that does not fit.
    """
    height, width = size
    scale = min(scale, height / h, width / w)
    top = rng.random() * max(height - h * scale, 0.0)  # the difference can round to just below zero
    left = rng.random() * max(width - w * scale, 0.0)
    return left, top, min(left + w * scale, width), min(top + h * scale, height)


def random_crop(rng: np.random.Generator, photo: np.ndarray, h: int, w: int, scale: float) -> np.ndarray:
    """A random crop with about `scale` photo pixels per output pixel, resized to (h, w, 3) uint8."""
    box = random_box(rng, photo.shape[:2], h, w, scale)
    return np.asarray(Image.fromarray(photo).resize((w, h), Image.Resampling.BILINEAR, box=box))


def recolour(rng: np.random.Generator, rgb: np.ndarray, strength: float) -> np.ndarray:
    """Random contrast, brightness, saturation and hue for (..., 3) float32, 0 to 255; strength 1 is moderate."""
    angle = rng.normal(0, 0.25 * strength)
    saturation = math.exp(rng.normal(0, 0.25 * strength))
    cos, sin = saturation * math.cos(angle), saturation * math.sin(angle)
    chroma = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    contrast = math.exp(rng.normal(0, 0.15 * strength))
    matrix = (contrast * (_YIQ_TO_RGB @ chroma @ _RGB_TO_YIQ)).astype(np.float32)
    middle = 128 * (1 - contrast) + rng.normal(0, 14 * strength)
    changed = rgb @ matrix.T
    changed += np.float32(middle)
    return np.clip(changed, 0, 255, out=changed)


def match_colours(rgb: np.ndarray, alpha: np.ndarray, around: np.ndarray, strength: float) -> np.ndarray:
    """Shifts (h, w, 3) colours towards mean and standard deviation of (n, 3) pixels, by `strength` in [0, 1]."""
    own = rgb[alpha > 0.5]
    if len(own) < 16 or len(around) < 16:
        return rgb
    (own_mean, own_std), (around_mean, around_std) = _mean_and_deviation(own), _mean_and_deviation(around)
    gain = np.clip((around_std + 4) / (own_std + 4), 0.4, 2.0) ** np.float32(strength)
    # Row by row: three colours at a time would make short loops.
    h, w = alpha.shape
    moved = rgb.reshape(h, -1) - np.tile(own_mean, w)
    moved *= np.tile(gain, w)
    moved += np.tile(own_mean * (1 - strength) + around_mean * strength, w)
    return np.clip(moved, 0, 255, out=moved).reshape(h, w, 3)


def mean_colour(pixels: np.ndarray) -> np.ndarray:
    """(n, 3) float32 -> (3,). As a product: NumPy's own sum along n is a loop of threes."""
    return np.full(len(pixels), 1 / len(pixels), np.float32) @ pixels


def _mean_and_deviation(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of (n, 3) float32, (3,) each."""
    mean = mean_colour(pixels)
    deviations = pixels - mean
    return mean, np.sqrt(np.einsum("nc,nc->c", deviations, deviations) / np.float32(len(pixels)))


def blend(below: np.ndarray, above: np.ndarray, alpha: np.ndarray) -> None:
    """Moves (h, w, 3) float32 towards another by `alpha` (h, w), in place; channel by channel, in long loops."""
    for channel in range(3):
        plane = below[..., channel]
        plane += (above[..., channel] - plane) * alpha


def scale(image: np.ndarray, factor: np.ndarray) -> None:
    """Multiplies each channel of (h, w, 3) float32 by `factor` (h, w), in place."""
    for channel in range(3):
        image[..., channel] *= factor


def feather(alpha: np.ndarray, sigma: float) -> np.ndarray:
    """Softens an (h, w) float32 alpha inwards only, as colours outside the cut-out are unreliable."""
    image = Image.fromarray((alpha * 255).astype(np.uint8))
    pad = math.ceil(2 * sigma) + 1
    padded = Image.new("L", (image.width + 2 * pad, image.height + 2 * pad))
    padded.paste(image, (pad, pad))
    blurred = np.asarray(padded.filter(ImageFilter.GaussianBlur(sigma)), np.float32)[pad:-pad, pad:-pad]
    return np.minimum(np.clip(blurred * (2.2 / 255) - 1.1, 0, 1), alpha)
