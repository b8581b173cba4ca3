"""The command, end to end on a tiny model: what it prints and writes, and one line and exit code 2 for mistakes."""

import base64
import io
import json
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from sam_jax.cli.evaluate import main
from sam_jax.evaluation.sets.paper_sets import PAPER_SETS
from tests.evaluation.sets.test_paper_sets import ade20k
from tests.tiny_sa1b import write_folder


@pytest.fixture
def run(checkpoint, tmp_path, monkeypatch, capsys):
    """run(*arguments) -> (exit code, stdout, stderr without bars), with results in tmp_path / "out"."""

    def call(*arguments):
        try:
            code = main([*map(str, arguments), "--checkpoint", str(checkpoint), "--out", str(tmp_path / "out")])
        except SystemExit as error:
            code = error.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_a_report_of_two_sets(run, tmp_path):
    data = write_folder(tmp_path / "a & b", 3)
    ade20k(tmp_path / "ade")
    code, out, err = run(data, "--set", f"ade20k={tmp_path / 'ade'}", "--clicks", 1, 3, "--floors")
    assert code == 0
    assert "a & b: 100%" in err
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["format"] == "sam_jax.evaluation.v1"
    assert list(report["sets"]) == ["a & b", "ADE20K"]
    mine = report["sets"]["a & b"]
    assert (mine["images"], mine["masks"], mine["skipped"]) == (3, 9, [])
    learned = ["1 click", "1 click, oracle", "3 clicks", "box", "box + mask"]
    assert list(mine["miou"])[:7] == [*learned, "box, filled", "box, ellipse"]
    assert list(mine["calibration"]) == ["1 click", "3 clicks", "box", "box + mask"]
    for column, score in mine["miou"].items():
        low, high = score["interval"]
        assert low <= score["mean"] <= high
        both = [one["miou"][column]["mean"] for one in report["sets"].values()]
        assert report["average"]["miou"][column]["mean"] == pytest.approx(sum(both) / 2)
    assert mine["miou"]["box, filled"]["mean"] > 0.8  # they are rectangles
    assert re.search(r"^a & b +3 +9 +0\.\d{3} ±0\.\d{3}", out, re.M)
    assert "average of 2 sets" in out
    assert "Spearman" in out
    check_page((tmp_path / "out/report.html").read_text(), report)


def check_page(page, report):
    """Nothing from elsewhere, valid charts, names escaped, and images that open."""
    assert "a &amp; b" in page
    assert "a & b" not in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "<script" not in page
    charts = [ET.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, re.S)]
    assert len(charts) == 2
    assert all(len(chart.findall("polyline")) == 2 for chart in charts)
    images = re.findall(r"data:image/jpeg;base64,([^\"]+)", page)
    assert len(images) == 6
    for text in images:
        with Image.open(io.BytesIO(base64.b64decode(text))) as image:
            assert max(image.size) <= 400
    for kind in ("best", "median", "worst"):
        assert page.count(f"<b>{kind}</b> IoU 0.") + page.count(f"<b>{kind}</b> IoU 1.") == 2
    assert f"{report['sets']['ADE20K']['miou']['box']['mean']:.3f}" in page


def test_boxes_alone(run, tmp_path):
    code, _, _ = run(write_folder(tmp_path / "mine", 2), "--clicks", "--limit", 1)
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert code == 0
    assert list(report["sets"]["mine"]["miou"]) == ["box", "box + mask"]
    assert report["sets"]["mine"]["images"] == 1
    page = (tmp_path / "out/report.html").read_text()
    assert len(re.findall("<svg", page)) == 1  # calibration, but no clicks to draw


@pytest.mark.long
def test_masks_are_taken_to_edges_where_that_is_asked_for(run, tmp_path):
    data = write_folder(tmp_path / "mine", 2)

    def box_iou(*options):
        assert run(data, "--clicks", *options)[0] == 0
        report = json.loads((tmp_path / "out/report.json").read_text())
        return report["options"]["crf"], report["sets"]["mine"]["miou"]["box"]["mean"]

    plain, without, with_crf = box_iou(), box_iou("--no-crf"), box_iou("--crf")
    assert (plain[0], without[0], with_crf[0]) == (None, False, True)
    assert plain[1] == without[1] != with_crf[1]


def test_sets_are_described(run):
    code, out, _ = run("--list-sets")
    assert code == 0
    assert all(f"{name}: " in out for name in PAPER_SETS)
    assert "NOT CERTAIN" in out


def test_help_teaches(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "sam-jax evaluate data/my_images --checkpoint" in capsys.readouterr().out


def test_mistakes_end_in_one_line(run, tmp_path):
    data = write_folder(tmp_path / "mine", 1)
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ((), "nothing to evaluate: give DATA"),
        ((tmp_path / "nowhere",), "nowhere does not exist; expected SA-1B tars"),
        ((tmp_path / "empty",), "holds no data set; accepted"),
        ((data, "--clicks", 3, 1), "clicks are [3, 1]; expected increasing numbers"),
        ((data, "--limit", 0), "limit is 0; expected 1 or more"),
        ((data, "--set", "ADE20K"), "--set ADE20K is not of the form NAME=PATH"),
        ((data, "--set", f"ADE={data}"), "'ADE' is not one of the paper's sets"),
        ((data, data), "two sets are called mine"),
    ):
        code, out, err = run(*arguments)
        assert code == 2, arguments
        assert message in err
        assert err.startswith("sam-jax evaluate: ")
        assert len(err.splitlines()) == 1
        assert out == ""
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_none(tmp_path, capsys, monkeypatch):
    data = write_folder(tmp_path / "mine", 1)
    assert main([str(data), "--checkpoint", str(tmp_path / "mine")]) == 2
    err = capsys.readouterr().err
    assert "has no config.json; expected a directory written by" in err
    assert len(err.splitlines()) == 1


def test_broken_images_are_reported_not_fatal(run, tmp_path):
    data = write_folder(tmp_path / "mine", 2)
    (data / "sa_2.jpg").write_bytes(b"no image")
    code, _, _ = run(data, "--clicks", 1)
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert code == 0
    assert report["sets"]["mine"]["images"] == 1
    assert "sa_2.jpg is not an image" in report["sets"]["mine"]["skipped"][0]
    assert "sa_2.jpg is not an image" in (tmp_path / "out/report.html").read_text()
    assert np.isfinite(report["sets"]["mine"]["miou"]["1 click"]["mean"])
