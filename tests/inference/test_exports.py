"""Records in the forms of others, read back by those who know these forms."""

import io
import json

import numpy as np
import pytest
from pycocotools.coco import COCO

from sam_jax.inference.exports import rle_of, to_coco, to_detections, to_sa1b
from sam_jax.ops.rle import decode_mask, encode_mask, run_lengths
from tests.tiny_sa1b import tiny_files

MASK = np.zeros((20, 30), bool)
MASK[3:9, 5:25] = True
FORMS = {
    "binary_mask": MASK,
    "coco_rle": encode_mask(MASK),
    "uncompressed_rle": {"size": [20, 30], "counts": run_lengths(MASK)},
}


def record(segmentation, **more):
    return {"segmentation": segmentation, "predicted_iou": 0.9, "area": int(MASK.sum()), **more}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_mask_is_the_same_mask(form):
    rle = rle_of(record(FORMS[form]))
    np.testing.assert_array_equal(decode_mask(json.loads(json.dumps(rle))), MASK)


@pytest.mark.parametrize("form", FORMS)
def test_coco_reads_the_results(form, monkeypatch):
    monkeypatch.setattr("sys.stdout", io.StringIO())
    truth = COCO()
    truth.dataset = {"images": [{"id": 7, "width": 30, "height": 20}], "annotations": [], "categories": [{"id": 1}]}
    truth.createIndex()
    found = truth.loadRes(json.loads(json.dumps(to_coco([record(FORMS[form], stability_score=0.8)], 7))))
    (entry,) = found.anns.values()
    np.testing.assert_array_equal(found.annToMask(entry), MASK)
    assert (entry["bbox"], entry["area"], entry["score"]) == ([5, 3, 20, 6], 120, 0.9)
    assert entry["stability_score"] == 0.8
    assert to_coco([record(FORMS[form], score=0.3, category_id=4)], 7)[0]["score"] == 0.3


def test_sa1b_has_the_fields_of_its_own_files():
    theirs = json.loads(dict(tiny_files(1))["sa_1.json"])
    ours = json.loads(json.dumps(to_sa1b([record(MASK)], (20, 30), "a.jpg", 3)))
    assert ours["image"] == {"image_id": 3, "width": 30, "height": 20, "file_name": "a.jpg"}
    assert ours["image"].keys() == theirs["image"].keys()
    np.testing.assert_array_equal(decode_mask(ours["annotations"][0]["segmentation"]), MASK)


def test_detections_have_the_boxes_of_their_masks():
    found = to_detections([record(MASK), record(encode_mask(MASK))])
    assert found["xyxy"][0].tolist() == [5, 3, 25, 9]
    assert {name: len(array) for name, array in to_detections([]).items()} == {"xyxy": 0, "mask": 0, "confidence": 0}


@pytest.mark.oracle
def test_supervision_takes_them():
    import supervision

    found = supervision.Detections(**to_detections([record(MASK), record(MASK)]))
    assert len(found) == 2
    assert found.area.tolist() == [120, 120]
    assert found.box_area.tolist() == [120, 120]
