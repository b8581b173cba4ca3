"""A path tells what it is."""

import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from sam_jax.data.coco import CocoInstances
from sam_jax.data.open_records import open_records
from sam_jax.data.records import DataError
from sam_jax.data.sa1b import Sa1bFolder, Sa1bTars

HEIGHT, WIDTH = 8, 10
RLE = {"size": [HEIGHT, WIDTH], "counts": "l01_1"}


@pytest.fixture
def folder(tmp_path):
    """images/sa_1.jpg and images/sa_1.json."""
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(folder / "sa_1.jpg")
    image = {"image_id": 1, "height": HEIGHT, "width": WIDTH, "file_name": "sa_1.jpg"}
    annotation = {"id": 1, "segmentation": RLE, "area": 4, "bbox": [4, 4, 1, 1], "predicted_iou": 1.0}
    annotation |= {"stability_score": 1.0, "crop_box": [0, 0, WIDTH, HEIGHT], "point_coords": [[5, 5]]}
    (folder / "sa_1.json").write_text(json.dumps({"image": image, "annotations": [annotation]}))
    return folder


@pytest.fixture
def tars(tmp_path, folder):
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars/sa_000000.tar", "w") as tar:
        for file in sorted(folder.iterdir()):
            tar.add(file, file.name)
    return tmp_path / "tars"


def test_folder(folder):
    for path in (folder, str(folder), f"{folder}/"):
        source = open_records(path)
        assert isinstance(source, Sa1bFolder)
        assert source[0].image_id == 1


def test_tars(tars):
    (tars / "sa_000000.json").write_text("{}")  # what else may lie beside them
    for path in (tars, tars / "sa_000000.tar", f"{tars}/sa_*.tar"):
        source = open_records(path)
        assert isinstance(source, Sa1bTars)
        assert source[0].image_id == 1


def test_coco(tmp_path, folder):
    image = {"id": 4, "file_name": "sa_1.jpg", "height": HEIGHT, "width": WIDTH}
    annotation = {"image_id": 4, "iscrowd": 0, "segmentation": [[1, 1, 5, 1, 5, 5]]}
    path = tmp_path / "coco.json"
    path.write_text(json.dumps({"images": [image], "annotations": [annotation]}))
    for image_dir in (None, folder):
        source = open_records(path, image_dir)
        assert isinstance(source, CocoInstances)
        assert source[0].image == (folder / "sa_1.jpg").read_bytes()


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_prepared(tars, tmp_path):
    from sam_jax.data.tfds import TfdsSa1b
    from sam_jax.data.tfds.preparing import prepare_tars

    directory = prepare_tars(tars, tmp_path / "out")
    for path in (directory, tmp_path / "out", tmp_path / "out/segment_anything"):
        source = open_records(path)
        assert isinstance(source, TfdsSa1b)
        assert source[0].image == open_records(tars)[0].image


def test_anything_else(tmp_path, folder):
    (folder / "sa_1.jpg").rename(folder / "sa_1.png")
    for path, reason in (
        (tmp_path / "nowhere", "does not exist"),
        (folder, "holds no data set; accepted"),
        (folder / "sa_1.png", "is not a directory"),
    ):
        with pytest.raises(DataError, match=rf"^{path} {reason}.*COCO instances \.json$") as caught:
            open_records(path)
        assert "\n" not in str(caught.value)
    for path in (tmp_path / "a.json", tmp_path / "a.tar", tmp_path / "*.tar"):
        with pytest.raises(DataError) as caught:
            open_records(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"image_dir goes with a COCO \.json file"):
        open_records(folder, "images")
