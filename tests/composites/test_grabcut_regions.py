"""Regions that GrabCut finds in photographs, and the pool that keeps them."""

import json

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from sam_jax.cli.data import main
from sam_jax.composites.grabcut_regions import find_grabcut_regions
from sam_jax.composites.pool import label_pool, load_pool
from sam_jax.composites.source import CompositeSource
from sam_jax.config import CompositeConfig
from tests.tiny_pool import write_pool

pytestmark = pytest.mark.oracle


@pytest.fixture(scope="module")
def scene():
    """A red pear on grass: (180, 240, 3) uint8, and where it is."""
    shape = Image.new("L", (240, 180))
    ImageDraw.Draw(shape).ellipse((70, 70, 170, 160), fill=1)
    ImageDraw.Draw(shape).ellipse((95, 20, 145, 110), fill=1)
    pear = np.asarray(shape) > 0
    rng = np.random.default_rng(0)
    image = np.where(pear[..., None], (200, 40, 30), (60, 140, 50)) + rng.normal(0, 8, (180, 240, 3))
    return np.clip(image, 0, 255).astype(np.uint8), pear


def test_finds_what_stands_out(scene):
    image, pear = scene
    found = find_grabcut_regions(np.random.default_rng(1), image, 40)
    assert 1 <= len(found) <= 3
    assert found.dtype == bool
    assert max((pear & region).sum() / (pear | region).sum() for region in found) > 0.95


def test_finds_nothing_in_noise(scene):
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)
    assert find_grabcut_regions(np.random.default_rng(0), noise, 10).shape == (0, 120, 160)


def test_a_labelled_pool_trains_on_its_regions(scene, tmp_path, capsys):
    image, pear = scene
    write_pool(tmp_path)
    for file in tmp_path.glob("background_*.png"):
        Image.fromarray(image).save(file)
    assert not load_pool(tmp_path, "train").regions
    assert main(["pool-label", str(tmp_path)]) == 0
    pool = load_pool(tmp_path, "train")
    assert f"{len(pool.regions)} photographs" in capsys.readouterr().out
    assert len(pool.regions) == len(pool.backgrounds)
    masks = [coco_mask.decode(code).astype(bool) for code in pool.regions[0].segmentations]
    assert max((pear & mask).sum() / (pear | mask).sum() for mask in masks) > 0.95
    example = CompositeSource(pool, CompositeConfig(image_size=64, regions=1.0, degrade=0.0), seed=0)[0]
    red = example["image"][..., 0] > 128
    inside = np.kron(example["masks"][example["mask_valid"]].any(axis=0), np.ones((4, 4), bool))
    assert (red & inside).sum() > 0.8 * inside.sum()
    before = (tmp_path / "pool.json").read_text()
    assert label_pool(tmp_path) == len(pool.regions)
    assert json.loads((tmp_path / "pool.json").read_text()) == json.loads(before)


def test_says_what_is_missing(tmp_path, capsys):
    assert main(["pool-label", str(tmp_path / "none")]) == 2
    assert "no cut-out pool at" in capsys.readouterr().err
