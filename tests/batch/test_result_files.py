"""Files of a run: complete or not there, and nobody else's are touched."""

import errno
import json

import numpy as np
import pytest
from etils import epath
from PIL import Image

from sam_jax.batch.image_list import ImageFile
from sam_jax.batch.prompt_files import ImageObjects, ObjectPrompt
from sam_jax.batch.result_files import OutputError, ResultFiles
from sam_jax.ops.rle import encode_mask

SIZE = (20, 30)
IMAGE_FILE = ImageFile("p/sub/cat.jpg", "sub/cat.jpg", "sub/cat", 7)
IMAGE = np.zeros((*SIZE, 3), np.uint8)


def record(x0, x1, **more):
    mask = np.zeros(SIZE, bool)
    mask[5:10, x0:x1] = True
    return {
        "segmentation": encode_mask(mask),
        "area": int(mask.sum()),
        "bbox": [x0, 5, x1 - 1 - x0, 4],
        "predicted_iou": 0.9,
    } | more


def write(files, records, image_file=IMAGE_FILE, objects=None):
    files.write(image_file, objects, SIZE, records, IMAGE)


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_what_is_written(tmp_path):
    files = ResultFiles(tmp_path / "out", ["png", "overlay"], {"points": 3})
    assert not files.is_finished(IMAGE_FILE)
    write(files, [record(2, 8), record(10, 12, stability_score=0.8)])
    assert names(tmp_path / "out") == [
        "sub/cat.json",
        "sub/cat.mask_0.png",
        "sub/cat.mask_1.png",
        "sub/cat.overlay.jpg",
    ]
    content = json.loads((tmp_path / "out/sub/cat.json").read_text())
    assert content["image"] == {"image_id": 7, "width": 30, "height": 20, "file_name": "sub/cat.jpg"}
    assert content["annotations"] == [{"id": 0, **record(2, 8)}, {"id": 1, **record(10, 12, stability_score=0.8)}]
    with Image.open(tmp_path / "out/sub/cat.mask_1.png") as image:
        mask = np.array(image)
    assert (mask[5:10, 10:12] == 255).all()
    assert mask.sum() == 10 * 255


def finished(tmp_path, formats=("json",), settings=None, image_file=IMAGE_FILE, objects=None):
    """As the next run sees it."""
    return ResultFiles(tmp_path, formats, settings or {"points": 3}).is_finished(image_file, objects)


def test_finished_is_what_this_very_run_would_write(tmp_path):
    write(ResultFiles(tmp_path, ["png"], {"points": 3}), [])
    assert finished(tmp_path)
    assert finished(tmp_path, ["json", "coco", "png"])
    assert not finished(tmp_path, ["overlay"])
    assert not finished(tmp_path, settings={"points": 4})
    assert not finished(tmp_path, objects=ImageObjects((ObjectPrompt(box=(0, 0, 1, 1)),)))
    assert not finished(tmp_path, image_file=ImageFile("p/sub/cat.png", "sub/cat.png", "sub/cat", 7))


def test_half_a_file_is_not_finished(tmp_path):
    write(ResultFiles(tmp_path, ["json"], {"points": 3}), [record(0, 5)] * 100)
    path = tmp_path / "sub/cat.json"
    content = path.read_bytes()
    assert len(content) > 5000
    for part in (0, 300, 4500, len(content) - 1):
        path.write_bytes(content[:part])
        if part == 300:
            assert not finished(tmp_path)
        assert not finished(tmp_path)


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"image": {}, "annotations": []}', '{"info": {"year": 2017}, "images": []}']
)
def test_files_of_others_are_left_alone(tmp_path, content):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/cat.json").write_text(content)
    with pytest.raises(ValueError, match="was not written by this program; choose another output directory"):
        finished(tmp_path)


def test_fewer_masks_leave_no_old_ones(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/.cat.mask_3.png.unfinished").write_text("half")  # the run was killed while it wrote
    write(ResultFiles(tmp_path, ["png", "overlay"], {"points": 3}), [record(0, 5)] * 3)
    (tmp_path / "sub/cat.json").unlink()
    (tmp_path / "sub/.cat.mask_3.png.unfinished").write_text("half")
    write(ResultFiles(tmp_path, ["png"], {"points": 4}), [record(0, 5)])
    assert names(tmp_path) == ["sub/cat.json", "sub/cat.mask_0.png", "sub/cat.overlay.jpg"]
    write(ResultFiles(tmp_path, ["json"], {"points": 5}), [])
    assert names(tmp_path) == ["sub/cat.json"]


def test_a_full_disk_leaves_no_json(tmp_path, monkeypatch):
    files = ResultFiles(tmp_path, ["png"], {})
    path_type = type(epath.Path(tmp_path))
    actual = path_type.write_bytes

    def fill_up(path, content):
        if "mask_1" not in path.name:
            return actual(path, content)
        actual(path, content[:10])
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(path_type, "write_bytes", fill_up)
    with pytest.raises(OutputError, match=r"No space left on device.*free some space and run the same command again"):
        write(files, [record(0, 5)] * 3)
    assert names(tmp_path) == ["sub/cat.mask_0.png"]


def test_the_coco_file(tmp_path):
    files = ResultFiles(tmp_path, ["coco"], {})
    other = ImageFile("p/dog.jpg", "dog.jpg", "dog", 8)
    write(files, [record(2, 8, category_id=3, score=0.4), record(0, 30, stability_score=0.7)])
    write(files, [record(4, 5)], other)
    path = files.write_coco([IMAGE_FILE, other, ImageFile("p/bad.jpg", "bad.jpg", "bad", 9)])
    first, second, third = json.loads(path.read_text())
    assert first == {
        "image_id": 7,
        "file_name": "sub/cat.jpg",
        "category_id": 3,
        "segmentation": record(2, 8)["segmentation"],
        "bbox": [2, 5, 6, 5],
        "area": 30,
        "score": 0.4,
        "predicted_iou": 0.9,
    }
    assert (second["category_id"], second["score"], second["stability_score"]) == (1, 0.9, 0.7)
    assert (third["image_id"], third["bbox"]) == (8, [4, 5, 1, 5])
    assert json.loads(files.write_coco([]).read_text()) == []
    assert {
        item["image_id"] for item in json.loads(files.write_coco([IMAGE_FILE], lambda image_file: 70).read_text())
    } == {70}


def test_pycocotools_reads_the_coco_file(tmp_path, capsys):
    from pycocotools.coco import COCO

    files = ResultFiles(tmp_path, ["coco"], {})
    write(files, [record(2, 8), record(3, 9)])
    truth = COCO()
    truth.dataset = {"images": [{"id": 7}], "annotations": [], "categories": [{"id": 1}]}
    truth.createIndex()
    assert len(truth.loadRes(str(files.write_coco([IMAGE_FILE]))).anns) == 2
    capsys.readouterr()


def test_failures(tmp_path):
    files = ResultFiles(tmp_path, ["json"], {})
    path = files.write_failures([(IMAGE_FILE, "broken"), (IMAGE_FILE, "gone")], "failures.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [{"image": "p/sub/cat.jpg", "error": error} for error in ("broken", "gone")]
    assert not files.write_failures([], "failures.jsonl").exists()


def test_mistakes(tmp_path):
    with pytest.raises(ValueError, match="unknown format 'pgn'; expected some of json, png, overlay, coco"):
        ResultFiles(tmp_path, ["pgn"], {})
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="file"):
        ResultFiles(tmp_path / "file", ["json"], {})
