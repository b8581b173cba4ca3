"""Regions that the bundled model finds and is sure of."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

import sam_jax
from sam_jax.cli.data import main
from sam_jax.inference.self_labels import RegionFinder
from tests.tiny_pool import write_pool

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def scene():
    """A red disc and a blue square on grass: (150, 200, 3) uint8, and where each is."""
    y, x = np.mgrid[:150, :200]
    disc, square = (y - 60) ** 2 + (x - 60) ** 2 < 35**2, (abs(y - 90) < 30) & (abs(x - 150) < 30)
    image = np.full((150, 200, 3), (60, 140, 50), np.uint8)
    image[disc], image[square] = (200, 40, 30), (30, 60, 200)
    noise = np.random.default_rng(0).normal(0, 6, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8), (disc, square)


def _iou(one, other):
    return (one & other).sum() / (one | other).sum()


def test_finds_what_stands_out_and_agrees_with_its_box(scene):
    image, objects = scene
    model, variables = sam_jax.load_model()
    regions = RegionFinder(model, variables).find(image)
    assert regions.dtype == bool
    assert regions.shape[1:] == image.shape[:2]
    for one in objects:
        assert max(_iou(one, region) for region in regions) > 0.9
    predictor = sam_jax.SamPredictor(model, variables)
    predictor.set_image(image)
    for region in regions:
        rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
        box = np.array([columns[0], rows[0], columns[-1], rows[-1]])
        assert _iou(region, predictor.predict(box=box, multimask_output=False).masks[0]) >= 0.8
    assert len(RegionFinder(model, variables, min_agreement=1.0).find(image)) < len(regions)
    with pytest.raises(ValueError, match=r"min_agreement is 1\.5"):
        RegionFinder(model, variables, min_agreement=1.5)


def test_nothing_confident_is_no_region(scene):
    finder = RegionFinder(*sam_jax.load_model(), pred_iou_thresh=2.0)
    assert finder.find(scene[0]).shape == (0, 150, 200)


def test_a_model_labels_a_pool(scene, tmp_path, capsys):
    image, objects = scene
    write_pool(tmp_path, count=1)
    Image.fromarray(image).save(tmp_path / "background_0.png")
    assert main(["pool-label", str(tmp_path), "--checkpoint", "vit_tiny"]) == 0
    assert "1 photographs with regions" in capsys.readouterr().out
    annotations = json.loads((tmp_path / "regions/background_0.json").read_text())["annotations"]
    masks = [coco.decode(one["segmentation"]).astype(bool) for one in annotations]
    assert all(max(_iou(one, mask) for mask in masks) > 0.9 for one in objects)
    assert main(["pool-label", str(tmp_path), "--checkpoint", str(tmp_path / "none")]) == 2
    assert "none" in capsys.readouterr().err
