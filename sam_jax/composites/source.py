"""Composites: cut-outs with parts, pasted over photographs, made on the fly from (seed, index)."""

import math

import numpy as np
from PIL import Image, ImageFilter
from pycocotools import mask as coco_mask

from sam_jax.composites.degradations import degrade
from sam_jax.composites.distractors import add_distractors, draw_lines, light, random_piece
from sam_jax.composites.mosaics import mosaic
from sam_jax.composites.patches import (
    Patch,
    feather,
    match_colours,
    photo_region,
    random_box,
    random_crop,
    random_warp,
    recolour,
    warp,
)
from sam_jax.composites.pool import CutoutPool, LabelledImage
from sam_jax.composites.pseudo_regions import find_regions
from sam_jax.composites.random_shapes import random_shape, random_split, smooth_field
from sam_jax.composites.scene import MIN_IMAGE_SHARE, Scene, bounding_window
from sam_jax.config import CompositeConfig
from sam_jax.data.example import make_example

Window = tuple[slice, slice]  # rows, columns
PlacedPatch = tuple[Patch, int, int]  # a patch and its corner: top, left


class CompositeSource:
    """Random access to generated examples; the same (seed, index) gives the same bytes.

    It has no state but its arguments, so threads can share it. Pickling stores the pool's path.
    """

    def __init__(self, pool: CutoutPool, config: CompositeConfig, seed: int):
        if config.image_size % 4:
            raise ValueError(f"image_size must be a multiple of 4, not {config.image_size}")
        self.pool = pool
        self.config = config
        self.seed = seed

    def __len__(self) -> int:
        return self.config.length

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """The fields of one `Example`; see there for shapes and dtypes.

        It has at least one mask: draws without any are repeated.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} examples")
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence((self.seed, int(index)))))
        config = self.config
        while True:
            image, masks = self._draw(rng)
            masks = choose_masks(rng, masks, config.masks_per_image)
            example = make_example(image, masks, index, config.image_size, config.masks_per_image, config.mask_stride)
            if example.mask_valid.any():
                return example.to_dict()

    def _draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """An image (h, w, 3) uint8 of one of the five kinds, and its masks (n, h, w) bool."""
        config, pool = self.config, self.pool
        h, w = _random_size(rng, config)
        kind = rng.random()
        if pool.regions and rng.random() < config.regions:
            image, masks = crop_labelled(rng, pool.regions[rng.integers(len(pool.regions))], h, w, (0.5, 1.0))
        elif kind < config.labelled and pool.labelled:
            image, masks = crop_labelled(rng, pool.labelled[rng.integers(len(pool.labelled))], h, w, (0.25, 0.9))
        elif config.labelled < kind < config.labelled + config.mosaics:
            image, masks = mosaic(rng, pool, h, w)
        elif kind > 1 - config.pseudo_regions:
            image = _background_crop(rng, pool, h, w)
            masks = find_regions(image)
        else:
            scene = compose(rng, pool, config, h, w)
            image, masks = np.clip(scene.canvas, 0, 255).astype(np.uint8), scene.masks()
        return degrade(rng, image) if rng.random() < config.degrade else image, masks


def _random_size(rng: np.random.Generator, config: CompositeConfig) -> tuple[int, int]:
    """(h, w) with the longer side image_size, as at inference."""
    side = config.image_size
    if rng.random() < config.square:
        return side, side
    short = round(side * math.exp(rng.uniform(math.log(config.min_aspect), 0)))
    return (short, side) if rng.random() < 0.65 else (side, short)


def _background_crop(rng: np.random.Generator, pool: CutoutPool, h: int, w: int) -> np.ndarray:
    """A random crop of a random photograph, flipped horizontally half the time: (h, w, 3) uint8."""
    photo = pool.random_background(rng)
    largest = min(photo.shape[0] / h, photo.shape[1] / w)
    crop = random_crop(rng, photo, h, w, largest * rng.uniform(0.45, 1))
    return crop[:, ::-1] if rng.random() < 0.5 else crop


def plain_background(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    """A backdrop like a studio or the sky, (h, w, 3) float32: a colour, often white, that fades into a similar one."""
    colour = np.full(3, rng.uniform(215, 255)) if rng.random() < 0.35 else rng.uniform(0, 255, 3)
    other = colour + rng.normal(0, 25, 3)
    angle = rng.uniform(0, 2 * math.pi)
    ramp = np.add.outer(np.linspace(0, math.sin(angle), h), np.linspace(0, math.cos(angle), w))
    ramp = (ramp - ramp.min()) / max(float(np.ptp(ramp)), 1e-6)
    grain = rng.uniform(0, 15) * smooth_field(rng, h, w, 2)
    # Channel by channel: arrays whose last axis is three make short loops.
    plain = np.empty((h, w, 3), np.float32)
    for channel in range(3):
        values = ramp * (other - colour)[channel]
        values += colour[channel]
        values += grain
        plain[..., channel] = np.clip(values, 0, 255, out=values)
    return plain


def random_background(
    rng: np.random.Generator, pool: CutoutPool, config: CompositeConfig, h: int, w: int
) -> np.ndarray:
    """A photograph, sometimes blurred or recoloured, or a plain background: (h, w, 3) float32, 0 to 255."""
    kind = rng.random()
    if kind < config.plain_background:
        return plain_background(rng, h, w)
    image = _background_crop(rng, pool, h, w)
    if kind < config.plain_background + config.blurred_background:
        blur = ImageFilter.GaussianBlur(max(h, w) * rng.uniform(0.004, 0.03))
        image = np.asarray(Image.fromarray(np.ascontiguousarray(image)).filter(blur))
    image = image.astype(np.float32)
    return recolour(rng, image, 1.0) if rng.random() < 0.3 else image


def crop_labelled(
    rng: np.random.Generator, photo: LabelledImage, h: int, w: int, shares: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """A random crop of a labelled photograph, resized: image (h, w, 3) uint8, masks (n, h, w) bool.

    `shares` is the range of the crop's size, relative to the largest crop of that aspect ratio.
    """
    height, width = photo.image.shape[:2]
    scale = min(height / h, width / w) * rng.uniform(*shares)
    box = left, top, right, bottom = random_box(rng, (height, width), h, w, scale)
    image = np.asarray(Image.fromarray(photo.image).resize((w, h), Image.Resampling.BILINEAR, box=box))
    if rng.random() < 0.5:
        image = recolour(rng, image.astype(np.float32), 1.5).astype(np.uint8)
    rows = (top + (np.arange(h) + 0.5) * (bottom - top) / h).astype(int)
    columns = (left + (np.arange(w) + 0.5) * (right - left) / w).astype(int)
    # RLEs run down the columns: read as rows of the transposed mask, they are gathered twice as fast.
    decoded = (coco_mask.decode(code).T for code in photo.segmentations)
    masks = [mask.take(columns, axis=0).take(rows, axis=1).T.view(bool) for mask in decoded]
    large = [mask for mask in masks if np.count_nonzero(mask) > MIN_IMAGE_SHARE * h * w]
    return image, np.array(large, bool).reshape(-1, h, w)


def compose(rng: np.random.Generator, pool: CutoutPool, config: CompositeConfig, h: int, w: int) -> Scene:
    """One composite of (h, w) pixels: background, distractors, objects with parts, lighting."""
    scene = Scene(random_background(rng, pool, config, h, w))
    add_distractors(rng, scene.canvas, config.max_distractors)
    count = 2 + min(int(rng.exponential(3.2)), config.max_objects - 2)
    lengths = sorted((_random_length(rng, max(h, w)) for _ in range(count)), reverse=True)
    for length in lengths:
        _add_object(rng, scene, pool, config, length)
    if rng.random() < 0.07:
        draw_lines(rng, scene.canvas)
    if rng.random() < 0.5:
        light(rng, scene.canvas)
    return scene


def _random_length(rng: np.random.Generator, side: int) -> float:
    """An object's longest side in pixels: mostly 15-70 % of the image's, sometimes much smaller or larger."""
    kind = rng.random()
    if kind < 0.22:
        return side * math.exp(rng.uniform(math.log(0.06), math.log(0.2)))
    if kind < 0.9:
        return side * rng.uniform(0.15, 0.7)
    return side * rng.uniform(0.6, 0.95)


def _random_cutout(rng: np.random.Generator, pool: CutoutPool, config: CompositeConfig, length: float) -> np.ndarray:
    """A warped cut-out or photo region: (h, w, 4) uint8 with its longest side about `length` pixels."""
    max_angle = 180 if rng.random() < 0.2 else 25
    kind = rng.random()
    if kind < config.photo_region_object:
        return warp(rng, photo_region(rng, pool.random_background(rng), length), length, max_angle)
    if kind > 1 - config.region_object and pool.regions:
        rgba = _cut_out_region(rng, pool.regions[rng.integers(len(pool.regions))])
    else:
        rgba = pool.random_cutout(rng)
    length = min(length, 3 * max(rgba.shape[:2]))  # larger ones are only blur
    return warp(rng, rgba, length, max_angle)


def _random_object(
    rng: np.random.Generator, pool: CutoutPool, config: CompositeConfig, length: float
) -> tuple[np.ndarray, np.ndarray | None]:
    """A warped cut-out, or a rendered model with its parts (h, w) uint8."""
    if not (config.model_object and pool.models and rng.random() < config.model_object):
        return _random_cutout(rng, pool, config, length), None
    model = pool.models[rng.integers(len(pool.models))]
    shape = model.rgba.shape[:2]
    warp = random_warp(rng, shape, min(length, 3 * max(shape)), 180 if rng.random() < 0.1 else 15)
    return warp.of_image(model.rgba), warp.of_parts(model.parts)


def _cut_out_region(rng: np.random.Generator, photo: LabelledImage) -> np.ndarray:
    """One of a photo's regions: (h, w, 4) uint8, cropped to it."""
    mask = coco_mask.decode(photo.segmentations[rng.integers(len(photo.segmentations))])
    window = bounding_window(mask.astype(bool))
    return np.dstack([photo.image[window], mask[window] * 255])


def _finish(rng: np.random.Generator, rgba: np.ndarray, around: np.ndarray, config: CompositeConfig) -> Patch:
    """At random, recolours a cut-out, shifts its colours towards those of `around` (n, 3), and softens its edges."""
    patch = Patch.from_rgba(rgba)
    rgb, alpha = patch.rgb, patch.alpha
    if rng.random() < 0.7:
        rgb = recolour(rng, rgb, rng.uniform(0.2, 1.2))
    if rng.random() < config.match_colours:
        rgb = match_colours(rgb, alpha, around, rng.uniform(0.3, 0.95))
    if rng.random() < config.feather and min(alpha.shape) > 16:
        alpha = feather(alpha, rng.uniform(0.4, min(2.5, min(alpha.shape) / 16)))
    return Patch(rgb, alpha)


def _random_place(rng: np.random.Generator, scene: Scene, shape: tuple[int, int]) -> tuple[int, int]:
    """A corner (top, left) for a patch, with its centre on the canvas and usually away from other objects."""
    h, w = scene.size
    inset = 0.08 if rng.random() < 0.3 else 0.3  # a minority of objects is cut by the image's edge
    margins = [
        min(0.5, inset * length / side) if length < side else 0.4 for length, side in zip(shape, (h, w), strict=True)
    ]
    centres = [rng.uniform(m, 1 - m, 4) for m in margins]
    taken = scene.occupied()
    crowding = [taken[int(y * (h - 1)), int(x * (w - 1))] for y, x in zip(*centres, strict=True)]
    best = int(np.argmin(crowding)) if rng.random() < 0.6 else 0
    return round(centres[0][best] * h - shape[0] / 2), round(centres[1][best] * w - shape[1] / 2)


def _add_object(
    rng: np.random.Generator, scene: Scene, pool: CutoutPool, config: CompositeConfig, length: float
) -> None:
    """Pastes one object, or a row of touching copies, some with shadow and parts."""
    rgba, parts = _random_object(rng, pool, config, length)
    top, left = _random_place(rng, scene, rgba.shape[:2])
    copies = int(rng.integers(2, 5)) if rng.random() < config.repeat else 1
    angle, gap = rng.uniform(0, 2 * math.pi), rng.uniform(0.7, 1.0)
    for copy in range(copies):
        dy = round(copy * gap * rgba.shape[0] * math.sin(angle))
        dx = round(copy * gap * rgba.shape[1] * math.cos(angle))
        patch = _finish(rng, rgba, _surroundings(scene, top + dy, left + dx, rgba.shape[:2]), config)
        if rng.random() < config.shadow:
            shift = rng.uniform(-0.08, 0.08, 2) * patch.alpha.shape
            corner = top + dy + round(shift[0]), left + dx + round(shift[1])
            scene.shade(patch, *corner, rng.uniform(0.15, 0.6), length * rng.uniform(0.01, 0.06))
        index = scene.paste(patch, top + dy, left + dx)
        if index is not None and parts is not None:
            for number in range(1, 1 + int(parts.max())):
                scene.mark_part(parts == number, top + dy, left + dx, index)
        elif index is not None and rng.random() < config.parts:
            for _ in range(rng.integers(1, 4)):
                _add_part(rng, scene, pool, config, index, depth=1)


def _surroundings(scene: Scene, top: int, left: int, shape: tuple[int, int]) -> np.ndarray:
    """(n, 3) canvas pixels, one in nine, where a patch of this shape will be pasted."""
    area = scene.canvas[max(top, 0) : max(top + shape[0], 0) : 3, max(left, 0) : max(left + shape[1], 0) : 3]
    return area.reshape(-1, 3)


def _add_part(
    rng: np.random.Generator, scene: Scene, pool: CutoutPool, config: CompositeConfig, parent: int, depth: int
) -> None:
    """Pastes a part on a layer, and sometimes a part on that part."""
    whole = scene.layers[parent]
    if whole.count() < 0.004 * scene.canvas.shape[0] * scene.canvas.shape[1]:
        return
    window = whole.visible_window()
    make = (_split_part, _texture_part, _texture_part, _cutout_part)[rng.integers(4)]
    patch, top, left = make(rng, scene, pool, config, window)
    index = scene.paste_part(patch, top, left, parent)
    if index is not None and depth < 2 and rng.random() < 0.4:
        _add_part(rng, scene, pool, config, index, depth + 1)


def _split_part(
    rng: np.random.Generator, scene: Scene, pool: CutoutPool, config: CompositeConfig, window: Window
) -> PlacedPatch:
    """One side of a bent line, or a band, of the same surface in another colour, as in two-tone objects."""
    rgb = scene.canvas[window]
    alpha = random_split(rng, *rgb.shape[:2])
    shift = rng.normal(0, 22, 3) + rng.choice([-1, 1]) * rng.uniform(8, 35)
    other = recolour(rng, rgb, 1.5) + shift
    return Patch(np.clip(other, 0, 255).astype(np.float32), alpha), window[0].start, window[1].start


def choose_masks(rng: np.random.Generator, masks: np.ndarray, count: int) -> np.ndarray:
    """Up to `count` of the masks (n, h, w), in random order; large ones and hollow ones (little of their box filled)
    are preferred.

    Tiny ones are below the resolution of the model's grid, and compact ones can be guessed by filling the box.
    """
    counts = np.array([np.count_nonzero(mask) for mask in masks])
    masks, counts = masks[counts > 0], counts[counts > 0]
    windows = [bounding_window(mask) for mask in masks]
    areas = np.array([math.prod(side.stop - side.start for side in window) for window in windows], float)
    fill = counts / areas
    weights = (1.25 - fill) * np.clip(np.sqrt(areas) / (0.12 * max(masks.shape[1:])), 0.15, 1)
    return masks[np.argsort(rng.exponential(size=len(masks)) / weights)[:count]]


def _part_place(rng: np.random.Generator, window: Window, shape: tuple[int, ...]) -> tuple[int, int]:
    """A corner (top, left) for a part, with its centre well inside its parent's window."""
    centre = [side.start + rng.uniform(0.25, 0.75) * (side.stop - side.start) for side in window]
    return round(centre[0] - shape[0] / 2), round(centre[1] - shape[1] / 2)


def _part_length(rng: np.random.Generator, window: Window) -> float:
    return max(6.0, rng.uniform(0.25, 0.7) * max(side.stop - side.start for side in window))


def _texture_part(
    rng: np.random.Generator, scene: Scene, pool: CutoutPool, config: CompositeConfig, window: Window
) -> PlacedPatch:
    """A random shape filled with another photograph, or with another place of this image."""
    length = _part_length(rng, window)
    if rng.random() < 0.6:
        rgba = photo_region(rng, pool.random_background(rng), length)
    else:
        h, w = (max(4, round(length * rng.uniform(0.4, 1))) for _ in range(2))
        piece = recolour(rng, random_piece(rng, scene.canvas, h, w), 1.2)
        rgba = np.dstack([piece.astype(np.uint8), random_shape(rng, h, w)])
    patch = _finish(rng, rgba, scene.canvas[window][::3, ::3].reshape(-1, 3), config)
    return patch, *_part_place(rng, window, patch.alpha.shape)


def _cutout_part(
    rng: np.random.Generator, scene: Scene, pool: CutoutPool, config: CompositeConfig, window: Window
) -> PlacedPatch:
    """Another object, pasted on this one."""
    rgba = _random_cutout(rng, pool, config, _part_length(rng, window))
    patch = _finish(rng, rgba, scene.canvas[window][::3, ::3].reshape(-1, 3), config)
    return patch, *_part_place(rng, window, patch.alpha.shape)
