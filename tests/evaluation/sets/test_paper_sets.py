"""The paper's 23 sets, each in a miniature of its layout: two objects in every image that should be found."""

import json
import sys
import types
import zipfile

import numpy as np
import pytest
from etils import epath
from PIL import Image

from sam_jax.data.records import DataError
from sam_jax.evaluation import PAPER_SETS, open_paper_set
from sam_jax.ops.rle import encode_mask
from tests.evaluation.sets.test_image_sets import ONE, TWO, H, W, coco, masks, save, save_image

POINTS = [[15.0, 5.0], [30.0, 5.0], [30.0, 20.0], [15.0, 20.0]]
CORNERS = [[3.0, 2.0], [9.0, 2.0], [9.0, 10.0], [3.0, 10.0]]
FIRST, SECOND = ONE & ~TWO, TWO


def numbers(first, second, dtype=np.uint8):
    """A label image of both objects."""
    labels = np.zeros((H, W), dtype)
    labels[ONE], labels[TWO] = first, second
    return labels


def coco_of(name):
    annotations = [{"image_id": 1, "segmentation": [np.ravel(points).tolist()]} for points in (CORNERS, POINTS)]
    return coco([{"id": 1, "file_name": name, "height": H, "width": W}], annotations)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def ade20k(root):
    folder = root / "images/ADE/validation/urban/street"
    save_image(folder / "ADE_val_00000001.jpg")
    colours, parts = np.zeros((H, W, 3), np.uint8), np.zeros((H, W, 3), np.uint8)
    colours[ONE | TWO] = 10, 5, 1
    parts[ONE & ~TWO], parts[TWO] = (10, 7, 1), (10, 7, 2)
    save(folder / "ADE_val_00000001_seg.png", colours)
    save(folder / "ADE_val_00000001_parts_1.png", parts)
    return [ONE | TWO, FIRST, SECOND]


def bbbc038(root):
    Image.fromarray(np.zeros((H, W, 4), np.uint8)).save(save_image(root / "stage1_train/id1/images/id1.png"))
    save(root / "stage1_train/id1/masks/a.png", ONE.astype(np.uint8) * 255)
    save(root / "stage1_train/id1/masks/b.png", TWO.astype(np.uint8) * 255)
    return [ONE, TWO]


def cityscapes(root):
    save_image(root / "leftImg8bit/val/lindau/lindau_000000_000019_leftImg8bit.png")
    labels = numbers(26001, 7, np.uint16)
    labels[0, 0], labels[0, 2] = 26, 3  # a group of cars, and what is not evaluated
    save(root / "gtFine/val/lindau/lindau_000000_000019_gtFine_instanceIds.png", labels)
    return [SECOND, FIRST]


def doors(root):
    for run in ("Te1_5000_b_2022-08-02 11.16.00", "Te2_5000_ub_2022-08-02 11.16.11"):
        save_image(root / "Regression" / run / "img" / "000001.png")
        save(root / "Regression" / run / "Rock_all" / "000001.png", numbers(255, 128))
    return [ONE | TWO]


def dram(root):
    save_image(root / "test/realism/monet/1.jpg")
    save_image(root / "test/realism/monet/without.jpg")
    labels = numbers(1, 9)
    labels[0] = 255
    save(root / "labels/realism/monet/1.png", labels)
    return [FIRST, SECOND]


def egohos(root):
    for name in ("ego4d_0001", "EGO4D_0002", "thu-read_1", "epic_0001"):
        save_image(root / "train/image" / f"{name}.jpg")
        save(root / "train/label" / f"{name}.png", numbers(1, 2))
    return [FIRST, SECOND]


def gtea(root):
    save_image(root / "Images/Ahmad_1.jpg")
    save(root / "Masks/Ahmad_1.png", numbers(1, 2))
    return [FIRST, SECOND]


def ibd(root):
    save_image(root / "images/roofs.jpg")
    save(root / "labels/roofs.png", numbers(1, 2))
    return [FIRST, SECOND]


def ishape(root):
    for kind in ("antenna", "wire"):
        save_image(root / kind / "val/image/1.jpg")
        rles = [{"image_id": 1, "segmentation": encode_mask(mask)} for mask in (ONE, TWO)]
        name = "coco_format-mask_encoding=rle-instances_2017.json"
        write(root / kind / "val" / name, coco([{"id": 1, "file_name": "1.jpg"}], rles))
    return [ONE, TWO]


def lvis(root):
    save_image(root / "val2017/000000000139.jpg")
    document = json.loads(coco_of("COCO_val2014_000000000139.jpg"))
    document["images"][0]["coco_url"] = "http://images.cocodataset.org/val2017/000000000139.jpg"
    write(root / "annotations/lvis_v0.5_val.json", json.dumps(document))
    return [ONE, TWO]


def via(*regions, key="1.jpg123", listed=True):
    shapes = []
    for region in regions:
        xs, ys = ([point[axis] for point in region] for axis in (0, 1))
        shape = {"name": "polygon", "all_points_x": xs, "all_points_y": ys}
        shapes.append({"shape_attributes": shape, "region_attributes": {}})
    found = shapes if listed else {str(number): shape for number, shape in enumerate(shapes)}
    return json.dumps({key: {"filename": "1.jpg", "size": 123, "regions": found}})


def ndd20(root):
    for side in ("ABOVE", "BELOW"):
        save_image(root / side / "1.jpg")
        write(root / f"{side}_LABELS.json", via(CORNERS, POINTS))
    return [ONE, TWO]


def ndispark(root):
    save_image(root / "train/imgs/60_100.jpg")
    write(root / "train/train_coco_annotations.json", coco_of("60_100.jpg"))
    return [ONE, TWO]


def ovis(root):
    save_image(root / "train/2930398/img_0000001.jpg")
    save_image(root / "train/2930398/img_0000002.jpg")
    videos = [{"id": 1, "file_names": ["2930398/img_0000001.jpg", "2930398/img_0000002.jpg"]}]
    tracks = [{"video_id": 1, "segmentations": [encode_mask(mask), None]} for mask in (ONE, TWO)]
    write(root / "annotations_train.json", json.dumps({"videos": videos, "annotations": tracks}))
    return [ONE, TWO]


def pidray(root):
    save_image(root / "hard/xray_hard00001.png")
    write(root / "annotations/xray_test_hard.json", coco_of("xray_hard00001.png"))
    return [ONE, TWO]


def plittersdorf(root):
    for split in ("train", "val", "test"):
        save_image(root / f"images/{split}1.jpg")
        write(root / f"{split}.json", coco_of(f"{split}1.jpg"))
    return [ONE, TWO]


def ppdls(root):
    save_image(root / "Plant/Ara2012/ara2012_plant001_rgb.png")
    save_image(root / "Stack/Tobacco/without_rgb.png")
    save(root / "Plant/Ara2012/ara2012_plant001_label.png", numbers(1, 2))
    return [FIRST, SECOND]


def streets(root):
    save_image(root / "images/1.jpg")
    write(root / "annotations/vehicle-annotations.json", via(CORNERS, POINTS, listed=False))
    return [ONE, TWO]


def timberseg(root):
    save_image(root / "prescaled/pile.png")
    write(root / "prescaled/coco_annotation.json", coco_of("pile.png"))
    return [ONE, TWO]


def trashcan(root):
    save_image(root / "instance_version/train/vid_1.jpg")
    write(root / "instance_version/instances_train_trashcan.json", coco_of("vid_1.jpg"))
    return [ONE, TWO]


def visor(root):
    inner = root / "GroundTruth-SparseAnnotations"
    names = ("P01_107_frame_0000000001.jpg", "P01_103_frame_0000000009.jpg")
    for name in names:
        video = name[:7]
        entry = {
            "image": {"name": name, "image_path": f"{video}/{name}"},
            "annotations": [{"name": "hand", "segments": [CORNERS]}, {"name": "pan", "segments": [POINTS]}],
        }
        write(inner / f"annotations/val/{video}.json", json.dumps({"info": {}, "video_annotations": [entry]}))
    save_image(inner / "rgb_frames/val/P01/P01_103" / names[1])  # unpacked
    with zipfile.ZipFile(inner / "rgb_frames/val/P01/P01_107.zip", "w") as archive:
        archive.write(inner / "rgb_frames/val/P01/P01_103" / names[1], names[0])
    return [ONE, TWO]


def woodscape(root):
    save_image(root / "rgb_images/00000_FV.png")
    items = [{"tags": [tag], "segmentation": points} for tag, points in (("car", CORNERS), ("road_surface", POINTS))]
    items.append({"tags": ["car", "void"], "segmentation": POINTS})
    found = {"00000_FV.json": {"annotation": items, "image_width": W, "image_height": H}}
    write(root / "instance_annotations/00000_FV.json", json.dumps(found))
    return [ONE, TWO]


def zerowaste(root):
    save_image(root / "splits_final_deblurred/train/data/01_frame_000000.PNG")
    write(root / "splits_final_deblurred/train/labels.json", coco_of("01_frame_000000.PNG"))
    return [ONE, TWO]


def hypersim(root):
    camera = root / "ai_001_001/images/scene_cam_00"
    save_image(camera.with_name("scene_cam_00_final_preview") / "frame.0000.tonemap.jpg")
    ids = numbers(1, 2, np.int16)
    ids[ids == 0] = -1
    folder = camera.with_name("scene_cam_00_geometry_hdf5")
    folder.mkdir(parents=True)
    with (folder / "frame.0000.semantic_instance.hdf5").open("wb") as file:
        np.save(file, ids)  # `fake_h5py` reads it
    return [FIRST, SECOND]


# name: (what writes the miniature, images in it that count)
MINIATURES = {
    "ADE20K": (ade20k, 1),
    "BBBC038v1": (bbbc038, 1),
    "Cityscapes": (cityscapes, 1),
    "DOORS": (doors, 2),
    "DRAM": (dram, 1),
    "EgoHOS": (egohos, 3),
    "GTEA": (gtea, 1),
    "Hypersim": (hypersim, 1),
    "IBD": (ibd, 1),
    "iShape": (ishape, 2),
    "LVIS": (lvis, 1),
    "NDD20": (ndd20, 2),
    "NDISPark": (ndispark, 1),
    "OVIS": (ovis, 1),
    "PIDRay": (pidray, 1),
    "Plittersdorf": (plittersdorf, 3),
    "PPDLS": (ppdls, 1),
    "STREETS": (streets, 1),
    "TimberSeg": (timberseg, 1),
    "TrashCan": (trashcan, 1),
    "VISOR": (visor, 2),
    "WoodScape": (woodscape, 1),
    "ZeroWaste-f": (zerowaste, 1),
}


@pytest.fixture
def fake_h5py(monkeypatch):
    """HDF5 for one: a module whose files are what numpy.save wrote."""

    class File(dict):
        def __init__(self, file, mode):
            super().__init__(dataset=np.load(file))

        __enter__ = lambda self: self  # noqa: E731
        __exit__ = lambda *_: None  # noqa: E731

    monkeypatch.setitem(sys.modules, "h5py", types.SimpleNamespace(File=File))


def test_there_are_all_23():
    assert len(PAPER_SETS) == 23
    assert MINIATURES.keys() == PAPER_SETS.keys()
    assert sum(row.masks for row in PAPER_SETS.values()) == pytest.approx(176_000, rel=0.02)
    assert all(row.notes for row in PAPER_SETS.values() if not row.certain)


@pytest.mark.parametrize("name", MINIATURES)
def test_each_set(name, tmp_path, fake_h5py):
    make, count = MINIATURES[name]
    expected = make(tmp_path)
    images = open_paper_set(name.lower(), tmp_path)
    assert images.name == name
    assert len(images) == count
    for image in images:
        assert image.image.shape == (H, W, 3)
        found = masks(image)
        assert len(found) == len(expected)
        for mask, true in zip(found, expected, strict=True):
            assert np.array_equal(mask, true)


def test_what_is_missing_is_said_in_one_line(tmp_path):
    with pytest.raises(DataError, match=r"'ADE20' is not one of the paper's sets; did you mean ADE20K\?; known"):
        open_paper_set("ADE20", tmp_path)
    with pytest.raises(DataError, match=r"is not a directory; OVIS is expected as annotations_train\.json"):
        open_paper_set("OVIS", tmp_path / "nowhere")
    for name, row in PAPER_SETS.items():
        with pytest.raises(DataError) as caught:
            open_paper_set(name, tmp_path)
        assert str(caught.value).startswith(f"{name}: ")
        assert row.layout in str(caught.value)
        assert "\n" not in str(caught.value)


def test_hypersim_says_what_to_install(tmp_path, monkeypatch):
    hypersim(tmp_path)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(DataError, match="pip install h5py"):
        open_paper_set("Hypersim", tmp_path)[0]


def test_the_older_ade20k_and_the_newer_lvis(tmp_path):
    ade20k(tmp_path)
    (tmp_path / "images/ADE/validation").rename(tmp_path / "images/validation")
    assert len(open_paper_set("ADE20K", tmp_path)) == 1
    lvis(tmp_path)
    (tmp_path / "annotations/lvis_v0.5_val.json").rename(tmp_path / "lvis_v1_val.json")
    assert len(open_paper_set("LVIS", epath.Path(tmp_path))) == 1
