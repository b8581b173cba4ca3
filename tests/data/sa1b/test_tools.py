"""SA-1B checked, measured and indexed: `sam-jax data`."""

import json

import numpy as np
import pytest
from PIL import Image

from sam_jax.cli.data import main
from sam_jax.data.sa1b import Sa1bTars
from sam_jax.data.sa1b.statistics import measure, measure_image
from tests.sa1b_pairs import annotation_of, files_of, make_pair, write_folder, write_tar


def broken_folder(path):
    """Ten pairs, of which eight are broken in as many ways: (folder, what `check` has to say of them)."""
    files = files_of(range(10))

    def change(number, **fields):
        content = json.loads(files[f"sa_{number}.json"])
        content["annotations"][1] |= fields
        files[f"sa_{number}.json"] = json.dumps(content).encode()

    files["sa_1.jpg"] = files["sa_1.jpg"][:-400]
    files["sa_2.json"] = files["sa_2.json"][:-9]
    change(3, segmentation={"size": [40, 60], "counts": "0l1"})
    change(4, segmentation={"size": [60, 40], "counts": "PX2"})
    change(5, area=17)
    change(6, bbox=[0, 0, 3, 3])
    change(7, bbox=None)
    files["sa_8.jpg"] = make_pair(8, h=44)[0]
    write_folder(path, files)
    return {
        1: "sa_1.jpg cannot be decoded",
        2: "sa_2.json is not JSON",
        3: "sa_3.json: mask 1 has runs of",
        4: "sa_4.json: mask 1 has size [60, 40]",
        5: "sa_5.json: mask 1 has area 17, but its RLE covers 300 pixels",
        6: "sa_6.json: mask 1 has bbox [0, 0, 3, 3]",
        7: "sa_7.json: mask 1 has bbox None",
        8: "sa_8.json: mask 0 has size [40, 60], but the image is [44, 60]",
    }


def test_check_lists_every_bad_record(tmp_path, capsys):
    faults = broken_folder(tmp_path / "bad")
    assert main(["check", str(tmp_path / "bad"), "--threads", "2"]) == 1
    printed = capsys.readouterr().out
    for fault in faults.values():
        assert fault in printed
    assert f"10 records, {len(faults)} bad" in printed
    assert len(printed.splitlines()) == len(faults) + 1


def test_check_is_content_with_good_records_and_not_with_lost_ones(tars, capsys):
    assert main(["check", str(tars)]) == 0
    assert "5 records, 0 bad; 0 files without a partner" in capsys.readouterr().out
    write_tar(tars / "sa_000003.tar", {**files_of([8]), "sa_9.jpg": b""})
    assert main(["check", str(tars)]) == 1


def test_check_takes_boxes_with_and_without_the_last_pixel(tmp_path):
    files = files_of([1])
    content = json.loads(files["sa_1.json"])
    content["annotations"][0]["bbox"][2] += 1
    del content["annotations"][1]["bbox"]
    write_folder(tmp_path / "coco", {**files, "sa_1.json": json.dumps(content).encode()})
    assert main(["check", str(tmp_path / "coco")]) == 0


def test_index_from_the_command_line(tars, capsys):
    assert main(["index", str(tars)]) == 0
    assert len(list(tars.glob("*.index.npz"))) == 2
    assert "5 pairs" in capsys.readouterr().out
    assert main(["index", str(tars / "nowhere")]) == 2
    assert capsys.readouterr().err.startswith("sam-jax data index: ")


def test_figures_of_known_shapes():
    h, w = 40, 80
    masks = np.zeros((4, h, w), bool)
    masks[0, 10:20, 40:60] = True  # a box
    masks[1, :, 10:12] = True  # runs that go on in the next column
    masks[2, 0:20, 0:20] = True  # an L: half a square with a quarter cut out
    masks[2, 10:20, 10:20] = False
    y, x = np.mgrid[:h, :w]
    masks[3] = (y + 0.5 - 20) ** 2 + (x + 0.5 - 40) ** 2 < 15**2
    figures = measure_image([annotation_of(mask) for mask in masks])
    assert figures[:, 0] == pytest.approx(np.sqrt(masks.sum(axis=(1, 2)) / (h * w)))
    assert figures[:3, 1] == pytest.approx([0, 0, 1 - 300 / 350])
    assert 0 < figures[3, 1] < 0.05
    assert figures[0, 2:] == pytest.approx([50 / 80, 15 / 40])
    assert figures[1, 2:] == pytest.approx([11 / 80, 0.5])
    assert figures[3, 2:] == pytest.approx([0.5, 0.5])
    empty = {"segmentation": {"size": [h, w], "counts": [h * w]}}
    assert measure_image([empty]).shape == measure_image([]).shape == (0, 4)


def test_measure_takes_images_from_all_over(tars):
    assert measure(Sa1bTars(tars), 0).masks_per_image.tolist() == [2] * 5
    seen = []
    measure(Sa1bTars(tars), 2, lambda order: seen.extend(order.tolist()) or order)
    assert seen == [0, 2]


def test_stats_writes_a_table_figures_and_an_image(tars, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["stats", str(tars), "--out", str(out), "--limit", "4"]) == 0
    figures = json.loads((out / "stats.json").read_text())
    assert (figures["images"], figures["masks"]) == (4, 8)
    assert figures["masks_per_image"]["mean"] == 2
    assert figures["concavity"]["largest"] == pytest.approx(0)
    assert sum(map(sum, figures["centres"]["counts"])) == sum(figures["relative_size"]["histogram"]["counts"]) == 8
    assert "4 images, 8 masks" in capsys.readouterr().out
    with Image.open(out / "stats.png") as image:
        colours = {colour for _, colour in image.getcolors(1 << 20)}
    assert {(43, 108, 176), (13, 28, 66), (255, 232, 140)} <= colours  # bars, and both ends of the map


def test_stats_leaves_broken_images_out(tmp_path, capsys):
    broken_folder(tmp_path / "bad")
    assert main(["stats", str(tmp_path / "bad"), "--out", str(tmp_path)]) == 0
    assert "3 images could not be read" in capsys.readouterr().out
    write_folder(tmp_path / "worse", {"sa_1.jpg": b"", "sa_1.json": b"{}"})
    assert main(["stats", str(tmp_path / "worse"), "--out", str(tmp_path)]) == 2
    assert "none of 1 images has a mask" in capsys.readouterr().err


def test_wrong_numbers_are_refused(tars, capsys):
    assert main(["check", str(tars), "--threads", "0"]) == 2
    assert main(["stats", str(tars), "--limit", "-1"]) == 2
    assert "--limit must be 0 or more, not -1" in capsys.readouterr().err
