"""Recall of proposals and precision of instances, on cases that can be counted by hand, and as pycocotools counts."""

import contextlib
import copy
import io

import numpy as np
import pytest

from sam_jax.data.records import DataError
from sam_jax.ops.rle import encode_mask
from sam_jax.zero_shot.coco_scores import Annotations, mask_precision, proposal_recall

pytestmark = pytest.mark.oracle  # faster-coco-eval is an extra
SIZE = 200, 300


def rectangle(x, y, w, h):
    drawn = np.zeros(SIZE, bool)
    drawn[y : y + h, x : x + w] = True
    return encode_mask(drawn)


# Two images: a small, a medium and a large object in the first, a small one in the second.
OBJECTS = [(1, 1, (10, 10, 20, 20)), (1, 2, (60, 10, 50, 40)), (1, 1, (120, 20, 150, 120)), (2, 3, (5, 5, 10, 30))]


def annotations(tmp_path, lvis=False):
    import json

    document = {
        "images": [{"id": n, "file_name": f"{n}.jpg", "height": SIZE[0], "width": SIZE[1]} for n in (1, 2)],
        "categories": [{"id": n, "name": str(n)} | ({"frequency": "fcr"[n - 1]} if lvis else {}) for n in (1, 2, 3)],
        "annotations": [
            {
                "id": number,
                "image_id": image,
                "category_id": category,
                "segmentation": rectangle(*box),
                "bbox": list(box),
                "area": box[2] * box[3],
                "iscrowd": 0,
            }
            for number, (image, category, box) in enumerate(OBJECTS, 1)
        ],
    }
    if lvis:
        for image in document["images"]:
            image |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(document))
    return Annotations(path)


def result(image, box, score, category=1):
    return {"image_id": image, "category_id": category, "segmentation": rectangle(*box), "score": score}


PERFECT = [result(image, box, 0.9, category) for image, category, box in OBJECTS]


def test_a_perfect_set_and_an_empty_one(tmp_path):
    perfect = proposal_recall(PERFECT, annotations(tmp_path, lvis=True))
    assert list(perfect) == [
        *("AR@1000", "AR small", "AR medium", "AR large"),
        *("AR frequent", "AR common", "AR rare"),
    ]
    assert set(perfect.values()) == {1.0}
    assert set(proposal_recall([], annotations(tmp_path, lvis=True)).values()) == {0.0}


def test_recall_counted_by_hand(tmp_path):
    """Of the small ones one is found exactly; the medium one at IoU .8, which passes .5 to .75 and .8: 7 of 10; the
    large one at IoU .5: 1 of 10. Categories do not matter."""
    found = [
        result(1, (10, 10, 20, 20), 0.5, category=3),
        result(1, (60, 10, 40, 40), 0.4, category=3),
        result(1, (120, 20, 75, 120), 0.3, category=3),
    ]
    recall = proposal_recall(found, annotations(tmp_path, lvis=True))
    assert recall["AR small"] == pytest.approx(1 / 2)
    assert recall["AR medium"] == pytest.approx(0.7)
    assert recall["AR large"] == pytest.approx(0.1)
    assert recall["AR@1000"] == pytest.approx((1 + 0.7 + 0.1) / 4)
    assert recall["AR frequent"] == pytest.approx((1 + 0.1) / 2)
    assert recall["AR common"] == pytest.approx(0.7)
    assert recall["AR rare"] == 0
    assert proposal_recall(found, annotations(tmp_path), most=1)["AR@1"] == pytest.approx(1 / 4)


def test_perfect_instances(tmp_path):
    precision = mask_precision(PERFECT, annotations(tmp_path))
    assert precision["AP"] == pytest.approx(1)
    assert precision["boundary AP"] == pytest.approx(1)


def test_lvis_has_frequencies(tmp_path):
    precision = mask_precision(PERFECT[:2], annotations(tmp_path, lvis=True))
    assert precision["AP common"] == pytest.approx(1)
    assert precision["AP rare"] == 0
    assert 0 < precision["AP frequent"] < 1


def test_precision_is_that_of_pycocotools(tmp_path):
    """Also where boxes came with the results: masks count by their own areas."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    rng = np.random.default_rng(0)
    found = []
    for image, category, (x, y, w, h) in OBJECTS * 3:
        dx, dy, dw, dh = rng.integers(-4, 5, 4)
        moved = max(0, x + dx), max(0, y + dy), w + dw, h + dh
        found.append(result(image, moved, float(rng.random()), category if rng.random() < 0.8 else 1))
    given = annotations(tmp_path)
    ours = mask_precision([one | {"bbox": [0, 0, 300, 200]} for one in found], given)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(given.path)
        evaluation = COCOeval(truth, truth.loadRes(copy.deepcopy(found)), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    theirs = dict(zip(("AP", "AP50", "AP75", "AP small", "AP medium", "AP large"), evaluation.stats, strict=False))
    assert 0.05 < theirs["AP"] < 0.95
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, abs=1e-6), name
    assert 0 < ours["boundary AP"] <= ours["AP"]


def test_results_of_other_images(tmp_path):
    for measure in (mask_precision, proposal_recall):
        with pytest.raises(DataError, match=r"the results has the image 7, which .*annotations.json has not"):
            measure([result(7, (1, 1, 5, 5), 0.5)], annotations(tmp_path))
