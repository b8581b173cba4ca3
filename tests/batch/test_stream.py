"""Many images through the threads: in order, each once, whatever goes wrong with some. The model is stood in for."""

import itertools
import re
import threading
import time
import tracemalloc
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from sam_jax.batch.image_list import find_images
from sam_jax.batch.result_files import OutputError
from sam_jax.batch.segmenters import EverythingSegmenter
from sam_jax.batch.stream import Hooks, Timings, segment_images
from sam_jax.models.sam import Sam
from tests.tiny import TINY


class Stub:
    """Finds an image's mean. Remembers which device's copy did which image, and how many were under way."""

    def __init__(self, log=None, device=None, seconds=0.0):
        self.log, self.device, self.seconds = [] if log is None else log, device, seconds

    def on_device(self, device):
        return Stub(self.log, device, self.seconds)

    def find(self, image, objects):
        time.sleep(self.seconds)
        if image.max() == 13:
            raise RuntimeError("thirteen")
        self.log.append((self.device, int(image.max()), jax.config.jax_default_device))
        return int(image.max())

    def records(self, found, size):
        if found == 17:
            raise ValueError("seventeen")
        return [{"found": found, "size": size}]


def read_number(path):
    """An image of one value, from its name; "bad" cannot be read."""
    number = int(path)
    if number == 11:
        raise ValueError(f"{path} is broken")
    return np.full((4, 5, 3), number, np.uint8)


NAMES = [str(i) for i in range(20)]


def run(names=NAMES, segmenter=None, **options):
    hooks = options.pop("hooks", None) or Hooks(read=read_number)
    return list(segment_images(names, segmenter or Stub(), hooks=hooks, **options))


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_order_and_errors_stay_with_their_image(devices, workers):
    results = run(devices=jax.local_devices()[:devices], workers=workers)
    assert [result.file.path for result in results] == NAMES
    for number, result in enumerate(results):
        if number in (11, 13, 17):
            assert result.records == []
            assert str(result.error) == {11: "11 is broken", 13: "thirteen", 17: "seventeen"}[number]
        else:
            assert result.error is None
            assert result.records == [{"found": number, "size": (4, 5)}]
            assert result.size == (4, 5)


def test_every_device_works_with_its_own_copy():
    stub = Stub(seconds=0.02)
    run(segmenter=stub, workers=2)
    assert {device for device, _, _ in stub.log} == set(jax.local_devices())
    assert all(device == default for device, _, default in stub.log)
    assert sorted(number for _, number, _ in stub.log) == [n for n in range(20) if n not in (11, 13)]


def test_hooks_see_each_image_once():
    finished, read = [], []
    prompts = {"3": "three"}

    def read_and_note(path):
        read.append(path)
        return read_number(path)

    hooks = Hooks(
        read=read_and_note,
        prompts=lambda image_file: prompts.get(image_file.path),
        is_finished=lambda image_file, objects: int(image_file.path) < 3 or objects == "three",
        finish=lambda result, objects, image: finished.append((result.file.path, objects, image.max())),
    )
    results = run(NAMES[:8], hooks=hooks)
    assert [result.is_skipped for result in results] == [True] * 4 + [False] * 4
    assert sorted(finished) == [(str(i), None, i) for i in range(4, 8)]
    assert sorted(read) == ["4", "5", "6", "7"]


def test_hooks_may_read_images_of_pillow():
    shapes = []
    hooks = Hooks(
        read=lambda path: Image.new("L", (4, 3), 7), finish=lambda result, objects, image: shapes.append(image.shape)
    )
    assert [result.size for result in run(NAMES[:2], hooks=hooks)] == [(3, 4)] * 2
    assert shapes == [(3, 4, 3)] * 2


def test_an_error_of_finish_is_the_images_own():
    def finish(result, objects, image):
        if result.file.path == "2":
            raise OSError(36, "File name too long")

    results = run(NAMES[:5], hooks=Hooks(read=read_number, finish=finish))
    assert [result.error is None for result in results] == [True, True, False, True, True]


def test_a_full_disk_ends_the_run():
    def finish(result, objects, image):
        if result.file.path == "4":
            raise OutputError("full")

    before = threading.active_count()
    results = segment_images(NAMES, Stub(), hooks=Hooks(read=read_number, finish=finish))
    assert [next(results).file.path for _ in range(4)] == ["0", "1", "2", "3"]
    with pytest.raises(OutputError, match="full"):
        next(results)
    assert threading.active_count() == before


def test_who_stops_listening_stops_the_run():
    stub = Stub(seconds=0.01)
    before = threading.active_count()
    results = segment_images(map(str, itertools.count()), stub, hooks=Hooks(read=lambda path: np.ones((2, 2, 3))))
    assert [next(results).file.path for _ in range(5)] == ["0", "1", "2", "3", "4"]
    results.close()
    assert threading.active_count() == before
    assert len(stub.log) < 30


def test_no_more_than_a_few_images_are_under_way():
    """A reader that runs ahead would fill memory: the listener takes its time here."""
    started = []

    def read(path):
        started.append(path)
        return np.full((100, 1000, 10, 3), 1, np.uint8)

    results = segment_images(map(str, range(60)), Stub(), hooks=Hooks(read=read), devices=jax.local_devices()[:1])
    tracemalloc.start()
    try:
        for number, _ in enumerate(results):
            assert len(started) <= number + 7
        assert tracemalloc.get_traced_memory()[1] < 10 * 3e6
    finally:
        tracemalloc.stop()


def resident_megabytes():
    return int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


@pytest.mark.slow
def test_memory_stays_flat(variables):
    """A thousand images of 0.3 megabytes each, through the tiny model: none is kept."""

    def read(path):
        return np.random.default_rng(int(path)).integers(0, 256, (300, 400, 3), np.uint8)

    options = dict(points_per_side=2, points_per_batch=4, pred_iou_thresh=-100.0, stability_score_thresh=0.0)
    segmenter = EverythingSegmenter(Sam(TINY), variables, **options)
    images, devices = map(str, range(1000)), jax.local_devices()[:1]
    memory = []
    for result in segment_images(images, segmenter, hooks=Hooks(read=read), devices=devices):
        assert result.error is None
        memory.append(resident_megabytes())
    assert min(memory[-50:]) < min(memory[50:100]) + 20


def test_timings():
    timings = Timings()
    run(NAMES[:10], segmenter=Stub(seconds=0.01), timings=timings, devices=jax.local_devices()[:1])
    assert timings.images == {"read": 10, "encode": 10, "decode": 10, "records": 10, "write": 10, "waited": 9}
    assert timings.seconds["decode"] >= 0.1
    header, *lines, waited = timings.table().splitlines()
    assert header.split() == ["stage", "images", "busy", "s", "ms/image"]
    assert [line.split()[:2] for line in lines] == [[s, "10"] for s in ("read", "encode", "decode", "records", "write")]
    assert waited.startswith("devices waited ")


def test_encoder_and_decoder_are_told_apart(variables):
    timings, options = Timings(), dict(points_per_side=2, points_per_batch=4)
    hooks = Hooks(read=lambda path: np.full((30, 40, 3), 99, np.uint8))
    segmenter = EverythingSegmenter(Sam(TINY), variables, **options)
    for result in segment_images("ab", segmenter, hooks=hooks, timings=timings, devices=jax.local_devices()[:1]):
        assert result.error is None
    assert timings.images["encode"] == timings.images["decode"] == 2
    assert timings.seconds["encode"] > 0
    assert timings.seconds["decode"] > 0


def test_images_from_disk(tmp_path):
    for value in (5, 6):
        Image.fromarray(np.full((4, 5, 3), value, np.uint8)).save(tmp_path / f"{value}.png")
    (tmp_path / "7.png").write_text("no image")
    five, six, seven = segment_images(find_images([str(tmp_path)]), Stub())
    assert [result.records[0]["found"] for result in (five, six)] == [5, 6]
    assert "is not an image" in str(seven.error)


def test_no_images():
    assert run([]) == []


def test_mistakes():
    with pytest.raises(ValueError, match="workers must be 1 or more, not 0"):
        run(workers=0)
