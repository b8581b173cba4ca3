"""Images of COCO files as tools leave them, found alike by training and by evaluation."""

import json

import numpy as np
import pytest
from PIL import Image

from sam_jax.data.coco import CocoInstances
from sam_jax.data.records import DataError
from sam_jax.evaluation import open_image_set

POLYGON = [2, 1, 10, 1, 10, 9, 2, 9]


def write(root, name, level=0):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((12, 20, 3), level, np.uint8)).save(path, "png")


def annotate(path, names, key="file_name"):
    images = [{"id": number, key: name} for number, name in enumerate(names)]
    annotations = [{"image_id": number, "segmentation": [POLYGON]} for number in range(len(names))]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return path


def levels(path, image_dir=None):
    """The grey of each image as both read it: level n is that of the file meant by name n."""
    source, images = CocoInstances(path, image_dir), open_image_set(path, image_dir=image_dir)
    assert len(source) == len(images)
    found = []
    for index in range(len(source)):
        record, image = source[index], images[index]
        assert record.segmentations == image.segmentations
        found.append(int(image.image[0, 0, 0]))
        (path.parent / "check.png").write_bytes(record.image)
        with Image.open(path.parent / "check.png") as opened:
            assert opened.getpixel((0, 0))[0] == found[-1]
        (path.parent / "check.png").unlink()
    return found


KINDS = {
    "in images/": (["a.png", "b.png"], ["images/a.png", "images/b.png"]),
    "beside the file": (["a.jpg", "b.jpg"], ["a.jpg", "b.jpg"]),
    "one level up": (["train/a.png", "train/b.png"], ["../train/a.png", "../train/b.png"]),
    "in sub-folders": (["a.png", "b.png"], ["images/x/a.png", "images/y/z/b.png"]),
    "some in sub-folders": (["a.png", "b.png"], ["images/a.png", "images/y/b.png"]),
    "in another folder": (["a.png", "b.png"], ["images/a.png", "images/b.png"]),
    "with a folder more": (["set/train/a.png", "set/val/a.png"], ["images/train/a.png", "images/val/a.png"]),
    "flat": (["set/train/a.png", "set/val/b.png"], ["images/a.png", "images/b.png"]),
    "of Windows": (["train\\a.png", ".\\val\\a.png"], ["images/train/a.png", "images/val/a.png"]),
    "absolute, of Windows": (["C:\\me\\train\\a.png", "C:\\me\\val\\a.png"], ["train/a.png", "val/a.png"]),
    "absolute, of elsewhere": (["/home/me/train/a.png", "/home/me/val/a.png"], ["train/a.png", "val/a.png"]),
    "in capitals": (["a.jpg", "B.JPG"], ["images/a.JPG", "images/b.jpg"]),
    "with capitals that differ": (["a.jpg", "a.JPG"], ["images/a.jpg", "images/a.JPG"]),
    "with labels of the same names": (["a.png"], ["images/x/a.png", "labels/a.png"]),
    "by the nearest path": (["a.png", "b.png"], ["images/a.png", "images/x/b.png", "images/y/a.png"]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_found(tmp_path, kind):
    names, files = KINDS[kind]
    for number, file in enumerate(files):
        write(tmp_path / "set", file, number)
    assert levels(annotate(tmp_path / "set/_annotations.coco.json", names)) == list(range(len(names)))


def test_absolute_names_that_are_there(tmp_path):
    for number, name in enumerate("ab"):
        write(tmp_path / "far", f"{name}.png", number)
    path = annotate(tmp_path / "set/instances.json", [str(tmp_path / f"far/{name}.png") for name in "ab"])
    assert levels(path) == [0, 1]
    write(tmp_path / "copy", "a.png", 7)
    write(tmp_path / "copy", "b.png", 8)
    assert levels(path, tmp_path / "copy") == [7, 8]  # the folder that was asked for


def test_names_by_url(tmp_path):
    write(tmp_path, "val2017/1.jpg", 5)
    path = annotate(tmp_path / "annotations/lvis.json", ["http://images.cocodataset.org/val2017/1.jpg"], "coco_url")
    assert levels(path) == [5]
    assert levels(path, tmp_path / "val2017") == [5]


@pytest.mark.parametrize(
    ("names", "files", "message"),
    [
        (
            ["a.png"],
            ["images/x/a.png", "images/y/a.png"],
            r"image 'a\.png' may be .*/a\.png or .*; give file_name with",
        ),
        (["a.png", "b.png"], ["images/a.png", "images/x/b.png", "images/y/b.png"], r"image 'b\.png' may be"),
        (["x/a.png", "y/a.png"], ["images/a.png"], r"images 'x/a\.png' and 'y/a\.png' are both .*images/a\.png"),
        (["a.png", "./a.png"], ["images/a.png"], r"images 0 and 1 are both 'a\.png'; join them into one"),
        (["x\\a.png", "x/a.png"], ["images/x/a.png"], r"images 0 and 1 are both 'x/a\.png'"),
        (["train/a.png"], ["images/val/a.png"], r"its image train/a\.png is not below any of .*; say where"),
    ],
)
def test_what_is_ambiguous_is_refused_at_once(tmp_path, names, files, message):
    for file in files:
        write(tmp_path, file)
    path = annotate(tmp_path / "instances.json", names)
    for read in (CocoInstances, open_image_set):
        with pytest.raises(DataError, match=message) as failure:
            read(path)
        assert str(failure.value).startswith(f"{path}: ")
        assert "\n" not in str(failure.value)


def test_an_image_that_is_missing_fails_alone(tmp_path):
    write(tmp_path, "images/a.png")
    path = annotate(tmp_path / "instances.json", ["a.png", "b.png"])
    assert CocoInstances(path)[0].image
    for source in (CocoInstances(path), open_image_set(path)):
        with pytest.raises(DataError, match=r"images/b\.png"):
            source[1]


def test_evaluation_reads_ids_of_every_kind(tmp_path):
    write(tmp_path, "images/a.png")
    write(tmp_path, "images/b.png")
    images = [{"id": "a-1", "file_name": "a.png"}, {"id": 7.0, "file_name": "b.png"}]
    annotations = [{"image_id": image_id, "segmentation": [POLYGON]} for image_id in ("a-1", "7")]
    (tmp_path / "i.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    assert [len(image.segmentations) for image in open_image_set(tmp_path / "i.json")] == [1, 1]
