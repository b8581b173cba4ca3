"""What docs/video.md says can be run, runs, and the model that ships follows what moves."""

import shlex

import numpy as np
import pytest
from PIL import Image

from benchmarks import video as benchmark
from sam_jax import SamPredictor, load_model
from sam_jax.cli import main
from sam_jax.ops.masks import mask_to_box
from sam_jax.video.label_images import write_labels
from sam_jax.video.prompts import FramePrompt
from sam_jax.video.propagation import VideoPropagator
from tests.guides import ROOT, blocks
from tests.video.moving_cutouts import ClipFrames, make_clip

PAGE = "video.md"
IMAGES = ROOT / "tests" / "devset_mini"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The clip of the guide."""
    clip = make_clip(IMAGES, seed=5, frames=7)
    for name in ("frames", "masks"):
        (tmp_path / name).mkdir()
    for index, (frame, labels) in enumerate(zip(*clip, strict=True)):
        Image.fromarray(frame).save(tmp_path / "frames" / f"{index:05d}.png")
        write_labels(tmp_path / "masks" / f"{index:05d}.png", labels)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("line", blocks(PAGE, "bash")[0].splitlines())
def test_commands_run(line, here, capsys):
    words = shlex.split(line)
    assert main.main(words[1:]) == 0, capsys.readouterr().err
    assert "7 frames done" in capsys.readouterr().out


@pytest.mark.slow
def test_python_blocks_run(here, capsys):
    exec(compile(blocks(PAGE)[0], "video.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == 7


@pytest.mark.slow
def test_the_bundled_model_follows_what_moves():
    """Better than both simple rules on moving cut-outs, by the published measure."""
    clip = make_clip(IMAGES, seed=5, frames=10)
    frames, (model, variables) = ClipFrames(clip), load_model()
    boxes = np.array([mask_to_box(clip.labels[0] == k) for k in (1, 2)], np.float64)
    prompts = [FramePrompt(0, k, box=tuple(box)) for k, box in zip((1, 2), boxes, strict=True)]
    truth, predictor = list(clip.labels), SamPredictor(model, variables)
    carried = benchmark.measure(benchmark.carried(VideoPropagator(model, variables, frames, prompts)), truth)
    kept = benchmark.measure(benchmark.kept(predictor, frames, [1, 2], boxes), truth)
    assert carried["J"] > 0.7
    assert carried["J"] > kept["J"] + 0.1
