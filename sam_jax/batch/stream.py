"""Many photos: reading ahead, the devices at work, and everything after them in threads beside them.

    model, variables = sam_jax.load_model()
    segmenter = EverythingSegmenter(model, variables, points_per_side=16)
    for result in segment_photos(find_photos(["photos/"]), segmenter):
        print(result.photo.path, result.error or len(result.records))

Memory does not grow with the number of photos: a fixed number of them is on the way at any time.
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

from sam_jax.batch.image_list import Photo
from sam_jax.batch.prompt_files import PhotoObjects
from sam_jax.batch.result_files import OutputError, Record
from sam_jax.batch.segmenters import Segmenter
from sam_jax.inference.encoding import encoder_seconds
from sam_jax.inference.images import as_array, read_image

STAGES = ("read", "encode", "decode", "records", "write")


@dataclass(frozen=True, eq=False)
class PhotoResult:
    """What came of a photo.

    Attributes:
      size: (H, W), pixels; None where the photo was not read.
      records: one dictionary per mask, `segmentation` as compressed COCO RLE.
      error: why there are none, if something went wrong with this photo.
      is_skipped: `is_finished` said so, and nothing was done.
    """

    photo: Photo
    size: tuple[int, int] | None = None
    records: list[Record] = field(default_factory=list)
    error: Exception | None = None
    is_skipped: bool = False


class Timings:
    """Seconds that each stage was busy, over all its threads, and that the devices waited for photos."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys((*STAGES, "waited"), 0.0)
        self.photos = dict.fromkeys((*STAGES, "waited"), 0)
        self._lock = threading.Lock()

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Adds the time until its end."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - start)

    def add(self, stage: str, seconds: float) -> None:
        """Adds some seconds for one photo."""
        with self._lock:
            self.seconds[stage] += seconds
            self.photos[stage] += 1

    def table(self) -> str:
        """A line per stage."""
        lines = [f"{'stage':<8}{'photos':>9}{'busy s':>10}{'ms/photo':>10}"]
        for stage in STAGES:
            count, seconds = self.photos[stage], self.seconds[stage]
            lines.append(f"{stage:<8}{count:>9}{seconds:>10.1f}{1000 * seconds / max(1, count):>10.0f}")
        return "\n".join([*lines, f"devices waited {self.seconds['waited']:.1f} s for photos"])


@dataclass(frozen=True)
class Hooks:
    """What a run does with each photo besides segmenting it; all are called by several threads.

    Attributes:
      read: path -> (H, W, 3) uint8, or an image of Pillow.
      prompts: photo -> its objects, for segmenters that want them.
      is_finished: photos of which this is true are passed over.
      finish: called with each good result, its objects and the picture: to write results, for example. An `OutputError`
        ends the run, any other error is that photo's.
    """

    read: Callable[[str], np.ndarray | Image.Image] = read_image
    prompts: Callable[[Photo], PhotoObjects | None] = lambda photo: None
    is_finished: Callable[[Photo, PhotoObjects | None], bool] = lambda photo, objects: False
    finish: Callable[[PhotoResult, PhotoObjects | None, np.ndarray], None] = lambda result, objects, image: None


def segment_photos(
    photos: Iterable[Photo | epath.PathLike],
    segmenter: Segmenter,
    *,
    workers: int = 2,
    devices: Sequence[jax.Device] | None = None,
    hooks: Hooks | None = None,
    timings: Timings | None = None,
) -> Iterator[PhotoResult]:
    """Results of photos, in the photos' order.

    Each device has a thread and its own copy of the variables, and takes the next photo when it is free; a photo's
    records do not depend on which device it meets. `workers` threads read photos, and as many make records and call
    `hooks.finish`. A photo with which anything goes wrong is a result with an `error`, and the rest go on.

    Args:
      photos: a `PhotoList`, or paths; may be endless.
      segmenter: what to do with each, see `segmenters`.
      devices: default: all of this host's.
      timings: is filled with where the time went.

    Raises:
      OutputError: results cannot be written any more (a full disk).
    """
    if workers < 1:
        raise ValueError(f"workers must be 1 or more, not {workers}")
    devices = list(jax.local_devices() if devices is None else devices)
    run = _Run(segmenter, workers, devices, hooks or Hooks(), timings or Timings())
    waiting: deque[_Job] = deque()
    try:
        for number, photo in enumerate(photos):
            waiting.append(run.start(photo if isinstance(photo, Photo) else Photo.single(photo, number + 1)))
            if len(waiting) > len(devices) + 2 * workers:
                yield waiting.popleft().done.result()
        while waiting:
            yield waiting.popleft().done.result()
    finally:
        run.stop()


@dataclass(eq=False)
class _Job:
    """A photo on its way; each stage fills in its part, and the picture goes when it is no longer needed."""

    photo: Photo
    objects: PhotoObjects | None = None
    image: np.ndarray | None = None
    found: Any = None
    done: Future[PhotoResult] = field(default_factory=Future)


class _Run:
    """The threads of a run, a pool per stage: each stage hands a job to the next one's pool."""

    def __init__(
        self, segmenter: Segmenter, workers: int, devices: Sequence[jax.Device], hooks: Hooks, timings: Timings
    ) -> None:
        self._segmenter, self._hooks, self._timings = segmenter, hooks, timings
        self._free_devices = deque(devices)
        self._of_thread = threading.local()
        self._readers = ThreadPoolExecutor(workers, "read")
        self._finders = ThreadPoolExecutor(len(devices), "device")
        self._finishers = ThreadPoolExecutor(workers, "finish")

    def start(self, photo: Photo) -> _Job:
        job = _Job(photo)
        self._readers.submit(self._guarded, self._read, job)
        return job

    def stop(self) -> None:
        """Ends all threads when they are done with what they do now."""
        pools = (self._readers, self._finders, self._finishers)
        for pool in pools:
            pool.shutdown(wait=False, cancel_futures=True)
        for pool in pools:
            pool.shutdown()

    def _guarded(self, stage: Callable[[_Job], None], job: _Job) -> None:
        """Whatever happens in a stage, the job comes to an end."""
        try:
            stage(job)
        except OutputError as error:
            job.done.set_exception(error)
        except Exception as error:
            job.image = job.found = None
            job.done.set_result(PhotoResult(job.photo, error=error))
        except BaseException as error:
            job.done.set_exception(error)

    def _read(self, job: _Job) -> None:
        with self._timings.measure("read"):
            job.objects = self._hooks.prompts(job.photo)
            if self._hooks.is_finished(job.photo, job.objects):
                job.done.set_result(PhotoResult(job.photo, is_skipped=True))
                return
            image = self._hooks.read(job.photo.path)
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
        job.found = None  # its bits on the device are free now
        result = PhotoResult(job.photo, size, records)
        with self._timings.measure("write"):
            self._hooks.finish(result, job.objects, job.image)
        job.image = None
        job.done.set_result(result)
