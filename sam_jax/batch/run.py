"""A run over many images: from inputs to files on disk and a summary. The work behind `infer.py`."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
from etils import epath
from tqdm import tqdm

from sam_jax.batch.image_list import ImageFile, ImageList
from sam_jax.batch.prompt_files import ImageObjects, PromptTable
from sam_jax.batch.result_files import OutputError, ResultFiles
from sam_jax.batch.segmenters import Segmenter
from sam_jax.batch.stream import Hooks, ImageResult, Timings, segment_images
from sam_jax.inference.images import MAX_PIXELS, read_image

SHOWN_FAILURES = 10
# Minimum time between updates of failures.jsonl during a run.
SAVE_SECONDS = 30.0


@dataclass(frozen=True)
class RunOptions:
    """Options of a run.

    Attributes:
      workers: threads that read images, and as many that make records and write.
      overwrite: segment finished images again.
      max_pixels: larger images fail.
      host, hosts: this is machine number `host`, from 0, of `hosts` that share the images.
      devices: None means all of this host's.
    """

    workers: int = 2
    overwrite: bool = False
    max_pixels: int = MAX_PIXELS
    host: int = 0
    hosts: int = 1
    devices: Sequence[jax.Device] | None = None

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers must be 1 or more, not {self.workers}")
        if not 0 <= self.host < self.hosts:
            raise ValueError(f"host {self.host} of {self.hosts} does not exist; hosts count from 0")

    @property
    def failures_file(self) -> str:
        """The name of the list of failed images; each host writes its own."""
        return "failures.jsonl" if self.hosts == 1 else f"failures_{self.host}.jsonl"


@dataclass
class Summary:
    """The outcome of a run.

    Attributes:
      done: number of images segmented.
      empty: how many of them have no mask.
      skipped: number of images that an earlier run finished.
      masks: number of masks of all images segmented.
      failures: failed images, with a one-line message each.
      prompts: the prompts used; None in everything mode.
      seconds: duration of the run.
      timings: seconds per stage.
      noun: what one result is called, for `text`.
    """

    done: int = 0
    empty: int = 0
    skipped: int = 0
    masks: int = 0
    failures: list[tuple[ImageFile, str]] = field(default_factory=list)
    prompts: PromptTable | None = None
    seconds: float = 0.0
    timings: Timings = field(default_factory=Timings)
    noun: str = "mask"

    def text(self, failures_file: epath.PathLike) -> str:
        """The summary as lines of text."""
        rate = f", {self.done / self.seconds:.2f} images/s" if self.done else ""
        head = (
            f"{_counted(self.done, 'image')} done with {_counted(self.masks, self.noun)} in {self.seconds:.1f} s{rate}"
        )
        lines = [head + (f"; already finished: {self.skipped}" if self.skipped else "")]
        if self.prompts is not None and self.prompts.left_out:
            lines.append(f"left out as empty or crowd: {_counted(self.prompts.left_out, 'box', 'boxes')}")
        if self.empty:
            hint = "; lower --pred-iou-thresh and --stability-score-thresh to keep more"
            all_empty = self.empty == self.done and self.prompts is None
            lines.append(f"without any mask: {_counted(self.empty, 'image')}{hint if all_empty else ''}")
        if self.done:
            lines.append(self.timings.table())
        if self.failures:
            lines.append(f"{_counted(len(self.failures), 'image')} failed, listed in {failures_file}:")
            lines += [f"  {error}" for _, error in self.failures[:SHOWN_FAILURES]]
            if len(self.failures) > SHOWN_FAILURES:
                lines.append(f"  and {len(self.failures) - SHOWN_FAILURES} more")
        return "\n".join(lines)

    def count(self, result: ImageResult) -> None:
        """Adds a result."""
        if result.error is not None:
            self.failures.append((result.file, describe(result)))
        elif result.is_skipped:
            self.skipped += 1
        else:
            self.done += 1
            self.empty += not result.records
            self.masks += len(result.records)

    def add(self, other: Summary) -> None:
        """Adds what another process did."""
        for name in ("done", "empty", "skipped", "masks"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.failures += other.failures
        self.timings.merge(other.timings)


def _counted(count: int, noun: str, nouns: str = "") -> str:
    return f"{count} {noun if count == 1 else nouns or noun + 's'}"


def run_images(
    images: ImageList,
    segmenter: Segmenter,
    files: ResultFiles,
    prompts: PromptTable | None = None,
    options: RunOptions | None = None,
    noun: str = "mask",
) -> Summary:
    """Segments images and writes their results, with a progress bar on a terminal.

    Finished images are skipped, failed ones listed. A run that ends early, for any reason, continues from there when it
    is started again.

    Raises:
      OutputError: results can no longer be written.
      PromptFileError: the prompts fit none of the images.
    """
    options = options or RunOptions()
    if prompts is not None:
        prompts.check(images)
    mine = images.share(options.host, options.hosts)
    summary, start = Summary(prompts=prompts, noun=noun), time.perf_counter()
    results = segment_images(
        mine,
        segmenter,
        workers=options.workers,
        devices=own_devices(options, len(mine)),
        hooks=writing_hooks(files, prompts, options),
        timings=summary.timings,
    )
    saved = start
    files.write_failures([], options.failures_file)  # removes those of an earlier run
    try:
        for result in tqdm(results, total=len(mine), unit="image", disable=None, smoothing=0.05):
            summary.count(result)
            if summary.failures and time.perf_counter() - saved > SAVE_SECONDS:
                files.write_failures(summary.failures, options.failures_file)
                saved = time.perf_counter()
    finally:
        results.close()  # type: ignore[attr-defined]
        summary.seconds = time.perf_counter() - start
        save_failures(files, summary, options)
    return summary


def write_coco(files: ResultFiles, images: ImageList, prompts: PromptTable | None) -> epath.Path:
    """Writes the COCO file of all images, including those of other hosts and of earlier runs; returns its path."""

    def image_id(image_file: ImageFile) -> int:
        known = None if prompts is None else prompts.of(image_file).image_id
        return image_file.image_id if known is None else known

    return files.write_coco(images, image_id)


def own_devices(options: RunOptions, images: int) -> Sequence[jax.Device]:
    """No more devices than images: each costs a copy of the variables and a compilation."""
    devices = jax.local_devices() if options.devices is None else options.devices
    return devices[: max(1, images)]


def writing_hooks(files: ResultFiles, prompts: PromptTable | None, options: RunOptions) -> Hooks:
    """Hooks that give prompts, skip finished images and write results."""

    def is_finished(image_file: ImageFile, objects: ImageObjects | None) -> bool:
        return files.is_finished(image_file, objects) and not options.overwrite

    def finish(result: ImageResult, objects: ImageObjects | None, image: Any) -> None:
        assert result.size is not None
        files.write(result.file, objects, result.size, result.records, image)

    read: Callable[[str], Any] = partial(read_image, max_pixels=options.max_pixels)
    hooks = Hooks(read=read, is_finished=is_finished, finish=finish)
    return hooks if prompts is None else dataclasses.replace(hooks, prompts=prompts.of)


def describe(result: ImageResult) -> str:
    """One line that names the image and says what went wrong with it."""
    error = result.error
    text = (str(error).strip().splitlines() or [""])[0]
    if not isinstance(error, (ValueError, OSError)) or not text:
        text = f"{type(error).__name__}: {text}"
    return text if result.file.path in text else f"{result.file.path}: {text}"


def save_failures(files: ResultFiles, summary: Summary, options: RunOptions) -> None:
    """Writes the list of failed images at the end of a run."""
    try:
        if summary.failures:
            files.write_failures(summary.failures, options.failures_file)
    except OutputError:
        if summary.done:  # the results matter more than the list, which the next run makes again
            return
        raise
