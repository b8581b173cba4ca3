"""Streams many images: threads read ahead, run the devices, and make records and write results, all in parallel.

    model, variables = sam_jax.load_model()
    segmenter = EverythingSegmenter(model, variables, points_per_side=16)
    for result in segment_images(find_images(["images/"]), segmenter):
        print(result.file.path, result.error or len(result.records))

Memory does not grow with the number of images: a fixed number of them is in flight at any time.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from etils import epath
from PIL import Image

from sam_jax.batch.image_list import ImageFile
from sam_jax.batch.prompt_files import ImageObjects
from sam_jax.batch.result_files import OutputError, Record
from sam_jax.batch.segmenters import Segmenter
from sam_jax.inference.encoding import encoder_seconds
from sam_jax.inference.images import as_array, read_image

STAGES = ("read", "encode", "decode", "records", "write")


@dataclass(frozen=True, eq=False)
class ImageResult:
    """The result for an image.

    Attributes:
      file: the image.
      size: (H, W), pixels; None if the image was not read.
      records: one dictionary per mask, with `segmentation` as compressed COCO RLE.
      error: why there are no records, if the image failed.
      is_skipped: whether `Hooks.is_finished` was true, and nothing was done.
    """

    file: ImageFile
    size: tuple[int, int] | None = None
    records: list[Record] = field(default_factory=list)
    error: Exception | None = None
    is_skipped: bool = False


class Timings:
    """Seconds that each stage was busy, summed over its threads, and that the devices waited for images."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys((*STAGES, "waited"), 0.0)
        self.images = dict.fromkeys((*STAGES, "waited"), 0)
        self._lock = threading.Lock()

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Adds the duration of a `with` block."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - start)

    def add(self, stage: str, seconds: float) -> None:
        """Adds the seconds of one image."""
        with self._lock:
            self.seconds[stage] += seconds
            self.images[stage] += 1

    def merge(self, other: Timings) -> None:
        """Adds what another process measured."""
        with self._lock:
            for stage in self.seconds:
                self.seconds[stage] += other.seconds[stage]
                self.images[stage] += other.images[stage]

    def __getstate__(self) -> dict[str, Any]:
        """Without its lock, which cannot go to another process."""
        return {"seconds": self.seconds, "images": self.images}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]
        self.__dict__.update(state)

    def table(self) -> str:
        """A table with one line per stage."""
        lines = [f"{'stage':<8}{'images':>9}{'busy s':>10}{'ms/image':>10}"]
        for stage in STAGES:
            count, seconds = self.images[stage], self.seconds[stage]
            lines.append(f"{stage:<8}{count:>9}{seconds:>10.1f}{1000 * seconds / max(1, count):>10.0f}")
        return "\n".join([*lines, f"devices waited {self.seconds['waited']:.1f} s for images"])


@dataclass(frozen=True)
class Hooks:
    """Functions that a run calls for each image, from several threads.

    Attributes:
      read: path -> (H, W, 3) uint8, or a Pillow image.
      prompts: image -> its objects, for segmenters that need them.
      is_finished: images for which this is true are skipped.
      finish: called with each good result, its objects and the image, for example to write results. An `OutputError`
        ends the run; with any other error only this image fails.
    """

    read: Callable[[str], np.ndarray | Image.Image] = read_image
    prompts: Callable[[ImageFile], ImageObjects | None] = lambda image_file: None
    is_finished: Callable[[ImageFile, ImageObjects | None], bool] = lambda image_file, objects: False
    finish: Callable[[ImageResult, ImageObjects | None, np.ndarray], None] = lambda result, objects, image: None


def segment_images(
    images: Iterable[ImageFile | epath.PathLike],
    segmenter: Segmenter,
    *,
    workers: int = 2,
    devices: Sequence[jax.Device] | None = None,
    hooks: Hooks | None = None,
    timings: Timings | None = None,
) -> Iterator[ImageResult]:
    """Yields the results of images, in the order of the images.

    Each device has a thread and its own copy of the variables, and takes the next image when it is free; records do not
    depend on the device. `workers` threads read images, and as many make records and call `hooks.finish`. A failed
    image is a result with an `error`, and the others continue.

    Args:
      images: an `ImageList`, or paths; may be endless.
      segmenter: see `segmenters`.
      devices: None means all of this host's.
      timings: is filled with the time of each stage.

    Raises:
      ValueError: workers is below 1.
      OutputError: results can no longer be written, for instance because the disk is full.
    """
    if workers < 1:
        raise ValueError(f"workers must be 1 or more, not {workers}")
    devices = list(jax.local_devices() if devices is None else devices)
    run = _Run(segmenter, workers, devices, hooks or Hooks(), timings or Timings())
    waiting: deque[_Job] = deque()
    try:
        for number, image in enumerate(images):
            waiting.append(run.start(image if isinstance(image, ImageFile) else ImageFile.single(image, number + 1)))
            if len(waiting) > len(devices) + 2 * workers:
                yield waiting.popleft().done.result()
        while waiting:
            yield waiting.popleft().done.result()
    finally:
        run.stop()


@dataclass(eq=False)
class _Job:
    """An image in flight; each stage fills in its part, and the image is freed when it is no longer needed."""

    file: ImageFile
    objects: ImageObjects | None = None
    image: np.ndarray | None = None
    found: Any = None
    done: Future[ImageResult] = field(default_factory=Future)


class _Run:
    """The threads of a run, one pool per stage: each stage submits its jobs to the pool of the next."""

    def __init__(
        self, segmenter: Segmenter, workers: int, devices: Sequence[jax.Device], hooks: Hooks, timings: Timings
    ) -> None:
        self._segmenter, self._hooks, self._timings = segmenter, hooks, timings
        self._free_devices = deque(devices)
        self._of_thread = threading.local()
        self._readers = ThreadPoolExecutor(workers, "read")
        self._finders = ThreadPoolExecutor(len(devices), "device")
        self._finishers = ThreadPoolExecutor(workers, "finish")

    def start(self, image_file: ImageFile) -> _Job:
        job = _Job(image_file)
        self._readers.submit(self._guarded, self._read, job)
        return job

    def stop(self) -> None:
        """Ends all threads after their current jobs."""
        pools = (self._readers, self._finders, self._finishers)
        for pool in pools:
            pool.shutdown(wait=False, cancel_futures=True)
        for pool in pools:
            pool.shutdown()

    def _guarded(self, stage: Callable[[_Job], None], job: _Job) -> None:
        """Runs a stage; any error becomes the job's result, so that nothing waits forever."""
        try:
            stage(job)
        except OutputError as error:
            job.done.set_exception(error)
        except Exception as error:
            job.image = job.found = None
            job.done.set_result(ImageResult(job.file, error=error))
        except BaseException as error:
            job.done.set_exception(error)

    def _read(self, job: _Job) -> None:
        with self._timings.measure("read"):
            job.objects = self._hooks.prompts(job.file)
            if self._hooks.is_finished(job.file, job.objects):
                job.done.set_result(ImageResult(job.file, is_skipped=True))
                return
            image = self._hooks.read(job.file.path)
            job.image = as_array(image) if isinstance(image, Image.Image) else image
        self._finders.submit(self._guarded, self._find, job)

    def _find(self, job: _Job) -> None:
        start, encoded = time.perf_counter(), encoder_seconds()
        last_end = getattr(self._of_thread, "last_end", None)
        if last_end is not None:
            self._timings.add("waited", start - last_end)
        try:
            with jax.default_device(self._device()):
                job.found = self._own_segmenter().find(job.image, job.objects)  # type: ignore[arg-type]
        finally:
            self._of_thread.last_end = time.perf_counter()
            encoding = encoder_seconds() - encoded
            self._timings.add("encode", encoding)
            self._timings.add("decode", self._of_thread.last_end - start - encoding)
        self._finishers.submit(self._guarded, self._finish, job)

    def _device(self) -> jax.Device:
        if not hasattr(self._of_thread, "device"):
            self._of_thread.device = self._free_devices.popleft()
        device: jax.Device = self._of_thread.device
        return device

    def _own_segmenter(self) -> Segmenter:
        if not hasattr(self._of_thread, "segmenter"):
            self._of_thread.segmenter = self._segmenter.on_device(self._device())
        segmenter: Segmenter = self._of_thread.segmenter
        return segmenter

    def _finish(self, job: _Job) -> None:
        assert job.image is not None
        size = job.image.shape[:2]
        with self._timings.measure("records"):
            records = self._segmenter.records(job.found, size)
        job.found = None  # frees its bits on the device
        result = ImageResult(job.file, size, records)
        with self._timings.measure("write"):
            self._hooks.finish(result, job.objects, job.image)
        job.image = None
        job.done.set_result(result)
