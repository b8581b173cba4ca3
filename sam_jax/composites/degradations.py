"""Image degradations of cameras and web sites, applied last, so that paste edges and real edges look alike."""

import io

import numpy as np
from PIL import Image, ImageFilter
from scipy import ndimage


def _gamma(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    table = 255 * np.linspace(0, 1, 256) ** np.exp(rng.uniform(-0.4, 0.4))
    return np.asarray(Image.fromarray(image).point(table.astype(np.uint8).tolist() * 3))


def _blur(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    radius = rng.uniform(0.3, 1.6) * max(image.shape) / 400
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


def _motion_blur(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    length = 2 + int(rng.integers(1, 5) * max(image.shape) / 256)
    return ndimage.uniform_filter1d(image, length, axis=int(rng.integers(2)), mode="nearest")


def _resample(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    h, w = image.shape[:2]
    factor = rng.uniform(0.4, 0.85)
    small = Image.fromarray(image).resize((round(w * factor), round(h * factor)), Image.Resampling.BILINEAR)
    return np.asarray(small.resize((w, h), Image.Resampling.BICUBIC))


def _noise(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    channels = 3 if rng.random() < 0.5 else 1
    grain = rng.standard_normal((*image.shape[:2], channels), np.float32) * np.float32(rng.uniform(2, 14))
    noisy = image + (grain if channels == 3 else np.repeat(grain, 3, axis=2))
    return np.clip(noisy, 0, 255, out=noisy).astype(np.uint8)


def _sharpen(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    mask = ImageFilter.UnsharpMask(radius=1.5, percent=int(rng.integers(40, 130)))
    return np.asarray(Image.fromarray(image).filter(mask))


def _grey(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).convert("L").convert("RGB"))


def _jpeg(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=int(rng.integers(30, 96)))
    return np.asarray(Image.open(buffer).convert("RGB"))


# Probabilities, in the order of light, lens, sensor and storage.
_CHAIN = (
    (0.30, _gamma),
    (0.20, _blur),
    (0.06, _motion_blur),
    (0.15, _resample),
    (0.30, _noise),
    (0.10, _sharpen),
    (0.05, _grey),
    (0.50, _jpeg),
)


def degrade(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Applies random degradations, from none to all, to an (h, w, 3) uint8 image. Returns the same shape and dtype."""
    for probability, change in _CHAIN:
        if rng.random() < probability:
            image = change(rng, image)
    return image
