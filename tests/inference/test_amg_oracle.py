"""Everything mode against the official generator, record by record."""

import numpy as np
import pytest
from pycocotools import mask as coco

from sam_jax.inference.automatic_mask_generator import SamAutomaticMaskGenerator
from sam_jax.models.sam import Sam
from tests.tiny import TINY

pytestmark = pytest.mark.oracle
SHAPES = [(70, 110), (120, 90), (40, 40), (300, 200)]


def compare(found, expected, share=0.995):
    """One-to-one by overlap; `share` of the records have to agree in everything."""
    assert len(found) == len(expected)
    if not found:
        return
    rles = [coco.encode(np.asfortranarray(r["segmentation"], np.uint8)) for r in found]
    others = [coco.encode(np.asfortranarray(r["segmentation"], np.uint8)) for r in expected]
    overlaps = coco.iou(rles, others, [0] * len(others))
    agree, used = 0, set()
    for i, record in enumerate(found):
        j = int(overlaps[i].argmax())
        other = expected[j]
        used.add(j)
        agree += (
            overlaps[i, j] >= 0.999
            and np.abs(np.subtract(record["bbox"], other["bbox"])).max() <= 1
            and abs(record["predicted_iou"] - other["predicted_iou"]) <= 1e-3
            and abs(record["stability_score"] - other["stability_score"]) <= 1e-3
            and record["crop_box"] == other["crop_box"]
            and np.allclose(record["point_coords"], other["point_coords"])
        )
    assert agree >= share * len(found), f"{agree} of {len(found)} agree"
    assert len(used) >= share * len(found)


@pytest.fixture(scope="module")
def pair():
    from convert.torch_to_flax import to_variables
    from tests.oracle import build_official

    official = build_official(TINY)
    return official, to_variables(TINY, official.state_dict())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layers", [0, 1, 2])
@pytest.mark.parametrize("region", [0, 20])
def test_records_are_those_of_the_official_generator(pair, shape, layers, region):
    from tests.oracle import build_generator

    official, variables = pair
    options = dict(
        points_per_side=6,
        points_per_batch=16,
        pred_iou_thresh=0.1,
        stability_score_thresh=0.3,
        crop_n_layers=layers,
        crop_n_points_downscale_factor=2,
        min_mask_region_area=region,
    )
    photo = np.random.default_rng(1).integers(0, 255, (*shape, 3), np.uint8)
    expected = build_generator(official, **options).generate(photo)
    found = SamAutomaticMaskGenerator(Sam(TINY), variables, **options).generate(photo)
    assert layers or region or expected
    compare(found, expected)
