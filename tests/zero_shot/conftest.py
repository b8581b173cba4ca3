"""An image of noise, and the commands on it."""

import numpy as np
import pytest
from PIL import Image

from sam_jax.cli.main import main

SIZE = 72, 100


@pytest.fixture(scope="session")
def image():
    return np.random.default_rng(0).integers(0, 255, (*SIZE, 3)).astype(np.uint8)


@pytest.fixture
def run_task(checkpoint, tmp_path, image, capsys):
    """run_task(task, *arguments) -> (exit code, stdout, stderr), of images/7.png and 8.png."""
    (tmp_path / "images").mkdir()
    for name in ("7.png", "8.png"):
        Image.fromarray(image).save(tmp_path / "images" / name)

    def call(task, *arguments):
        words = [task, tmp_path / "images", "--out", tmp_path / "out", "--checkpoint", checkpoint, *arguments]
        code = main(["zero-shot", *map(str, words)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
