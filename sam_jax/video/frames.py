"""Frames of a video, read one after another in either direction: a directory of images, or a file through PyAV."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from etils import epath

from sam_jax.batch.image_list import SUFFIXES
from sam_jax.inference.images import read_image

VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".gif")
_KEPT = 16  # decoded frames in memory, for reading a file backwards
FRAMES_PER_SECOND = 24.0


class VideoError(ValueError):
    """A video that cannot be used; the message says why, and what to do."""


class Frames(Protocol):
    """Frames of one size.

    Attributes:
      names: of the frames' results, in order: "00000", ...
      size: (H, W) in pixels.
      rate: frames per second.
    """

    names: list[str]
    size: tuple[int, int]
    rate: float

    def read(self, index: int) -> np.ndarray:
        """Frame `index`, (H, W, 3) uint8 RGB. Raises VideoError if it is broken or has another size."""


def open_frames(path: epath.PathLike) -> Frames:
    """Opens a directory of images, in the order of their names, or a video file.

    Raises:
      VideoError: it does not exist, holds no frames, or PyAV is missing for a file.
    """
    given = epath.Path(path)
    if given.is_dir():
        return ImageFrames(given)
    if not given.exists():
        raise VideoError(f"{path} does not exist; expected a directory of images or a video file")
    if given.suffix.lower() in SUFFIXES - set(VIDEO_SUFFIXES):
        raise VideoError(f"{path} is a single image; expected a directory of images or a video file")
    return FileFrames(given)


def _check_size(what: str, found: tuple[int, ...], expected: tuple[int, int]) -> None:
    if found != expected:
        (h, w), (first_h, first_w) = found, expected
        raise VideoError(f"{what} is {w}x{h} pixels, and the first frame {first_w}x{first_h}; make all the same size")


class ImageFrames:
    """The images of a directory, not below it, in the order of their names."""

    def __init__(self, folder: epath.Path) -> None:
        files = [f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and not f.name.startswith(".")]
        self._files = sorted(files, key=lambda file: file.name)
        if not self._files:
            raise VideoError(f"{folder} holds no images; expected a video's frames as .jpg or .png")
        self.names = [file.stem for file in self._files]
        if len(set(self.names)) < len(self.names):
            twice = next(name for name in self.names if self.names.count(name) > 1)
            raise VideoError(f"{folder} has two frames named {twice!r}; their masks would share a name: rename one")
        self.rate = FRAMES_PER_SECOND
        self.size: tuple[int, int] = read_image(self._files[0]).shape[:2]

    def read(self, index: int) -> np.ndarray:
        """See `Frames`."""
        frame = read_image(self._files[index])
        _check_size(str(self._files[index]), frame.shape[:2], self.size)
        return frame


class FileFrames:
    """The frames of a video file. Jumps, also backwards, start from the last key frame before."""

    def __init__(self, path: epath.Path) -> None:
        self._path, self._av = path, import_av()
        try:
            with self._open() as container:
                stream = container.streams.video[0]
                self.rate = float(stream.average_rate or FRAMES_PER_SECOND)
                self._times = sorted(p.pts for p in container.demux(stream) if p.pts is not None)
        except (self._av.error.FFmpegError, IndexError) as error:
            raise VideoError(f"{path} is not a video that PyAV can read ({error}); convert it to .mp4") from error
        if not self._times:
            raise VideoError(f"{path} holds no frames; expected a video")
        self.names = [f"{index:05d}" for index in range(len(self._times))]
        self._index = {time: index for index, time in enumerate(self._times)}
        self._kept: dict[int, np.ndarray] = {}
        self._stream: Iterator[tuple[int, np.ndarray]] = iter(())
        self._next = -_KEPT  # nothing is decoded yet
        self.size: tuple[int, int] = self._seek_and_read(0).shape[:2]

    def read(self, index: int) -> np.ndarray:
        """See `Frames`."""
        frame = self._seek_and_read(index)
        _check_size(f"frame {index} of {self._path}", frame.shape[:2], self.size)
        return frame

    @contextlib.contextmanager
    def _open(self) -> Iterator[Any]:
        with self._path.open("rb") as file, self._av.open(file) as container:
            yield container

    def _seek_and_read(self, index: int) -> np.ndarray:
        if index in self._kept:
            return self._kept[index]
        if not self._next <= index < self._next + _KEPT:
            self._stream = self._decode_from(index)
        try:
            for found, frame in self._stream:
                self._kept[found] = frame
                if len(self._kept) > _KEPT:
                    self._kept.pop(next(iter(self._kept)))
                self._next = found + 1
                if found >= index:
                    break
        except self._av.error.FFmpegError as error:
            raise VideoError(f"frame {index} of {self._path} is broken ({error}); export the video again") from error
        if index not in self._kept:
            raise VideoError(f"frame {index} of {self._path} cannot be decoded; export the video again")
        return self._kept[index]

    def _decode_from(self, index: int) -> Iterator[tuple[int, np.ndarray]]:
        """Frames from the last key frame at or before `index` on, with their numbers."""
        with self._open() as container:
            stream = container.streams.video[0]
            container.seek(self._times[index], stream=stream, backward=True)
            for frame in container.decode(stream):
                if frame.pts in self._index:
                    yield self._index[frame.pts], frame.to_ndarray(format="rgb24")


def import_av() -> Any:
    """PyAV. Raises VideoError that says how to install it."""
    try:
        import av
    except ImportError as error:
        raise VideoError(
            'video files need PyAV: pip install "sam_jax[video]", or give a directory of images'
        ) from error
    return av
