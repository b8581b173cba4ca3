import json

import jax
import numpy as np
from etils import epath
from PIL import Image

from sam_jax.training.metric_writer import LineFile, MetricWriter, to_floats


def rows_of(root):
    return [json.loads(line) for line in (root / "log.jsonl").read_text().splitlines()]


def test_rows_and_overlays_are_written_and_a_resumed_run_repeats_none(tmp_path):
    root = epath.Path(tmp_path)
    with MetricWriter(root, 0) as writer:
        for step in (1, 2, 3):
            writer.write(step, {"loss": 1.0 / step})
        writer.write(3, {"loss": 0.5}, group="eval")
        writer.image(2, np.full((4, 6, 3), 200, np.uint8))
    assert rows_of(tmp_path)[-1] == {"step": 3, "eval_loss": 0.5}
    with Image.open(tmp_path / "overlays" / "step_0000002.png") as image:
        assert image.size == (6, 4)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # a process was killed while it wrote
    with MetricWriter(root, 2) as writer:
        writer.write(3, {"loss": 7.0})
    assert rows_of(tmp_path) == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}, {"step": 3, "loss": 7.0}]
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_file_that_cannot_be_appended_to_is_written_whole(tmp_path):
    class Remote:
        """As much of an object store's path as is used: it has no way to append."""

        parent = epath.Path(tmp_path)

        def __str__(self):
            return "gs://bucket/log.txt"

        def write_text(self, text):
            (tmp_path / "log.txt").write_text(text)

    path = Remote()
    file = LineFile(path, ["old"])
    file.append("new")
    assert (tmp_path / "log.txt").read_text() == "old\n"  # not yet: once a minute
    file.close()
    assert (tmp_path / "log.txt").read_text() == "old\nnew\n"


def test_to_floats_keeps_five_digits():
    assert to_floats({"a": jax.numpy.float32(1.2345678), "b": jax.numpy.int32(3)}) == {"a": 1.2346, "b": 3.0}
