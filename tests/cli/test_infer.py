"""The script, end to end: what it writes, what it prints, and one line and exit code 2 for every mistake."""

import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from PIL import Image

import infer
from sam_jax.inference.predictor import SamPredictor
from sam_jax.models.sam import Sam
from sam_jax.ops.rle import decode_mask
from tests.tiny import TINY

ROOT = Path(__file__).parents[2]
H, W = 60, 96


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (H, W, 3), np.uint8)


@pytest.fixture
def image_path(image, tmp_path):
    Image.fromarray(image).save(tmp_path / "my cat.png")
    return tmp_path / "my cat.png"


@pytest.fixture(scope="module")
def predictor(variables, image):
    predictor = SamPredictor(Sam(TINY), variables)
    predictor.set_image(image)
    return predictor


@pytest.fixture
def run(checkpoint, tmp_path, monkeypatch, capsys):
    """run(*arguments) -> (exit code, stdout lines, stderr lines), with results in tmp_path / "out"."""

    def call(*arguments, model=checkpoint):
        options = ["--checkpoint", model, "--out", tmp_path / "out"]
        monkeypatch.setattr(sys, "argv", ["infer.py", *map(str, [*arguments, *options])])
        try:
            code = infer.main()
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        return code, captured.out.splitlines(), captured.err.splitlines()

    return call


class Results:
    """What lies in a directory: the JSON, and the PNGs' masks, each checked against its record."""

    def __init__(self, folder, name="my cat"):
        self.content = json.loads((folder / f"{name}.masks.json").read_text())
        self.annotations = self.content["annotations"]
        self.masks = [self._mask(folder / f"{name}.mask_{i}.png", a) for i, a in enumerate(self.annotations)]
        with Image.open(folder / f"{name}.overlay.jpg") as overlay:
            assert overlay.format == "JPEG"
            self.overlay_size = overlay.size
        wanted = {f"{name}.{part}" for part in ("masks.json", "overlay.jpg")}
        wanted |= {f"{name}.mask_{i}.png" for i in range(len(self.masks))}
        assert {path.name for path in folder.iterdir()} == wanted

    @staticmethod
    def _mask(path, annotation):
        with Image.open(path) as image:
            values = np.array(image)
        assert set(np.unique(values)) <= {0, 255}
        mask = values == 255
        np.testing.assert_array_equal(decode_mask(annotation["segmentation"]), mask)
        rows, cols = np.nonzero(mask)
        x, y = cols.min(), rows.min()
        assert annotation["bbox"] == [x, y, cols.max() - x, rows.max() - y]
        assert annotation["area"] == mask.sum()
        return mask


def assert_predicted(results, predicted):
    """The files hold what the predictor says; the overlay is checked elsewhere."""
    assert len(results.masks) == len(predicted.masks)
    for mask, expected in zip(results.masks, predicted.masks, strict=True):
        assert (mask != expected).mean() < 1e-3
    scores = [annotation["predicted_iou"] for annotation in results.annotations]
    np.testing.assert_allclose(scores, predicted.iou_predictions, atol=1e-4)


def test_one_point(run, image_path, predictor, tmp_path):
    code, out, err = run(image_path, "--point", "50,37.5")
    assert (code, err) == (0, [])
    assert len(out) == 2
    assert out[0].startswith(f"{image_path} ({W}x{H}): 3 masks in ")
    assert out[1] == f"wrote {tmp_path}/out/my cat.overlay.jpg, with my cat.masks.json and a PNG per mask beside it"
    results = Results(tmp_path / "out")
    assert results.content["image"] == {"file_name": "my cat.png", "width": W, "height": H}
    assert results.overlay_size == (3 * W, H)
    predicted = predictor.predict(np.array([[50, 37.5]]), np.array([1]))
    order = np.argsort(-predicted.iou_predictions)
    assert_predicted(results, type(predicted)(*(part[order] for part in predicted)))
    for annotation in results.annotations:
        assert annotation["point_coords"] == [[50.0, 37.5]]
        assert annotation["point_labels"] == [1]
        assert "box" not in annotation


def test_points_on_and_off(run, image_path, predictor, tmp_path):
    code, out, _ = run(image_path, "--point", "50,37", "--point", "10,20,0", "--point", "80,50,1")
    assert (code, len(out)) == (0, 2)
    coords, labels = [[50, 37], [10, 20], [80, 50]], [1, 0, 1]
    results = Results(tmp_path / "out")
    assert_predicted(results, predictor.predict(np.array(coords), np.array(labels), multimask_output=False))
    assert results.annotations[0]["point_coords"] == coords
    assert results.annotations[0]["point_labels"] == labels
    assert results.overlay_size == (W, H)


@pytest.mark.long
def test_two_boxes_are_two_objects(run, image_path, predictor, tmp_path):
    code, out, _ = run(image_path, "--box", "10,5,50,30", "--box", "40.5,20,90,59")
    assert (code, len(out)) == (0, 2)
    boxes = [[10, 5, 50, 30], [40.5, 20, 90, 59]]
    results = Results(tmp_path / "out")
    predicted = predictor.predict_many(boxes=np.array(boxes), multimask_output=False)
    assert_predicted(results, type(predicted)(*(part[:, 0] for part in predicted)))
    assert [annotation["box"] for annotation in results.annotations] == boxes
    assert "point_coords" not in results.annotations[0]
    assert [annotation["id"] for annotation in results.annotations] == [0, 1]


def test_a_point_with_a_box_and_a_mask(run, image_path, predictor, tmp_path):
    first = predictor.predict(np.array([[50, 37]]), np.array([1]))
    np.save(tmp_path / "logits.npy", first.low_res_masks[:1])
    prompt = {"point_coords": np.array([[50, 37]]), "point_labels": np.array([0]), "box": np.array([10, 5, 80, 50])}
    code, _, _ = run(image_path, "--point", "50,37,0", "--box", "10,5,80,50")
    assert code == 0
    results = Results(tmp_path / "out")
    assert_predicted(results, predictor.predict(**prompt, multimask_output=False))
    assert results.annotations[0]["box"] == [10, 5, 80, 50]
    assert results.annotations[0]["point_labels"] == [0]

    code, _, _ = run(image_path, "--point", "50,37,0", "--box", "10,5,80,50", "--mask-input", tmp_path / "logits.npy")
    assert code == 0
    prompt["mask_input"] = first.low_res_masks[:1]
    assert_predicted(Results(tmp_path / "out"), predictor.predict(**prompt, multimask_output=False))


def test_a_mask_alone(run, image_path, predictor, tmp_path):
    logits = np.random.default_rng(0).normal(scale=3, size=(1, 20, 20)).astype(np.float32)
    np.save(tmp_path / "logits.npy", logits)
    assert run(image_path, "--mask-input", tmp_path / "logits.npy")[0] == 0
    assert_predicted(Results(tmp_path / "out"), predictor.predict(mask_input=logits, multimask_output=False))


def test_a_rotated_grey_image_is_segmented_upright(run, image, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(image[..., 0]).save(tmp_path / "phone.jpg", exif=exif)
    code, out, _ = run(tmp_path / "phone.jpg", "--box", "10,5,50,90")
    assert code == 0
    assert f"({H}x{W})" in out[0]
    assert Results(tmp_path / "out", "phone").masks[0].shape == (W, H)


def test_an_image_one_pixel_wide(run, tmp_path):
    Image.fromarray(np.zeros((90, 1, 3), np.uint8)).save(tmp_path / "thin.png")
    code, _, err = run(tmp_path / "thin.png", "--point", "0.5,40")
    assert (code, err) == (0, [])
    assert (tmp_path / "out" / "thin.masks.json").exists()


POINT = ("--point", "50,37")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--point", "50"), ["'50' is not of the form X,Y or X,Y,LABEL"]),
        (("--point", "50,37,1,0"), ["'50,37,1,0' is not of the form X,Y"]),
        (("--point", "50;37"), ["'50;37' is not of the form"]),
        (("--point", "a,b"), ["'a,b' is not of the form"]),
        (("--point", ""), ["'' is not of the form"]),
        (("--point", "50,"), ["'50,' is not of the form"]),
        (("--point", "97,3"), ["point 97,3 lies outside the image, which is 96x60 pixels"]),
        (("--point=-5,3",), ["point -5,3 lies outside"]),
        (("--point", "-5,3"), ["point -5,3 lies outside"]),
        (("--point", "nan,3"), ["point nan,3"]),
        (("--point", "inf,3"), ["point inf,3"]),
        (("--point", "50,37,2"), ["point label 2", "1 (on the object) nor 0 (off it)"]),
        (("--point", "50,37,0.5"), ["point label 0.5"]),
        (("--point", "50,37,nan"), ["point label nan"]),
        (("--point", "50,37,-1"), ["point label -1"]),
        (("--box", "1,2,3"), ["'1,2,3' is not of the form X0,Y0,X1,Y1"]),
        (("--box", "1,2,3,x"), ["'1,2,3,x' is not of the form"]),
        (("--box", "50,5,10,30"), ["box 50,5,10,30 is empty", "x0 < x1"]),
        (("--box", "100,5,120,30"), ["box 100,5,120,30 lies outside the image, which is 96x60"]),
        (("--box", "1,2,3,nan"), ["box 1,2,3,nan"]),
        ((*POINT, "--box", "1,2,30,40", "--box", "5,6,70,50"), ["2 boxes", "give one box with them, or boxes alone"]),
        ((*POINT, "--mask-input", "nowhere.npy"), ["nowhere.npy does not exist"]),
        ((*POINT, "--mask-input", "."), ["not a .npy array"]),
        ((*POINT, "--format", "png"), ["--format does not go with --point"]),
        ((*POINT, "--points-per-side", "8"), ["--points-per-side does not go with --point"]),
        (("other.png", *POINT), ["--point is for one image, not 2; use --prompts FILE"]),
    ],
)
def test_mistakes_in_prompts(run, image_path, tmp_path, arguments, words):
    code, out, err = run(image_path, *arguments)
    assert_refused(code, out, err, words, tmp_path)


def assert_refused(code, out, err, words, tmp_path):
    """One line that says what is wrong, and nothing on disk."""
    assert code == 2
    assert out == []
    assert len(err) == 1
    assert err[0].startswith("infer.py: ")
    for word in words:
        assert word in err[0]
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((1, 64, 64), np.float32), ["(1, 64, 64)", "expected (1, 20, 20) logits"]),
        (np.zeros((20, 20), np.float32), ["(20, 20)", "expected (1, 20, 20)"]),
        (np.zeros((1, 20, 20), bool), ["bool", "float logits"]),
        (np.full((1, 20, 20), np.nan, np.float32), ["not finite"]),
    ],
)
def test_mistakes_in_mask_files(run, image_path, tmp_path, array, words):
    np.save(tmp_path / "logits.npy", array)
    code, out, err = run(image_path, *POINT, "--mask-input", tmp_path / "logits.npy")
    assert_refused(code, out, err, words, tmp_path)


def test_an_archive_is_no_mask(run, image_path, tmp_path):
    np.savez(tmp_path / "logits.npz", np.zeros((1, 20, 20), np.float32))
    code, out, err = run(image_path, *POINT, "--mask-input", tmp_path / "logits.npz")
    assert_refused(code, out, err, ["logits.npz is not a .npy array"], tmp_path)


def test_mistakes_in_images(run, image_path, tmp_path):
    content = image_path.read_bytes()
    (tmp_path / "short.png").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.jpg").write_text("Dear diary,\n")
    (tmp_path / "empty.jpg").write_bytes(b"")
    expected = {
        "nowhere.jpg": "does not exist; expected an image",
        "": "is a directory; expected an image",
        "short.png": "is broken",
        "text.jpg": "is not an image",
        "empty.jpg": "is not an image",
    }
    for name, words in expected.items():
        assert_refused(*run(tmp_path / name, *POINT), [str(tmp_path / name), words], tmp_path)


def test_an_image_that_claims_to_be_huge(run, tmp_path):
    header = b"IHDR" + struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\0IDAT\x35\xaf\x06\x1e")
    assert_refused(*run(tmp_path / "bomb.png", *POINT), ["20000x20000 = 400,000,000 pixels", "shrink it"], tmp_path)


def test_mistakes_in_checkpoints(run, image_path, tmp_path):
    for path, words in ((tmp_path / "nowhere", "does not exist"), (tmp_path, "config.json"), (image_path, "is a file")):
        assert_refused(*run(image_path, *POINT, model=path), [str(path), words], tmp_path)


def test_an_out_that_is_a_file(run, image_path, tmp_path):
    (tmp_path / "out").write_text("mine")
    code, out, err = run(image_path, *POINT)
    assert (code, out, len(err)) == (2, [], 1)
    assert str(tmp_path / "out") in err[0]
    assert (tmp_path / "out").read_text() == "mine"


def test_a_full_disk_leaves_nothing_half_written(run, image_path, tmp_path, monkeypatch):
    """The second file fails half way: what is there is whole, and no JSON claims that all is there."""
    path_type = type(epath.Path(tmp_path))
    write, written = path_type.write_bytes, []

    def fill_up(path, content):
        written.append(path)
        if len(written) == 1:
            return write(path, content)
        write(path, content[: len(content) // 2])
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(path_type, "write_bytes", fill_up)
    code, out, err = run(image_path, *POINT)
    assert (code, out, len(err)) == (2, [], 1)
    assert "No space left on device" in err[0]
    assert len(written) == 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["my cat.mask_0.png"]


def script(*arguments, cwd):
    """The script as people start it, from anywhere."""
    command = [sys.executable, str(ROOT / "infer.py"), *map(str, arguments)]
    environment = os.environ | {"XDG_CACHE_HOME": str(cwd), "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.long
def test_as_a_process(checkpoint, image_path, tmp_path):
    done = script(image_path.name, "--point", "50,37", "--checkpoint", checkpoint, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 2
    assert len(Results(tmp_path / "sam_out").masks) == 3  # where --out says nothing
    assert (tmp_path / "sam_jax" / "jit").is_dir()  # compiled programs are kept


def test_a_mistake_as_a_process(tmp_path):
    (tmp_path / "text.jpg").write_text("Dear diary,\n")
    done = script("text.jpg", "--point", "50,37", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "infer.py: text.jpg is not an image that PIL can read; convert it to JPEG or PNG\n"
    assert not (tmp_path / "sam_out").exists()
