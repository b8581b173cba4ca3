"""Every kind of input that users have: what comes out, and what is said where nothing can."""

import json

import numpy as np
import pytest
from PIL import Image

from sam_jax.data.records import DataError
from sam_jax.data.segmentations import to_rles
from sam_jax.evaluation import open_image_set
from sam_jax.evaluation.sets.annotation_files import LabelledFile
from sam_jax.ops.rle import decode_mask, encode_mask, run_lengths
from tests.tiny_sa1b import tiny_files, write_folder, write_tar

H, W = 24, 40


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def save_image(path, size=(H, W)):
    return save(path, np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8))


def masks(image):
    return [decode_mask(rle) for rle in image.segmentations]


def rectangle(y0, y1, x0, x1, size=(H, W)):
    mask = np.zeros(size, bool)
    mask[y0:y1, x0:x1] = True
    return mask


ONE, TWO = rectangle(2, 10, 3, 9), rectangle(5, 20, 15, 30)
POLYGON = [15.0, 5.0, 30.0, 5.0, 30.0, 20.0, 15.0, 20.0]


@pytest.mark.parametrize("write", [lambda p: write_folder(p / "mine", 3), lambda p: write_tar(p / "mine.tar", 3)])
def test_sa1b(tmp_path, write):
    images = open_image_set(write(tmp_path))
    assert images.name in ("mine", "mine.tar")
    assert len(images) == 3
    annotations = json.loads(dict(tiny_files(3))["sa_2.json"])["annotations"]
    assert images[1].image.shape == (60, 80, 3)
    assert [mask.sum() for mask in masks(images[1])] == [a["area"] for a in annotations]


def coco(images, annotations):
    return json.dumps({"images": images, "annotations": annotations, "categories": []})


def test_coco_with_every_form_of_mask(tmp_path):
    save_image(tmp_path / "images" / "a.png")
    rle, runs = encode_mask(ONE), {"size": [H, W], "counts": run_lengths(TWO)}
    found = [[POLYGON], rle, runs, [[1, 1, 2, 2]], None, [], encode_mask(np.zeros((H, W), bool))]
    annotations = [{"image_id": 7, "segmentation": segmentation} for segmentation in found]
    annotations.append({"image_id": 7, "segmentation": rle, "iscrowd": 1})
    document = coco([{"id": 7, "file_name": "a.png"}, {"id": 8, "file_name": "b.png"}], annotations)
    (tmp_path / "mine.json").write_text(document)
    images = open_image_set(tmp_path / "mine.json")
    assert len(images) == 1  # b.png has no annotation
    assert [np.array_equal(a, b) for a, b in zip(masks(images[0]), (TWO, ONE, TWO), strict=True)] == [True] * 3


def test_lvis_names_images_by_url(tmp_path):
    save_image(tmp_path / "val2017" / "000000000139.jpg")
    info = {"id": 139, "height": H, "width": W, "coco_url": "http://images.cocodataset.org/val2017/000000000139.jpg"}
    (tmp_path / "annotations").mkdir()
    file = tmp_path / "annotations" / "lvis_v1_val.json"
    file.write_text(coco([info], [{"image_id": 139, "segmentation": [POLYGON]}]))
    assert np.array_equal(masks(open_image_set(file)[0])[0], TWO)
    elsewhere = tmp_path / "lvis.json"
    elsewhere.write_bytes(file.read_bytes())
    assert len(open_image_set(elsewhere, image_dir=tmp_path / "val2017")) == 1


def test_label_maps(tmp_path):
    root = tmp_path / "mine"
    save_image(root / "images" / "a.JPG".lower())
    labels = np.zeros((H, W), np.uint8)
    labels[ONE], labels[TWO] = 9, 4
    save(root / "labels" / "a.png", labels)
    images = open_image_set(root, name="my images")
    assert images.name == "my images"
    four, nine = masks(images[0])
    assert np.array_equal(nine, ONE & ~TWO)
    assert np.array_equal(four, TWO)


def test_label_maps_of_16_bits_palettes_and_colours(tmp_path):
    root = tmp_path / "mine"
    deep = np.zeros((H, W), np.uint16)
    deep[ONE], deep[TWO] = 300, 65000
    colours = np.zeros((H, W, 3), np.uint8)
    colours[ONE], colours[TWO] = (0, 1, 0), (0, 0, 1)
    for name, array in (("a", deep), ("b", colours)):
        save_image(root / "images" / f"{name}.png")
        save(root / "labels" / f"{name}.png", array)
    palette = Image.fromarray(np.where(TWO, 3, np.where(ONE, 1, 0)).astype(np.uint8), "L").convert("P")
    palette.putpalette([0, 0, 0, 200, 10, 10, 5, 5, 5, 10, 200, 10])
    palette.save(root / "labels" / "c.png")
    save_image(root / "images" / "c.png")
    for image in open_image_set(root):
        first, second = masks(image)
        assert np.array_equal(first, ONE & ~TWO)
        assert np.array_equal(second, TWO)


def test_an_image_turned_by_exif_stays_as_stored(tmp_path):
    root = tmp_path / "mine"
    save(root / "labels" / "a.png", ONE.astype(np.uint8))
    (root / "images").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((H, W, 3), np.uint8)).save(root / "images" / "a.jpg", exif=exif)
    assert open_image_set(root)[0].image.shape == (H, W, 3)


def test_what_cannot_be_opened_is_named(tmp_path):
    root = tmp_path / "mine"
    save_image(root / "images" / "a.png")
    (root / "labels").mkdir()
    with pytest.raises(DataError, match=r"a\.png has no .*labels/a\.png; add it"):
        open_image_set(root)
    save(root / "labels" / "a.png", np.zeros((H, W + 1), np.uint8))
    with pytest.raises(DataError, match=r"labels/a\.png has 41x24 pixels, its image 40x24"):
        open_image_set(root)[0]
    (root / "labels" / "a.png").write_text("no image")
    with pytest.raises(DataError, match=r"a\.png is not an image that PIL can read"):
        open_image_set(root)[0]
    (root / "images" / "a.png").write_text("no image")
    with pytest.raises(DataError, match=r"images/a\.png is not an image"):
        open_image_set(root)[0]
    with pytest.raises(DataError, match="does not exist; expected SA-1B tars"):
        open_image_set(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"only goes with a COCO or LVIS \.json"):
        open_image_set(root, image_dir=root)


def test_broken_annotation_files_are_named(tmp_path):
    file = tmp_path / "mine.json"
    for text, message in (
        ("{", "is not JSON"),
        ("[]", "no list 'images'"),
        ('{"images": []}', "no list 'annotations'"),
        (coco([{"id": 1, "file_name": "a.png"}], []), "none of its 0 annotations"),
        (coco([{"id": 1}], [{"image_id": 1, "segmentation": [POLYGON]}]), "neither file_name nor coco_url"),
        (coco([{"id": 1, "file_name": "a.png"}], [{"image_id": 1, "segmentation": [POLYGON]}]), "is not below any of"),
    ):
        file.write_text(text)
        with pytest.raises(DataError, match=message):
            open_image_set(file)
    file.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        open_image_set(file)


@pytest.mark.parametrize(
    "segmentation",
    [
        "text",
        [[1, 2, 3, 4, 5, 6, 7]],
        [[0, 0, 9, float("nan"), 9, 9]],
        {"size": [H, W]},
        {"size": [W, H], "counts": [H * W]},
        {"size": [H, W], "counts": [1, 2]},
        {"size": [H, W], "counts": [-1, H * W + 1]},
    ],
)
def test_broken_masks_are_refused(segmentation):
    with pytest.raises(DataError, match=r"image: mask 0 is neither polygons nor an RLE of 24 x 40"):
        to_rles([segmentation], (H, W), "image")


def test_a_damaged_rle_is_refused_before_it_is_decoded(tmp_path):
    save_image(tmp_path / "images" / "a.png")
    annotation = {"image_id": 1, "segmentation": {"size": [H, W], "counts": "0"}}
    (tmp_path / "mine.json").write_text(coco([{"id": 1, "file_name": "a.png"}], [annotation]))
    with pytest.raises(DataError, match=r"a\.png: mask 0 has runs of"):
        open_image_set(tmp_path / "mine.json")[0]


def test_a_missing_image_says_where_it_was_expected(tmp_path):
    with pytest.raises(DataError, match=r"gone\.jpg cannot be read"):
        LabelledFile(tmp_path / "gone.jpg", []).read()
