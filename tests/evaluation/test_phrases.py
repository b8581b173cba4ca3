"""Scores of phrases by hand, on a miniature: IoU of the best mask, recall, confusion, and the command end to end."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from sam_jax.checkpoint import save_model
from sam_jax.cli import evaluate as command
from sam_jax.data.records import DataError
from sam_jax.evaluation.phrases import NOTHING, CategorySet, NamedObjects, PhraseScores, evaluate_phrases, spoken
from sam_jax.ops.rle import decode_mask, encode_mask
from tests.tiny import SMALLEST, random_variables
from tests.tiny_towers import save_colour_towers


def square(x, y, side=10):
    mask = np.zeros((40, 60), bool)
    mask[y : y + side, x : x + side] = True
    return mask


def record(text, score, mask):
    return {"text": text, "score": score, "segmentation": encode_mask(mask)}


@pytest.fixture
def coco(tmp_path):
    """A dog and two cats, and a dog whose file is broken. A crowd and an annotation without a mask are no objects."""
    (tmp_path / "images").mkdir()
    Image.fromarray(np.full((40, 60, 3), 90, np.uint8)).save(tmp_path / "images" / "a.png")
    (tmp_path / "images" / "b.png").write_bytes(b"broken")
    objects = [(1, 7, square(0, 0)), (1, 9, square(20, 0)), (1, 9, square(40, 20)), (2, 7, square(0, 0))]
    annotations = [
        {"image_id": image, "category_id": category, "segmentation": encode_mask(mask)}
        for image, category, mask in objects
    ]
    annotations.insert(1, {"image_id": 1, "category_id": 9, "iscrowd": 1, "segmentation": encode_mask(square(5, 5))})
    annotations.insert(2, {"image_id": 1, "category_id": 9, "segmentation": []})
    images = [{"id": n, "file_name": f"{name}.png", "height": 40, "width": 60} for n, name in ((1, "a"), (2, "b"))]
    categories = [{"id": 7, "name": "guide_dog"}, {"id": 9, "name": "cat"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "instances.json").write_text(json.dumps(content))
    return tmp_path / "instances.json"


def test_categories_are_those_of_the_masks(coco):
    one = CategorySet(coco)[0]
    assert one.names == ["guide dog", "cat", "cat"]
    np.testing.assert_array_equal(decode_mask(one.rles[2]), square(40, 20))
    assert spoken("aerosol_can") == "aerosol can"


def test_scores_by_hand():
    rles = [encode_mask(mask) for mask in (square(0, 0), square(20, 0), square(40, 20))]
    one = NamedObjects(np.zeros((40, 60, 3), np.uint8), rles, ["dog", "cat", "cat"])
    scores = PhraseScores()
    scores.add(
        one,
        [
            record("dog", 0.6, square(0, 0)),
            record("dog", 0.9, square(20, 0)),  # a cat
            record("cat", 0.8, square(40, 22)),  # 80 of 120 pixels
            record("cat", 0.7, square(0, 0)),
        ],
    )
    assert scores.ious == {"dog": [0.0], "cat": [pytest.approx(80 / 120)]}
    assert scores.found == {"dog": 1, "cat": 1}
    assert scores.recall == pytest.approx(2 / 3)
    assert scores.confusion == {("dog", "cat"): 1, ("cat", "cat"): 1}
    scores.add(one, [record("cat", 0.5, square(0, 30))])
    assert scores.ious["dog"] == [0.0, 0.0]
    assert scores.confusion["dog", NOTHING] == 1
    summary = scores.summary()
    assert summary["phrases"]["cat"] == {
        "images": 2,
        "iou": pytest.approx(1 / 3),
        "objects": 4,
        "recall": 0.25,
        "lies_on": {NOTHING: 1, "cat": 1},
    }
    assert summary["mean_iou"] == pytest.approx(1 / 6)
    assert "1 times 'dog' lay on cat" in scores.table()


def test_a_finder_that_knows_the_truth_is_perfect(coco):
    truth = {"guide dog": [square(0, 0)], "cat": [square(20, 0), square(40, 20)]}

    def find(image, phrases):
        assert image.shape == (40, 60, 3)
        return [record(phrase, 1.0, mask) for phrase in phrases for mask in truth[phrase]]

    with pytest.warns(UserWarning, match=r"left out: .*b\.png cannot be decoded"):
        scores = evaluate_phrases(find, CategorySet(coco))
    assert (scores.mean_iou, scores.recall, scores.images, scores.skipped) == (1.0, 1.0, 1, 1)


def test_files_without_categories_are_refused(coco, tmp_path):
    content = json.loads(coco.read_text())
    coco.write_text(json.dumps(content | {"categories": []}))
    with pytest.raises(DataError, match="has the category_id 7, which no category has"):
        CategorySet(coco)
    del content["categories"]
    coco.write_text(json.dumps(content))
    with pytest.raises(DataError, match="no list 'categories' of objects with id and name"):
        CategorySet(coco)


@pytest.mark.parametrize("text_embed_dim", [0, 20])
@pytest.mark.filterwarnings("ignore:left out")
def test_the_command(coco, tmp_path, capsys, text_embed_dim):
    config = dataclasses.replace(
        SMALLEST, text_embed_dim=text_embed_dim, pred_iou_thresh=-9.0, stability_score_thresh=0.0
    )
    save_model(tmp_path / "sam", config, random_variables(config))
    save_colour_towers(tmp_path / "towers")
    words = ["--text", "--text-model", "towers", "--checkpoint", "sam", "--out", "report"]
    words = [str(tmp_path / word) if word in ("towers", "sam", "report") else word for word in words]
    assert command.main([str(coco), *words]) == 0, capsys.readouterr().err
    found = json.loads((tmp_path / "report" / "text.json").read_text())
    assert set(found["phrases"]) == {"cat", "guide dog"}
    assert found["phrases"]["cat"]["objects"] == 2
    assert 0 <= found["mean_iou"] <= 1
    assert "recall" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--text"], "--text and --text-model DIR go together"),
        (["--text-model", "d"], "--text and --text-model DIR go together"),
        (["--text", "--text-model", "d"], "--text needs one COCO or LVIS .json file"),
    ],
)
def test_mistakes_get_one_line(words, message, capsys):
    assert command.main(["data", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
