"""Objects whose parts are known: models drawn beforehand, as a pool keeps them."""

import json

import numpy as np
import pytest
from PIL import Image

from sam_jax.composites.patches import Patch, random_warp
from sam_jax.composites.pool import load_pool
from sam_jax.composites.scene import Scene
from sam_jax.composites.source import CompositeSource
from sam_jax.config import CompositeConfig
from tests.tiny_pool import write_pool

CONFIG = CompositeConfig(
    image_size=128, masks_per_image=16, model_object=1.0, regions=0, mosaics=0, pseudo_regions=0, labelled=0, degrade=0
)


@pytest.fixture(scope="module")
def flag():
    """A flag of three stripes, red, white and blue, of which the outer two are parts: RGBA and their numbers."""
    parts = np.zeros((60, 90), np.uint8)
    parts[:, :30], parts[:, 60:] = 1, 2
    rgba = np.full((60, 90, 4), 255, np.uint8)
    rgba[parts == 1] = 220, 20, 20, 255
    rgba[parts == 2] = 20, 20, 220, 255
    return rgba, parts


@pytest.fixture(scope="module")
def pool_dir(flag, tmp_path_factory):
    root = write_pool(tmp_path_factory.mktemp("pool"))
    (root / "models").mkdir()
    for array, name in zip(flag, ("00000.png", "00000.parts.png"), strict=True):
        Image.fromarray(array).save(root / "models" / name)
    files = json.loads((root / "pool.json").read_text())["files"]
    files.append({"path": "models/00000.png", "kind": "model", "package": "made-up", "split": "train"})
    (root / "pool.json").write_text(json.dumps({"files": files}))
    return root


def test_a_pool_reads_models_with_their_parts(flag, pool_dir):
    (model,) = load_pool(pool_dir, "train").models
    np.testing.assert_array_equal(model.rgba, flag[0])
    np.testing.assert_array_equal(model.parts, flag[1])


def test_parts_are_warped_with_their_image(flag):
    rgba, parts = flag
    for seed in range(8):
        warp = random_warp(np.random.default_rng(seed), rgba.shape[:2], 120, 180)
        image, warped = warp.of_image(rgba).astype(int), warp.of_parts(parts)
        assert warped.shape == image.shape[:2]
        solid = image[..., 3] > 250
        red, blue = (solid & (image[..., c] - image[..., 2 - c] > 100) for c in (0, 2))
        for colour, number in ((red, 1), (blue, 2)):
            part = warped == number
            assert (part & colour).sum() > 0.95 * (part | colour).sum()


def test_a_part_that_is_there_changes_nothing_of_the_image(flag):
    rgba, parts = flag
    scene = Scene(np.zeros((100, 100, 3), np.uint8))
    whole = scene.paste(Patch.from_rgba(rgba), 20, 30)  # 20 columns of the flag are off the canvas
    before = scene.canvas.copy()
    red, blue = (scene.mark_part(parts == number, 20, 30, whole) for number in (1, 2))
    np.testing.assert_array_equal(scene.canvas, before)
    assert scene.layers[whole].visible.sum() == 60 * 70
    np.testing.assert_array_equal(scene.masks()[red], scene.canvas[..., 0] - scene.canvas[..., 2] > 100)
    assert scene.layers[blue].visible.sum() == 60 * 10
    assert scene.mark_part(np.ones((60, 90), bool), 20, 30, whole) is None, "would be the whole again"
    assert scene.mark_part(np.zeros((60, 90), bool), 20, 30, whole) is None
    scene.paste(Patch(np.zeros((100, 15, 3), np.float32), np.ones((100, 15), np.float32)), 0, 30)
    assert scene.layers[red].visible.sum() == 60 * 15, "what lies above hides parts, too"


def test_composites_have_wholes_and_their_parts(pool_dir):
    source = CompositeSource(load_pool(pool_dir, "train"), CONFIG, seed=3)
    found = 0
    for index in range(10):
        example = source[index]
        masks = example["masks"][example["mask_valid"]]
        for whole in masks:
            within = [part for part in masks if (part <= whole).all() and 0.15 < part.sum() / whole.sum() < 0.5]
            found += any(not (one & other).any() for one in within for other in within)
    assert found >= 5


def test_without_models_nothing_changes(pool_dir, tmp_path):
    """A share of models is nothing to a pool that has none, and no models are drawn unless a recipe asks for them."""
    with_models, without = load_pool(pool_dir, "train"), load_pool(write_pool(tmp_path), "train")
    unasked = CompositeConfig(image_size=128, masks_per_image=16)
    one, other = CompositeSource(with_models, unasked, 1)[4], CompositeSource(without, unasked, 1)[4]
    np.testing.assert_array_equal(one["image"], other["image"])
    assert CompositeSource(without, CONFIG, seed=3)[0]["mask_valid"].any()
