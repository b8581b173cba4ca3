"""Clips made of images: cut-outs of some images move over others, so that every frame's masks are known.

The background pans and zooms slowly; each object follows a smooth path, turns, grows and shrinks, bends, and passes
over the others and beyond the edges of the frame. Settings of sam_jax.video were chosen on such clips of
tests/devset_mini, not on a published set; the tests use them, too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from sam_jax.ops.masks import mask_to_box
from sam_jax.ops.rle import decode_mask

SMALLEST, LARGEST = 0.02, 0.3  # share of its image that a cut-out covers


class Clip(NamedTuple):
    """Frames (T, H, W, 3) uint8 RGB, and labels (T, H, W) uint8: 0 background, 1 .. N the objects."""

    frames: np.ndarray
    labels: np.ndarray


def make_clip(
    folder: Path, seed: int, frames: int = 24, size: tuple[int, int] = (288, 512), objects: int = 2, speed: float = 1.0
) -> Clip:
    """A clip from images in SA-1B's format.

    Args:
      folder: holds NAME.jpg with NAME.json beside it.
      seed: everything that is drawn.
      frames: T.
      size: (H, W) of the frames, pixels.
      objects: N; later ones pass in front of earlier ones.
      speed: factor of all motion.
    """
    rng = np.random.default_rng(seed)
    files = sorted(folder.glob("*.jpg"))
    chosen = rng.permutation(len(files))
    background = Image.open(files[chosen[0]]).convert("RGB")
    cutouts = [_draw_cutout(files[chosen[1 + i]], rng) for i in range(objects)]
    paths = [_Path.draw(rng, speed) for _ in range(objects)]
    scales = [rng.uniform(0.35, 0.65) * size[0] / max(c.size) * 1.3 for c in cutouts]
    camera, light = _Path.draw(rng, 0.25 * speed), rng.uniform(0, 2 * np.pi)
    images, labels = [], []
    for t in range(frames):
        canvas = _background(background, size, camera, t)
        label = np.zeros(size, np.uint8)
        for number, (cutout, path, scale) in enumerate(zip(cutouts, paths, scales, strict=True), 1):
            moved = np.asarray(_place(cutout, size, path, scale, t), np.float32)
            alpha = moved[..., 3:] / 255
            canvas = canvas * (1 - alpha) + moved[..., :3] * alpha
            label[alpha[..., 0] > 0.5] = number
        gain = 1 + 0.08 * np.sin(light + 0.15 * t)
        noise = rng.normal(scale=2.0, size=canvas.shape)
        images.append(np.clip(canvas * gain + noise, 0, 255).astype(np.uint8))
        labels.append(label)
    return Clip(np.stack(images), np.stack(labels))


class _Path(NamedTuple):
    """Smooth motion: amplitudes, rates per frame and phases of x, y, angle, size and shear."""

    centre: np.ndarray
    reach: np.ndarray
    rate: np.ndarray
    phase: np.ndarray

    @classmethod
    def draw(cls, rng: np.random.Generator, speed: float) -> _Path:
        reach = np.array([0.25, 0.2, 0.35, 0.25, 0.15]) * rng.uniform(0.4, 1.0, 5)
        return cls(
            centre=rng.uniform(0.3, 0.7, 2), reach=reach, rate=speed * rng.uniform(0.05, 0.14, 5),
            phase=rng.uniform(0, 2 * np.pi, 5),
        )  # fmt: skip

    def at(self, t: int) -> np.ndarray:
        return self.reach * np.sin(self.phase + self.rate * t)


def _draw_cutout(file: Path, rng: np.random.Generator) -> Image.Image:
    """An object of an image as RGBA, cropped to its box."""
    image = np.asarray(Image.open(file).convert("RGB"))
    masks = [decode_mask(a["segmentation"]) for a in json.loads(file.with_suffix(".json").read_text())["annotations"]]
    good = [m for m in masks if SMALLEST < m.mean() < LARGEST] or [max(masks, key=np.sum)]
    mask = good[rng.integers(len(good))]
    x0, y0, x1, y1 = mask_to_box(mask)
    rgba = np.dstack([image, mask.astype(np.uint8) * 255])[y0 : y1 + 1, x0 : x1 + 1]
    return Image.fromarray(rgba)


def _background(image: Image.Image, size: tuple[int, int], camera: _Path, t: int) -> np.ndarray:
    """A window of the image that pans and zooms: (H, W, 3) float32."""
    h, w = size
    dx, dy, _, zoom, _ = camera.at(t)
    share = 0.7 * (1 + zoom)
    scale = share * min(image.width / w, image.height / h)
    left = (image.width - scale * w) * (0.5 + dx)
    top = (image.height - scale * h) * (0.5 + dy)
    matrix = (scale, 0, left, 0, scale, top)
    moved = image.transform((w, h), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    return np.asarray(moved, np.float32)


def _place(cutout: Image.Image, size: tuple[int, int], path: _Path, scale: float, t: int) -> Image.Image:
    """The cut-out at its place in frame t: RGBA of the frame's size."""
    h, w = size
    dx, dy, angle, growth, shear = path.at(t)
    centre = np.array([(path.centre[0] + dx) * w, (path.centre[1] + dy) * h])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    back = np.linalg.inv(scale * (1 + growth) * turn @ np.array([[1, shear], [0, 1]]))
    offset = np.array(cutout.size) / 2 - back @ centre
    matrix = (back[0, 0], back[0, 1], offset[0], back[1, 0], back[1, 1], offset[1])
    return cutout.transform((w, h), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


class ClipFrames:
    """A clip as `sam_jax.video.frames.Frames`."""

    def __init__(self, clip: Clip) -> None:
        self._clip, self.size, self.rate = clip, clip.frames.shape[1:3], 24.0
        self.names = [f"{index:05d}" for index in range(len(clip.frames))]

    def read(self, index: int) -> np.ndarray:
        """Frame `index`, (H, W, 3) uint8."""
        return self._clip.frames[index]
