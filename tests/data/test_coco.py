"""COCO instances files made on the spot."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from sam_jax.data.coco import CocoInstances
from sam_jax.data.records import DataError

HEIGHT, WIDTH = 12, 20
OPEN = Image.open
SQUARE = [2, 1, 10, 1, 10, 9, 2, 9]  # x 2..9, y 1..8
SMALL = [14.0, 2.0, 18.0, 2.0, 18.0, 6.0, 14.0, 6.0]


def _disc():
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return ((y - 6) ** 2 + (x - 10) ** 2 < 16).astype(np.uint8)


def _runs(mask):
    """Uncompressed counts: column by column, zeros first."""
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [2]])))
    return np.diff(np.concatenate([[0], edges])).tolist()


def _image(image_id, **changes):
    entry = {"id": image_id, "file_name": f"train/{image_id}.png", "height": HEIGHT, "width": WIDTH}
    return {**entry, **changes}


def _annotation(image_id, segmentation, **changes):
    return {"id": 1, "image_id": image_id, "segmentation": segmentation, "iscrowd": 0, "category_id": 3, **changes}


def _compressed(mask):
    code = coco_mask.encode(np.asfortranarray(mask))
    return {"size": [HEIGHT, WIDTH], "counts": code["counts"].decode()}


def _write(root, images, annotations):
    (root / "instances.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    for image in images:
        path = root / "images" / str(image["file_name"])
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), 99, np.uint8)).save(path, "png")
    return root / "instances.json"


def _masks(record):
    return [coco_mask.decode(code) for code in record.segmentations]


def test_every_kind_of_segmentation(tmp_path):
    disc = _disc()
    annotations = [
        _annotation(7, [SQUARE]),
        _annotation(7, [SQUARE, [0, 0, 1, 1], SMALL]),
        _annotation(7, {"size": [HEIGHT, WIDTH], "counts": _runs(disc)}),
        _annotation(7, _compressed(disc)),
    ]
    source = CocoInstances(_write(tmp_path, [_image(7)], annotations))
    record = source[0]
    assert record.image == (tmp_path / "images/train/7.png").read_bytes()
    assert record.name == f"{tmp_path / 'instances.json'}: train/7.png"
    square = np.zeros((HEIGHT, WIDTH), np.uint8)
    square[1:9, 2:10] = 1
    both = square.copy()
    both[2:6, 14:18] = 1
    for found, expected in zip(_masks(record), [square, both, disc, disc], strict=True):
        np.testing.assert_array_equal(found, expected)


def test_what_is_left_out(tmp_path):
    images = [_image(number) for number in (5, 3, 8, 4, 2)]
    annotations = [
        _annotation(3, [SQUARE]),
        _annotation(5, {"size": [HEIGHT, WIDTH], "counts": _runs(_disc())}, iscrowd=1),
        _annotation(8, []),
        _annotation(8, [[]]),
        _annotation(8, [[1, 1, 4, 4]]),
        _annotation(8, None),
        _annotation(99, [SQUARE]),
        _annotation(2, [SQUARE]),
        _annotation(2, [SQUARE], iscrowd=1),
    ]
    source = CocoInstances(_write(tmp_path, images, annotations))
    assert source.image_ids.tolist() == [3, 2]
    assert source.image_ids.dtype == np.int64
    assert [source[index].image_id for index in range(len(source))] == [3, 2]
    assert len(source[1].segmentations) == 1
    with pytest.raises(IndexError):
        source[2]


def test_image_dir_and_pickling(tmp_path):
    path = _write(tmp_path, [_image(1)], [_annotation(1, [SQUARE])])
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    source = pickle.loads(pickle.dumps(CocoInstances(path, tmp_path / "elsewhere")))
    assert source[0].image.startswith(b"\x89PNG")
    (tmp_path / "elsewhere/train/1.png").unlink()
    with pytest.raises(DataError, match=r"elsewhere/train/1\.png: cannot be read: No such file"):
        source[0]
    with pytest.raises(DataError, match=r"its image train/1\.png is not below any of .*; say where the images are"):
        CocoInstances(path)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [WIDTH, HEIGHT], "counts": "a"}, "its size is"),
        ({"size": [HEIGHT, WIDTH], "counts": [3, 4]}, "its runs do not fill the image"),
        ({"size": [HEIGHT, WIDTH], "counts": [-1, 241]}, "its runs do not fill the image"),
        ([[*SQUARE, 3]], "not made of pairs of numbers"),
        ([SQUARE, [*SQUARE, float("nan"), 3]], "not finite"),
        (SQUARE, "not made of pairs of numbers"),
        ("m 0 0", "found str"),
    ],
)
def test_broken_segmentations_are_reported_when_read(tmp_path, segmentation, message):
    source = CocoInstances(_write(tmp_path, [_image(1)], [_annotation(1, segmentation)]))
    with pytest.raises(
        DataError,
        match=rf"instances\.json: train/1\.png: mask 0 is neither polygons nor an RLE of 12 x 20: .*{message}",
    ) as caught:
        source[0]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("images", "annotations", "message"),
    [
        ([_image(1), _image(1)], [_annotation(1, [SQUARE])], "two images have the id 1"),
        ([_image(1), _image("1")], [], "two images have the id '1' and 1; give each its own"),
        ([_image(1), _image(1.0)], [], r"two images have the id 1\.0 and 1"),
        ([_image(True)], [], "entry 0 of 'images' has the id True, which is neither a number nor text"),
        ([_image(None)], [], "has the id None, which is neither"),
        ([_image("")], [], "has the id '', which is neither"),
        ([_image(float("nan"))], [], "has the id nan, which is neither"),
        ([_image(1, height="tall")], [], "image 1 has the height 'tall', which is not a pixel count"),
        ([_image(1, width=0)], [], "image 1 has the width 0"),
        ([_image(1, file_name=3)], [], "image 1 has neither file_name nor coco_url"),
        (
            [_image(1)],
            [{"segmentation": [SQUARE]}],
            "entry 0 of 'annotations' has no image_id that is a number or text",
        ),
        ([_image(1)], [_annotation(1, [SQUARE], iscrowd=1)], "none of its 1 annotations is a mask"),
    ],
)
def test_wrong_files_are_refused_at_once(tmp_path, images, annotations, message):
    path = _write(tmp_path, images, annotations)
    with pytest.raises(DataError, match=message) as caught:
        CocoInstances(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_ids_of_every_kind(tmp_path):
    """Numbers stay as they are, whatever their type; text and what no int64 holds are numbers of their own."""
    given = [7, 8.0, "9", "a-1", 1.5, 2**70]
    images = [_image(number, file_name=f"{index}.png") for index, number in enumerate(given)]
    annotations = [_annotation(image_id, [SQUARE]) for image_id in ("7", 8, 9.0, "a-1", "1.5", 2**70)]
    path = _write(tmp_path, images, annotations)
    source = CocoInstances(path)
    assert source.image_ids[:3].tolist() == [7, 8, 9]
    assert len(set(source.image_ids.tolist())) == 6
    assert source.image_ids.min() >= 0
    assert CocoInstances(path).image_ids.tolist() == source.image_ids.tolist()
    assert [source[index].image_id for index in range(6)] == source.image_ids.tolist()


def test_sizes_that_the_file_lacks_are_those_of_the_images(tmp_path, monkeypatch):
    """And no image is opened whose size is known."""
    images = [_image(1), _image(2, height=None), _image(3, height="12", width=20.0), _image(4)]
    del images[3]["height"], images[3]["width"]
    source = CocoInstances(_write(tmp_path, images, [_annotation(n, [SQUARE]) for n in (1, 2, 3, 4)]))
    opened = []
    monkeypatch.setattr("sam_jax.data.coco.Image.open", lambda file: opened.append(file) or OPEN(file))
    records = [source[index] for index in range(4)]
    assert len(opened) == 2
    assert {str(record.segmentations) for record in records} == {str(records[0].segmentations)}
    (tmp_path / "images/train/4.png").write_text("no image")
    with pytest.raises(DataError, match=r"train/4\.png: its size cannot be read .*fetch the image again"):
        source[3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "it has no list 'images'"),
        ('{"images": [], "annotations": {}}', "it has no list 'annotations'"),
        ('{"images": [3], "annotations": []}', "entry 0 of 'images' is not an object"),
        (None, "cannot be read: No such file"),
    ],
)
def test_what_is_no_instances_file(tmp_path, text, message):
    path = tmp_path / "instances.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=message):
        CocoInstances(path)
