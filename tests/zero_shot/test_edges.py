"""Edges of masks that are known, and the command from images to a report on a tiny model."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from sam_jax.cli.main import main
from sam_jax.inference.encoding import EncodedImages
from sam_jax.inference.mask_candidates import Crop, concatenate
from sam_jax.models.sam import Sam
from sam_jax.zero_shot.edge_floors import draw_floor
from sam_jax.zero_shot.edge_thinning import suppress, thin_map
from sam_jax.zero_shot.edges import EdgeSegmenter, edge_strength
from tests.tiny import TINY, random_variables
from tests.zero_shot.bsds import square, write_boundaries

SIZE = 72, 100


def edges_of(*low_res):
    """Of masks whose logits (20, 20) are known, in an image of 72x100 pixels: five of them to each logit."""
    chunk = {"low_res": jnp.asarray(np.array(low_res, np.float32).reshape(-1, 20, 20))}
    masks = dataclasses.replace(concatenate([]), pixels=[(chunk, row) for row in range(len(low_res))])
    crop = Crop((0, 0, SIZE[1], SIZE[0]), SIZE, (58, 80), EncodedImages(jnp.zeros(0), None))
    return thin_map(np.asarray(edge_strength(Sam(TINY), masks, crop))[: SIZE[0], : SIZE[1]])


def disc(x, y, radius, steepness):
    """Logits (20, 20) of a disc, its place and radius in pixels of the image."""
    rows, columns = (np.mgrid[:20, :20] + 0.5) * 5
    return steepness * (radius - np.hypot(columns - x, rows - y))


def test_a_disc_has_a_ring():
    edges = edges_of(disc(55, 33, 22, 0.8))
    y, x = np.nonzero(edges > 60)
    assert len(y) > 80
    assert np.abs(np.hypot(x + 0.5 - 55, y + 0.5 - 33) - 22).max() < 2.5
    assert edges.max() == 255
    assert not edges[:, :27].any()
    assert edges.any(axis=1).sum() >= 42


def test_of_two_masks_the_steeper_is_stronger_and_both_are_there():
    steep, flat = disc(30, 30, 15, 2.0), disc(75, 40, 15, 0.1)
    edges = edges_of(steep, flat)
    assert edges[:, :48].max() == 255
    assert 10 < edges[:, 55:].max() < 80
    np.testing.assert_array_equal(edges, edges_of(flat, steep))


def test_no_edge_where_the_image_ends():
    """The mask covers the left half: one edge down the middle, whatever lies beyond the image."""
    half = np.where(np.arange(20) < 10, 4.0, -4.0) * np.ones((20, 1))
    edges = edges_of(half)
    assert (edges.max(axis=1) > 250).all()
    assert set(np.nonzero(edges > 10)[1]) <= set(range(47, 54))
    assert not edges_of(np.full((20, 20), 5.0)).any()
    assert not edges_of().any()


def test_more_masks_than_are_looked_at_together():
    flat = disc(75, 40, 15, 0.1)
    steep = disc(30, 30, 15, 2.0)
    np.testing.assert_array_equal(edges_of(*[flat] * 64, steep), edges_of(flat, steep))
    np.testing.assert_array_equal(edges_of(*[flat] * 66), edges_of(flat))


def test_only_the_ridge_stays():
    ridge = np.exp(-((np.arange(40) - 19.0) ** 2) / 20)
    strength = np.tile(ridge, (30, 1)).astype(np.float32)
    edges = suppress(strength, np.zeros_like(strength), np.full_like(strength, -3))
    assert (edges[:, 19] == 255).all()
    assert np.count_nonzero(edges) == 30
    found = thin_map(strength)[5:-5]
    assert (found[:, 19] > 250).all()
    assert np.count_nonzero(found[:, 15:24]) == 20


def test_edges_a_pixel_apart_are_one():
    both = np.zeros((40, 60), np.float32)
    both[:, 30], both[:, 31] = 1.0, 0.9
    assert (np.count_nonzero(thin_map(both)[5:-5] > 200, axis=1) == 1).all()


def test_a_model_that_refines_masks_gives_other_edges():
    refining = dataclasses.replace(TINY, crf=True)
    image = np.random.default_rng(0).integers(0, 255, (72, 100, 3)).astype(np.uint8)
    found = []
    for config in (TINY, refining):
        segmenter = EdgeSegmenter(Sam(config), random_variables(TINY), 2, 4)
        found.append(segmenter.records(segmenter.find(image), SIZE)[0]["edges"])
        assert found[-1].shape == SIZE
        assert found[-1].max() == 255
    assert (found[0] != found[1]).any()


def test_sobel_finds_a_square():
    image = np.full((60, 90, 3), 20, np.uint8)
    image[20:40, 30:70] = 220
    edges = draw_floor("Sobel", image)
    assert edges[18:22, 40:60].any(axis=0).all()
    assert not edges[24:36, 35:65].any()
    assert not edges[:15].any()


@pytest.mark.oracle
def test_canny_finds_a_square():
    image = np.full((60, 90, 3), 20, np.uint8)
    image[20:40, 30:70] = 220
    edges = draw_floor("Canny", image)
    assert edges[18:22, 40:60].any(axis=0).all()
    assert not edges[26:34, 40:60].any()


@pytest.fixture
def run(checkpoint, tmp_path, capsys):
    """run(*arguments) -> (exit code, stdout, stderr)."""

    def call(*arguments):
        words = ["zero-shot", "edges", *map(str, arguments), "--out", str(tmp_path / "out")]
        if "--maps" not in words:
            words += ["--checkpoint", str(checkpoint)]
        code = main([*words, "--points-per-side", "3", "--points-per-batch", "9"])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def images(tmp_path):
    """Two images, one below the other's directory."""
    rng = np.random.default_rng(0)
    for name, size in (("one.png", (48, 70, 3)), ("sub/two.png", (66, 40, 3))):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, size).astype(np.uint8)).save(path)
    return tmp_path / "images"


@pytest.mark.long
def test_from_images_to_a_report(run, images, tmp_path):
    (images / "bad.png").write_bytes(b"no image")
    for name, size in (("one", (48, 70)), ("two", (66, 40))):
        write_boundaries(tmp_path / f"truth/val/{name}.mat", [square(size, 10, 10, 25)])
    scoring = "--bsds", tmp_path / "truth", "--thresholds", 3, "--processes", 1
    code, out, err = run(images, *scoring, "--floors")
    assert code == 1, err
    assert "2 images done with 2 edge maps" in out
    assert "bad.png is not an image" in out
    maps = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png"))
    assert maps == ["one.png", "sub/two.png"]
    with Image.open(tmp_path / "out/one.png") as image:
        assert (image.mode, image.size) == ("L", (70, 48))
        assert np.asarray(image).max() == 255
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["images"] == 2
    assert list(report["scores"])[1] == "Sobel"
    assert all(0 <= one["ods"] <= 1 for one in report["scores"].values())
    page = (tmp_path / "out/report.html").read_text()
    assert page.count("<figure") == 2
    assert "SAM paper" in page
    made = [*(tmp_path / "out").rglob("*.png"), *(tmp_path / "out/counts").rglob("*.json")]
    before = {path: path.stat().st_mtime_ns for path in made}
    assert len(before) >= 6
    code, out, _ = run(images, *scoring, "--floors")
    assert (code, "already finished: 2" in out) == (1, True)
    assert before == {path: path.stat().st_mtime_ns for path in before}
    code, out, _ = run(images, "--box-nms-thresh", 0.5)
    assert "2 images done" in out


def test_maps_of_others(run, tmp_path):
    truth = square((60, 80), 10, 10, 30)
    write_boundaries(tmp_path / "truth/a.mat", [truth])
    (tmp_path / "maps").mkdir()
    Image.fromarray((truth * 255).astype(np.uint8)).save(tmp_path / "maps/a.png")
    code, out, err = run(tmp_path / "maps", "--maps", "--bsds", tmp_path / "truth", "--processes", 2)
    assert (code, err.count("Traceback")) == (0, 0)
    assert "edges  0.982  0.982" in out  # thinning takes the four corners of 116 pixels
    Image.fromarray(np.zeros((60, 80, 3), np.uint8)).save(tmp_path / "maps/a.png")
    code, _, err = run(tmp_path / "maps", "--maps", "--bsds", tmp_path / "truth")
    assert code == 2
    assert "has the mode RGB; expected grey edges" in err


def test_two_processes(tmp_path):
    from sam_jax.zero_shot.edge_scores import EdgeMap, score_maps

    maps = []
    for number in range(3):
        truth = square((60, 80), 10 + number, 10, 30)
        path = write_boundaries(tmp_path / f"{number}.mat", [truth])
        Image.fromarray((truth * 255).astype(np.uint8)).save(tmp_path / f"{number}.png")
        counts = tmp_path / f"{number}.json"
        maps.append(EdgeMap(str(number), str(tmp_path / f"{number}.png"), str(path), str(counts)))
    found, failures = score_maps(maps, 3, 2, "edges")
    assert (found.ods, failures) == (pytest.approx(2 * 112 / (112 + 116)), [])


def test_mistakes(run, images, tmp_path):
    def line(*arguments):
        code, _, err = run(*arguments)
        assert code == 2
        return err.strip().splitlines()[-1]

    assert "--floors goes with --bsds" in line(images, "--floors")
    assert "--maps only scores edges" in line(images, "--maps")
    (tmp_path / "empty").mkdir()
    assert "has no .mat files" in line(images, "--bsds", tmp_path / "empty")
    write_boundaries(tmp_path / "other/9.mat", [square((48, 70), 1, 1, 9)])
    assert "boundaries of none of the images: it knows '9'" in line(images, "--bsds", tmp_path / "other")
    assert "thresholds is 0" in line(images, "--bsds", tmp_path / "other", "--thresholds", 0)
    (tmp_path / "out").mkdir(exist_ok=True)
    Image.fromarray(np.zeros((48, 70), np.uint8)).save(tmp_path / "out/one.png")
    code, out, _ = run(images)
    assert code == 1
    assert "one.png exists and was not written by this program" in out
