"""`sam-jax video`, end to end: what it writes, that it continues, and one line and exit code 2 for every mistake."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from sam_jax.cli import main
from sam_jax.cli.video import read_prompts
from sam_jax.video import run as video_run
from sam_jax.video.label_images import read_labels
from sam_jax.video.prompts import FramePrompt
from sam_jax.video.results import VideoResults

BOXES = ["--box", "10,8,50,40", "--box", "50,30,79,47@2:4"]


@pytest.fixture
def frames(tmp_path):
    first = np.random.default_rng(0).integers(0, 256, (48, 80, 3), np.uint8)
    (tmp_path / "frames").mkdir()
    for t in range(5):
        Image.fromarray(np.roll(first, max(0, t - 3), axis=1)).save(tmp_path / "frames" / f"f{t}.png")
    return tmp_path / "frames"


@pytest.fixture
def call(checkpoint, frames, tmp_path, capsys):
    def run(*arguments, out="out"):
        options = ["--checkpoint", checkpoint, "--out", tmp_path / out, "--occlusion-iou", "0"]
        code = main.main(["video", *map(str, [*(arguments or [frames, *BOXES]), *options])])
        captured = capsys.readouterr()
        return code, captured.out.splitlines(), captured.err.splitlines()

    return run


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.long
def test_results(call, frames, tmp_path):
    code, printed, _ = call(frames, *BOXES)
    assert code == 0
    assert printed[0].startswith("5 frames done, 7 of them now")
    out = tmp_path / "out"
    assert {str(name) for name in contents(out)} == {
        "scores.json",
        "scores.csv",
        *(f"masks/f{t}.png" for t in range(5)),
    }
    rows = json.loads((out / "scores.json").read_text())["rows"]
    assert [(row["frame"], row["object"]) for row in rows] == [(f"f{t}", k) for t in range(5) for k in (1, 4)]
    assert [row["frame"] for row in rows if row["prompted"]] == ["f0", "f2"]
    for row, line in zip(rows, csv.DictReader((out / "scores.csv").read_text().splitlines()), strict=True):
        labels = read_labels(out / "masks" / f"{row['frame']}.png")
        assert labels.shape == (48, 80)
        assert (labels == row["object"]).sum() == row["area"] == int(line["area"])
    assert any(row["area"] > 0 for row in rows if not row["prompted"])
    assert call(frames, *BOXES)[1][0] == "5 frames were finished already"
    # Scored against themselves.
    code, printed, _ = call(frames, *BOXES, "--truth", out / "masks")
    assert printed[-1].startswith("J&F 1.000")


def test_an_interrupted_run_continues(call, frames, tmp_path, monkeypatch):
    assert call()[0] == 0
    monkeypatch.setattr(video_run, "SAVE_EVERY", 2)
    write, seen = VideoResults.write, []

    def write_and_stop(self, found):
        seen.append(found.frame)
        if len(seen) == 6:
            raise KeyboardInterrupt
        write(self, found)

    monkeypatch.setattr(VideoResults, "write", write_and_stop)
    assert call(out="again")[0] == 130
    assert call(out="again")[0] == 0
    assert seen == [0, 1, 2, 3, 4, 1, 4, 1, 0]
    assert contents(tmp_path / "again") == contents(tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no prompts given; mark each object with --box or --point on some frame (see --help)"),
        (["--box", "1,2,3"], "'1,2,3' is not of the form X0,Y0,X1,Y1[@FRAME[:OBJECT]]"),
        (["--point", "1,2@x"], "'1,2@x' is not of the form X,Y[,LABEL][@FRAME[:OBJECT]]"),
        (["--point", "1,2,7"], "point label 7 is neither 1 (on the object) nor 0 (off it)"),
        (["--box", "1,2,3,4@9"], "frame 9 does not exist; the video has frames 0 to 4"),
        (["--point", "200,2"], "point 200,2 lies outside of the frame 0, which is 80x48 pixels"),
        (["--box", "1,2,3,4", "--memory", "0"], "memory must be positive, not 0"),
    ],
)
def test_mistakes(arguments, message, call, frames, tmp_path):
    assert call(frames, *arguments) == (2, [], [f"sam-jax video: {message}"])
    assert not (tmp_path / "out").exists()


def test_prompts_of_the_command_line():
    found = read_prompts(["1,2,3,4", "5,6,7,8", "1,2,3,9@4:1"], ["1,2", "3,4,0@4:2"])
    assert found == [
        FramePrompt(0, 1, box=(1, 2, 3, 4)),
        FramePrompt(0, 2, box=(5, 6, 7, 8)),
        FramePrompt(4, 1, box=(1, 2, 3, 9)),
        FramePrompt(0, 1, ((1, 2),), (1,)),
        FramePrompt(4, 2, ((3, 4),), (0,)),
    ]


@pytest.mark.oracle
def test_a_file_and_an_overlay(call, frames, tmp_path):
    """The overlay of a directory is a video that can be segmented in turn."""
    import av

    assert call(frames, *BOXES, "--overlay")[0] == 0
    with av.open(str(tmp_path / "out" / "overlay.mp4")) as container:
        assert len([None for _ in container.decode(video=0)]) == 5
    assert call(tmp_path / "out" / "overlay.mp4", *BOXES, out="second")[0] == 0
    assert len(list((tmp_path / "second" / "masks").iterdir())) == 5
