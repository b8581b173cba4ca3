"""Masks go out and come back to the pixel, in each format; other programs' readers see the same."""

import json

import numpy as np
import pytest
from pycocotools.coco import COCO

from sam_jax.data.coco import CocoInstances
from sam_jax.data.records import DataError
from sam_jax.data.sa1b.pairs import parse_annotations
from sam_jax.engine import exports
from sam_jax.engine.exports import export_store
from sam_jax.engine.imports import import_masks
from sam_jax.engine.store import Store
from sam_jax.ops.rle import decode_mask
from tests.engine.stores import SIZE, draft, make_store, rectangle


def noise(seed):
    return np.random.default_rng(seed).random(SIZE) > 0.6


@pytest.fixture
def full(tmp_path):
    """Two labelled images: by hand, with names, and by a model; and one without masks."""
    with make_store(tmp_path / "full", 3) as store:
        task = store.claim_next("ada")
        for number, name in enumerate(("a cup", None, "a cup")):
            given = draft(noise(number), name=name, prominence=2 - number, prompts={"point_coords": [[3.5, 4]]})
            store.save_mask(task.id, "ada", given, 0)
        gone = store.save_mask(task.id, "ada", draft(), 0)
        store.delete_mask(task.id, "ada", gone.key, 1)
        store.save_mask(task.id, "ada", draft(rectangle(0, 0, 30, 40), name="all"), 0)
        store.fill_image(3, [draft(noise(9), predicted_iou=0.9, stability_score=0.97)], "automatic", 1)
        yield store


def content(store):
    found = {}
    for image, masks in store.labelled_images():
        kept = [(one.key, one.name, one.stage, one.author, one.segmentation["counts"]) for one in masks]
        found[image.file_name] = kept
    return found


@pytest.mark.parametrize("form", exports.FORMATS)
def test_a_round_trip(tmp_path, full, form):
    out = tmp_path / "out" / ("directory" if form == "sa1b" else "file.json")
    assert export_store(full, out, form, image_prefix="/data/local-files/?d=images/") == (2, 5)
    with make_store(tmp_path / "empty", 3) as other:
        done = import_masks(other, out, form)
        assert (done.images, done.masks, done.problems) == (2, 5, [])
        assert content(other) == content(full)
        assert import_masks(other, out, form).masks == 0  # they are there
        assert other.statistics().masks == 5
    assert not list(out.parent.glob(".*"))


def test_sa1b_files_are_those_of_sa1b(tmp_path, full):
    export_store(full, tmp_path / "out", "sa1b", stage="automatic")
    (file,) = (tmp_path / "out").iterdir()
    assert file.name == "image_2.json"
    (one,) = parse_annotations(file.read_bytes(), "x")
    assert np.array_equal(decode_mask(one["segmentation"]), noise(9))
    assert {"id", "area", "bbox", "predicted_iou", "stability_score"} <= one.keys()
    image = json.loads(file.read_text())["image"]
    assert image == {"image_id": 3, "width": SIZE[1], "height": SIZE[0], "file_name": "image_2.png"}


def test_names_of_files_that_differ_in_the_suffix_alone(tmp_path):
    with make_store(tmp_path, 1) as store:
        from PIL import Image

        for name in ("image_0.bmp", "image_0.more.bmp"):
            Image.new("RGB", (9, 7), (len(name), 0, 0)).save(tmp_path / name)
            store.add_image(tmp_path / name)
        assert [store.result_name(image) for image in store.images()] == [
            "image_0.png",
            "image_0.bmp",
            "image_0.more",
        ]


def test_coco_is_read_by_coco_and_by_training(tmp_path, full, capsys):
    export_store(full, tmp_path / "coco.json", "coco")
    theirs = COCO(str(tmp_path / "coco.json"))
    assert {one["name"] for one in theirs.cats.values()} == {"a cup", "object", "all"}
    assert [one["file_name"] for one in theirs.imgs.values()] == ["image_0.png", "image_2.png"]
    for annotation in theirs.anns.values():
        mask = theirs.annToMask(annotation)
        rows, columns = np.nonzero(mask)
        x, y = columns.min(), rows.min()
        assert annotation["bbox"] == [x, y, columns.max() + 1 - x, rows.max() + 1 - y]
        assert annotation["area"] == mask.sum()
    source = CocoInstances(tmp_path / "coco.json", full.directory / "images")
    assert [len(source[index].segmentations) for index in range(len(source))] == [4, 1]


def test_what_is_held_out_is_kept_apart(tmp_path):
    with make_store(tmp_path, 8, hold_out=0.5) as store:
        for _ in range(8):
            task = store.claim_next("ada")
            store.save_mask(task.id, "ada", draft(), 0)
            store.finish(task.id, "ada")
        held = {image.id for image in store.images(held_out=True)}
        assert 0 < len(held) < 8
        for flag in (True, False):
            export_store(store, tmp_path / "coco.json", "coco", held_out=flag)
            ids = {image["id"] for image in json.loads((tmp_path / "coco.json").read_text())["images"]}
            assert ids == (held if flag else set(range(1, 9)) - held)


def test_shapes_of_label_studio(tmp_path):
    region = {"original_width": SIZE[1], "original_height": SIZE[0], "image_rotation": 0}
    corners = [[5 / 40, 5 / 30], [20 / 40, 5 / 30], [20 / 40, 15 / 30], [5 / 40, 15 / 30]]
    points = (100 * np.array(corners)).tolist()
    box = {"x": 12.5, "y": 500 / 30, "width": 37.5, "height": 1000 / 30, "rotation": 0}
    regions = [
        region | {"id": "r1", "type": "polygonlabels", "value": {"points": points, "polygonlabels": ["cup"]}},
        region | {"id": "r2", "type": "rectanglelabels", "value": box | {"rectanglelabels": ["box"]}},
        region | {"id": "r3", "type": "ellipselabels", "value": {"x": 1, "ellipselabels": ["cup"]}},
        region | {"id": "r4", "type": "brushlabels", "value": {"format": "rle", "rle": [1, 2]}},
        region | {"id": "r5", "type": "polygonlabels", "value": {"points": points}, "image_rotation": 90},
        region | {"id": "r6", "type": "choices", "value": {"choices": ["good"]}},
    ]
    tasks = [
        {"data": {"image": "/data/upload/1/0123abcd-image_0.png"}, "annotations": [{"result": regions}]},
        {"data": {"image": "s3://bucket/image_1.png"}, "annotations": [{"was_cancelled": True, "result": regions}]},
        {"data": {"image": "elsewhere.png"}, "annotations": [{"result": regions[:1]}, {"result": []}]},
        {"data": {}},
    ]
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    with make_store(tmp_path, 2) as store:
        done = import_masks(store, tmp_path / "tasks.json", "label-studio")
        polygon, rectangular = store.masks(1)
        assert (polygon.name, rectangular.name, polygon.author) == ("cup", "box", "import")
        # The box is another label on the same pixels.
        for mask in (polygon, rectangular):
            assert np.array_equal(decode_mask(mask.segmentation), rectangle(5, 5, 15, 20))
        text = "\n".join(done.problems)
        for part in (
            "'ellipselabels' is left out",
            "ends too early",
            "90 degrees",
            "'choices'",
            "elsewhere.png: has 2",
        ):
            assert part in text
        assert "no image of this name" in text
        assert "task 3 names no image" in text
        assert (done.images, done.masks, len(done.problems)) == (1, 2, 7)


def test_what_does_not_fit_is_said(tmp_path):
    other = {"segmentation": {"size": [9, 9], "counts": "Q3"}}
    (tmp_path / "a.json").write_text(json.dumps({"image": {"file_name": "image_0.png"}, "annotations": [other]}))
    (tmp_path / "b.json").write_text(json.dumps({"image": {}, "annotations": []}))
    (tmp_path / "c.json").write_text("{")
    size = {"file_name": "image_0.png", "height": 5, "width": 5}
    (tmp_path / "d.json").write_text(json.dumps({"image": size, "annotations": [other]}))
    with make_store(tmp_path, 1) as store:
        done = import_masks(store, tmp_path, "sa1b")
        assert (done.images, done.masks, len(done.problems)) == (0, 0, 4)
        with pytest.raises(DataError, match=r"no \.json file"):
            import_masks(store, tmp_path / "images", "sa1b")
        with pytest.raises(DataError, match="not a COCO"):
            import_masks(store, tmp_path / "a.json", "coco")
        with pytest.raises(DataError, match="list of tasks"):
            import_masks(store, tmp_path / "a.json", "label-studio")
        for function in (import_masks, export_store):
            with pytest.raises(ValueError, match="expected one of sa1b, coco, label-studio"):
                function(store, tmp_path, "yolo")


def test_a_broken_export_leaves_the_earlier_file(tmp_path, full, monkeypatch):
    out = tmp_path / "coco.json"
    export_store(full, out, "coco")
    before = out.read_bytes()
    monkeypatch.setattr(exports, "sa1b_record", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_store(full, out, "coco")
    assert out.read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_an_export_is_of_one_moment(tmp_path, full, monkeypatch):
    """What is saved meanwhile is in none of its parts."""
    said = []

    def record(mask, of=exports.sa1b_record):
        if not said:
            with Store(full.directory) as other:
                task = other.claim_next("eve")
                said.append(other.save_mask(task.id, "eve", draft(), 0).key)
        return of(mask)

    monkeypatch.setattr(exports, "sa1b_record", record)
    assert export_store(full, tmp_path / "coco.json", "coco") == (2, 5)
    assert said[0] not in (tmp_path / "coco.json").read_text()
    assert said[0] in {mask.key for mask in full.stream_masks()}
