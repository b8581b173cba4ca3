"""Drawn images of cells with their nuclei, whose masks are known: something to label, to learn and to be judged by.

Made in the tests, so that images with masks may be trained on; a model that was trained on photographs takes a click on
a cell for one on its nucleus, or for one on a group, until it has learned what is meant here.
"""

import hashlib

import numpy as np
from PIL import Image
from scipy import ndimage

from sam_jax.engine.image_table import is_held_out

SIZE = 128, 160
MIN_PIXELS = 80


def blob(rng, y, x, radius):
    """(H, W) bool: a disc with a wavy edge."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    angle, distance = np.arctan2(rows - y, columns - x), np.hypot(rows - y, columns - x)
    waves = (0.25 / k * rng.uniform(-1, 1) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 4))
    return distance < radius * (1 + sum(waves))


def draw_scene(seed):
    """An image (H, W, 3) uint8 and the masks of its cells, (H, W) bool each, without those that others hide."""
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.standard_normal((*SIZE, 3)), (4, 4, 0))
    image = rng.uniform(60, 200, 3) + 160 * noise
    colour, cells = rng.uniform(40, 220, 3), np.zeros(SIZE, int)
    for number in range(1, rng.integers(4, 8)):
        radius, own = rng.uniform(12, 22), colour + rng.uniform(-25, 25, 3)
        y, x = rng.uniform(8, SIZE[0] - 8), rng.uniform(8, SIZE[1] - 8)
        cell = blob(rng, y, x, radius)
        at = (y, x) + rng.uniform(-0.2, 0.2, 2) * radius
        nucleus = blob(rng, *at, radius * rng.uniform(0.4, 0.55)) & cell
        image[cell] = own
        image[cell & ~ndimage.binary_erosion(cell, iterations=2)] = 0.8 * own
        image[nucleus] = own * rng.uniform(0.35, 0.6)
        cells[cell] = number
    image = ndimage.gaussian_filter(image, (0.8, 0.8, 0)) + rng.normal(0, 6, image.shape)
    masks = [cells == number for number in range(1, cells.max() + 1)]
    return np.clip(image, 0, 255).astype(np.uint8), [mask for mask in masks if mask.sum() >= MIN_PIXELS]


def write_scenes(folder, count, held_out, share, seed=0):
    """Writes images, so many of them of a content that a store with this `share` holds out; {path: masks}."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {False: count - held_out, True: held_out}
    scenes = {}
    while any(wanted.values()):
        seed += 1
        path = folder / f"scene_{seed}.png"
        image, masks = draw_scene(seed)
        Image.fromarray(image).save(path)
        kind = is_held_out(hashlib.sha256(path.read_bytes()).hexdigest(), share)
        if wanted[kind]:
            wanted[kind] -= 1
            scenes[path] = masks
        else:
            path.unlink()
    return scenes
