"""Regions that the bundled model finds and is sure of."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

import sam_jax
from sam_jax.cli.data import main
from sam_jax.composites.pool import label_pool
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
    generator = sam_jax.SamAutomaticMaskGenerator(model, variables, points_per_side=16)
    masks = [record["segmentation"] for record in generator.generate(image)]
    assert all(max(_iou(region, mask) for mask in masks) >= 0.8 for region in regions)
    assert len(RegionFinder(model, variables, min_agreement=1.0).find(image)) < len(regions)
    with pytest.raises(ValueError, match=r"min_agreement is 1\.5"):
        RegionFinder(model, variables, min_agreement=1.5)


def test_edges_are_refined_where_the_model_says_so(scene):
    image, objects = scene
    plain, refined = (RegionFinder(*sam_jax.load_model(crf=crf)).find(image) for crf in (False, True))
    for one in objects:
        assert min(max(_iou(one, region) for region in regions) for regions in (plain, refined)) > 0.95
    assert not any((region == other).all() for region in plain for other in refined)


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
    assert main(["pool-label", str(tmp_path), "--crf"]) == 2
    assert "--checkpoint" in capsys.readouterr().err


def test_what_has_no_edge_is_no_label(tmp_path):
    """A square and an angle, which fills little of its box, are kept; a box in the plain background is not."""
    write_pool(tmp_path, count=1)
    regions = np.zeros((3, 120, 160), bool)
    regions[0, 30:60, 30:60] = True
    regions[1, 70:110, 20:32] = regions[1, 98:110, 20:80] = True
    regions[2, 70:110, 100:140] = True
    image = np.where(regions[:2].any(axis=0)[..., None], 20, np.full((120, 160, 3), 128)).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "background_0.png")
    assert label_pool(tmp_path, lambda _, seen: regions, threads=1) == 1
    annotations = json.loads((tmp_path / "regions/background_0.json").read_text())["annotations"]
    assert [coco.decode(one["segmentation"]).sum() for one in annotations] == [*regions[:2].sum(axis=(1, 2))]
    assert label_pool(tmp_path, lambda _, seen: regions[2:], threads=1) == 0
