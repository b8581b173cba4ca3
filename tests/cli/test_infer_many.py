"""The command over many images, end to end: faults, stops, devices, hosts, full disks. On the tiny model."""

import errno
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image

import infer
from sam_jax.inference.automatic_mask_generator import SamAutomaticMaskGenerator
from sam_jax.inference.predictor import SamPredictor
from sam_jax.models.sam import Sam
from sam_jax.ops.rle import decode_mask
from tests.many_images import LOOSE, OPTIONS, H, W, contents, failures, folder, noise, save
from tests.tiny import TINY


@pytest.fixture
def run(checkpoint, tmp_path, monkeypatch, capsys):
    """run(*arguments) -> (exit code, stdout, stderr lines), with results in tmp_path / "out"."""
    one = jax.local_devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: one)  # each device compiles for itself, which takes time

    def call(*arguments, out=tmp_path / "out", options=OPTIONS, devices=None):
        if devices:
            monkeypatch.setattr(jax, "local_devices", lambda: devices)
        argv = ["infer.py", *arguments, *options, "--checkpoint", checkpoint, "--out", out]
        monkeypatch.setattr(sys, "argv", list(map(str, argv)))
        try:
            code = infer.main()
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err.splitlines()

    return call


@pytest.mark.long
def test_everything_is_the_default(run, tmp_path, variables):
    save(tmp_path / "p/sub/cat.png", 3)
    code, out, err = run(tmp_path / "p/sub/cat.png")
    assert (code, err) == (0, [])
    assert out.startswith("1 image done with ")
    assert [line.split()[0] for line in out.splitlines()[1:]] == [
        "stage",
        "read",
        "encode",
        "decode",
        "records",
        "write",
        "devices",
    ]
    content = json.loads((tmp_path / "out/cat.json").read_text())
    assert content["image"] == {"image_id": 1, "width": W, "height": H, "file_name": "cat.png"}
    generator = SamAutomaticMaskGenerator(Sam(TINY), variables, **LOOSE, output_mode="coco_rle")
    assert content["annotations"] == [
        {"id": index, **record} for index, record in enumerate(generator.generate(noise(3)))
    ]
    assert len(content["annotations"]) > 0
    assert set(contents(tmp_path / "out")) == {"cat.json"}


def test_all_formats(run, tmp_path):
    inputs = folder(tmp_path / "p", 3)
    code, out, _ = run(inputs, "--format", "json,png,overlay,coco")
    assert code == 0
    assert out.splitlines()[-1] == f"wrote {tmp_path}/out/coco_results.json"
    names = set(contents(tmp_path / "out"))
    expected = {"coco_results.json"}
    total = 0
    for name in ("p0", "sub/p1", "p2"):
        annotations = json.loads((tmp_path / "out" / f"{name}.json").read_text())["annotations"]
        expected |= {f"{name}.json", f"{name}.overlay.jpg"}
        expected |= {f"{name}.mask_{i}.png" for i in range(len(annotations))}
        total += len(annotations)
        for index, annotation in enumerate(annotations):
            with Image.open(tmp_path / "out" / f"{name}.mask_{index}.png") as image:
                np.testing.assert_array_equal(np.array(image) == 255, decode_mask(annotation["segmentation"]))
    assert names == expected
    results = json.loads((tmp_path / "out/coco_results.json").read_text())
    assert len(results) == total
    assert {result["image_id"] for result in results} == {0, 1, 2}  # p0, p1, p2


@pytest.mark.long
def test_a_second_run_does_what_is_left(run, tmp_path, monkeypatch):
    inputs = folder(tmp_path / "p", 2)
    assert run(inputs)[0] == 0
    folder(inputs, 1, start=2)
    asked = []
    find = SamAutomaticMaskGenerator.find
    monkeypatch.setattr(SamAutomaticMaskGenerator, "find", lambda self, image: asked.append(image) or find(self, image))
    code, out, _ = run(inputs)
    assert code == 0
    assert "1 image done" in out
    assert "already finished: 2" in out
    assert len(asked) == 1
    assert "already finished: 3" in run(inputs)[1]
    assert len(asked) == 1
    run(inputs, "--max-mask-area", "5")  # other settings, other results
    assert len(asked) == 4
    run(inputs, "--max-mask-area", "5", "--overwrite")
    assert len(asked) == 7
    run(inputs, "--max-mask-area", "5", "--crf")
    assert len(asked) == 10


def faulty_folder(root, good):
    """A folder of good images among which all kinds of bad and of odd ones lie."""
    folder(root, good)
    save(root / "whole.jpg", 100, quality=95)
    cut = (root / "whole.jpg").read_bytes()
    for part in (0.3, 0.6, 0.9):
        (root / f"cut{int(part * 10)}.jpg").write_bytes(cut[: int(part * len(cut))])
    (root / "text.jpg").write_text("Dear diary,\n")
    (root / "empty.png").write_bytes(b"")
    save(root / "one.png", 101, shape=(1, 1))
    save(root / "cmyk.jpg", 102, "CMYK")
    Image.fromarray(np.random.default_rng(0).integers(0, 65536, (H, W), np.uint16)).save(root / "deep.png")
    save(root / "grey.png", 103, "L")
    save(root / "alpha.png", 104, "RGBA")
    exif = Image.Exif()
    exif[0x0112] = 6
    save(root / "turned.jpg", 105, exif=exif)
    (root / "gone.jpg").symlink_to(root / "nowhere.jpg")
    save(root / "locked.png", 106)
    return ["cut3.jpg", "cut6.jpg", "cut9.jpg", "text.jpg", "empty.png", "gone.jpg", "locked.png"]


def test_bad_images_are_listed_and_the_rest_are_done(run, tmp_path, monkeypatch):
    inputs = tmp_path / "p"
    bad = faulty_folder(inputs, 186)
    monkeypatch.setattr("sam_jax.batch.run.SAVE_SECONDS", 0.0)
    path_type = type(epath.Path(inputs))
    read = path_type.read_bytes

    def refuse(path):
        if path.name == "locked.png":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(path_type, "read_bytes", refuse)
    assert len([path for path in inputs.rglob("*") if path.is_file() or path.is_symlink()]) == 200
    code, out, err = run(inputs)
    assert (code, err) == (1, [])
    done = {name for name in contents(tmp_path / "out") if name.endswith(".json")}
    assert len(done) == 200 - len(bad)
    assert "193 images done" in out
    assert "7 images failed, listed in" in out
    listed = failures(tmp_path / "out")
    assert set(listed) == {str(inputs / name) for name in bad}
    assert "Permission denied" in listed[str(inputs / "locked.png")]
    assert "is broken" in listed[str(inputs / "cut6.jpg")]
    assert "does not exist" in listed[str(inputs / "gone.jpg")]
    turned = json.loads((tmp_path / "out/turned.json").read_text())
    assert (turned["image"]["width"], turned["image"]["height"]) == (H, W)
    assert all(str(inputs) in line for line in out.split("listed in")[1].splitlines()[1:])

    for name in bad:  # the images are mended, and the list goes
        (inputs / name).unlink()
        save(inputs / name, 1)
    monkeypatch.setattr(path_type, "read_bytes", read)
    code, out, _ = run(inputs)
    assert code == 0
    assert "7 images done" in out
    assert not (tmp_path / "out/failures.jsonl").exists()


def test_prompts_of_each_image(run, tmp_path, variables):
    inputs = folder(tmp_path / "p", 3)
    boxes = [[10.0, 5.0, 50.0, 30.0], [30.0, 20.0, 70.0, 47.0]]
    prompts = {
        "p0.png": [{"box": box, "category_id": 5, "score": 0.5} for box in boxes],
        "p1.png": [{"points": [[200, 3]]}],
    }
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    code, out, _ = run(inputs, "--prompts", tmp_path / "prompts.json", "--format", "coco", options=())
    assert code == 1
    assert "without any mask: 1 image" in out
    assert "point 200,3 lies outside the image" in failures(tmp_path / "out")[str(inputs / "sub/p1.png")]
    annotations = json.loads((tmp_path / "out/p0.json").read_text())["annotations"]
    predictor = SamPredictor(Sam(TINY), variables)
    predictor.set_image(noise(0))
    expected = predictor.predict_many(boxes=np.array(boxes), multimask_output=False)
    for annotation, box, mask in zip(annotations, boxes, expected.masks[:, 0], strict=True):
        assert annotation["box"] == box
        assert (annotation["category_id"], annotation["score"]) == (5, 0.5)
        assert (decode_mask(annotation["segmentation"]) != mask).mean() < 1e-3
    results = json.loads((tmp_path / "out/coco_results.json").read_text())
    assert [(result["category_id"], result["score"]) for result in results] == [(5, 0.5)] * 2

    prompts["p1.png"] = []  # the prompts of one image change: that one is done again
    prompts["p0.png"].pop()
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    code, out, _ = run(inputs, "--prompts", tmp_path / "prompts.json", options=())
    assert code == 0
    assert "already finished: 1" in out
    assert len(json.loads((tmp_path / "out/p0.json").read_text())["annotations"]) == 1


def test_nothing_passes(run, tmp_path):
    code, out, _ = run(folder(tmp_path / "p", 2), options=["--points-per-side=2", "--pred-iou-thresh=100"])
    assert code == 0
    assert out.startswith("2 images done with 0 masks")
    assert "without any mask: 2 images; lower --pred-iou-thresh" in out
    assert json.loads((tmp_path / "out/p0.json").read_text())["annotations"] == []


def test_boxes_of_a_detector(run, tmp_path):
    inputs = folder(tmp_path / "p", 2)
    images = [{"id": 71, "file_name": "p0.png"}, {"id": 72, "file_name": "sub/p1.png"}]
    boxes = [
        {"image_id": 72, "bbox": [5, 5, 30, 20], "category_id": 3, "score": 0.8},
        {"image_id": 72, "bbox": [5] * 3 + [0]},
    ]
    (tmp_path / "instances.json").write_text(json.dumps({"images": images, "annotations": []}))
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    arguments = ("--prompts", tmp_path / "boxes.json", "--image-ids", tmp_path / "instances.json", "--format", "coco")
    code, out, _ = run(inputs, *arguments, options=())
    assert code == 0
    assert "left out as empty or crowd: 1 box\n" in out
    (result,) = json.loads((tmp_path / "out/coco_results.json").read_text())
    assert (result["image_id"], result["category_id"], result["score"]) == (72, 3, 0.8)
    assert result["file_name"] == "sub/p1.png"


def test_tiles(run, tmp_path):
    save(tmp_path / "plan.tif", 5, shape=(100, 170))
    code, _, _ = run(tmp_path / "plan.tif", "--tile", "64", "--tile-overlap", "16")
    assert code == 0
    annotations = json.loads((tmp_path / "out/plan.json").read_text())["annotations"]
    assert annotations
    for annotation in annotations:
        mask = decode_mask(annotation["segmentation"])
        assert mask.shape == (100, 170)
        assert mask.sum() == annotation["area"]


@pytest.mark.long
def test_several_devices_do_what_one_does(run, tmp_path):
    inputs = folder(tmp_path / "p", 12)
    assert run(inputs, "--format", "coco,png", out=tmp_path / "one")[0] == 0
    assert run(inputs, "--format", "coco,png", out=tmp_path / "several", devices=jax.devices()[:3])[0] == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "several")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere.png",), "nowhere.png does not exist; expected an image, a directory, a pattern"),
        (("{p}", "--format", "pgn"), "unknown format 'pgn'; expected some of json, png, overlay, coco"),
        (("{p}", "--points-per-side", "0"), "points_per_side must be positive, not 0"),
        (("{p}", "--skip-full-image"), "set crop_n_layers"),
        (
            ("{p}", "--tile", "64", "--tile-overlap", "40"),
            "tile_overlap must be at least 1 and less than half of tile (64), not 40",
        ),
        (("{p}", "--tile-overlap", "40"), "tile_overlap has no effect without tile"),
        (("{p}", "--workers", "0"), "workers must be 1 or more, not 0"),
        (("{p}", "--image-ids", "x.json"), "--image-ids goes with --prompts"),
        (("{p}", "--prompts", "nowhere.json"), "nowhere.json is not a file; expected a JSON file of prompts"),
        (("{p}", "--prompts", "x.json", "--tile", "64"), "--tile is for everything mode, which --prompts switches off"),
        (("{p}", "--host", "0"), "--host and --num-hosts go together"),
        (("{p}", "--host", "2", "--num-hosts", "2"), "host 2 of 2 does not exist; hosts count from 0"),
        (("{p}", "--coordinator", "localhost:1"), "--coordinator goes with --distributed"),
        ((), "no images given; name files, directories, patterns or @LIST"),
    ],
)
def test_mistakes(run, tmp_path, arguments, words):
    inputs = folder(tmp_path / "p", 1)
    code, out, err = run(*(inputs if argument == "{p}" else argument for argument in arguments), options=())
    assert (code, out) == (2, "")
    assert len(err) == 1
    assert err[0].startswith("infer.py: ")
    assert words in err[0]
    assert not contents(tmp_path / "out")


def test_words_that_are_not_understood(run, tmp_path):
    inputs = folder(tmp_path / "p", 1)
    for arguments, words in (
        (("--points-per-side", "many"), "invalid literal for int() with base 10: 'many'"),
        (("--point-per-side", "3"), "Perhaps you meant: --points-per-side"),
        (("--dtype", "float16"), "invalid choice 'float16'"),
    ):
        code, out, err = run(inputs, *arguments, options=())
        assert (code, out) == (2, "")
        assert words in " ".join(" ".join(line.strip("│╭╰╮╯─ ") for line in err).split())
    assert not contents(tmp_path / "out")


def test_files_of_others_stay(run, tmp_path):
    """Results beside the images, as SA-1B has them: what is there already is not ours to replace."""
    inputs = folder(tmp_path / "p", 3)
    (inputs / "p0.json").write_text('{"image": {}, "annotations": []}')
    code, _, _ = run(inputs, out=inputs)
    assert code == 1
    assert "p0.json exists and was not written by this program" in failures(inputs)[str(inputs / "p0.png")]
    assert (inputs / "p0.json").read_text() == '{"image": {}, "annotations": []}'
    assert (inputs / "sub/p1.json").exists()
    assert run(inputs, "--format", "overlay,png", out=inputs)[0] == 1
    assert "already finished: 2" in run(inputs, "--format", "overlay,png", out=inputs)[1]


def test_a_disk_that_fills_up(run, tmp_path, monkeypatch):
    inputs = folder(tmp_path / "p", 6)
    path_type = type(epath.Path(tmp_path))
    write, written = path_type.write_bytes, []

    def fill_up(path, content):
        if not path.is_relative_to(tmp_path / "out"):  # JAX keeps compiled programs elsewhere
            return write(path, content)
        written.append(path)
        if len(written) > 3:
            write(path, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write(path, content)

    monkeypatch.setattr(path_type, "write_bytes", fill_up)
    code, out, err = run(inputs, "--workers", "1")
    assert (code, out, len(err)) == (1, "", 1)
    assert "No space left on device" in err[0]
    assert "free some space and run the same command again" in err[0]
    assert len(contents(tmp_path / "out")) == 3
    monkeypatch.setattr(path_type, "write_bytes", write)
    code, out, _ = run(inputs, "--workers", "1")
    assert code == 0
    assert "already finished: 3" in out
    assert len(contents(tmp_path / "out")) == 6


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 40 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=40k", "none", str(place)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.slow  # where file systems can be mounted, which not every machine allows
def test_a_real_disk_that_is_full(run, tmp_path, small_disk):
    inputs = folder(tmp_path / "p", 6)
    (small_disk / "ballast").write_bytes(bytes(28_000))
    code, out, err = run(inputs, out=small_disk / "out")
    assert (code, out, len(err)) == (1, "", 1)
    assert "No space left on device" in err[0]
    before = contents(small_disk / "out")
    assert len(before) < 6
    assert all(json.loads(content)["annotations"] for content in before.values())
    (small_disk / "ballast").unlink()
    code, out, err = run(inputs, out=small_disk / "out")
    assert (code, err) == (0, [])
    assert f"already finished: {len(before)}" in out or not before
    assert set(contents(small_disk / "out")) == {f"{'sub/' if i % 2 else ''}p{i}.json" for i in range(6)}


def test_hosts_that_do_not_know_each_other(run, tmp_path):
    """Each does its share whenever it likes; a run that has all of them finds everything done, and puts it together."""
    inputs = folder(tmp_path / "p", 5)
    assert run(inputs, "--format", "coco")[0] == 0
    for host, done in ((1, 2), (0, 3)):
        code, out, _ = run(inputs, "--format", "coco", "--num-hosts", 2, "--host", host, out=tmp_path / "shared")
        assert code == 0
        assert f"{done} images done" in out
    assert not (tmp_path / "shared/coco_results.json").exists()
    assert "already finished: 5" in run(inputs, "--format", "coco", out=tmp_path / "shared")[1]
    assert contents(tmp_path / "shared") == contents(tmp_path / "out")
