"""The tars of SA-1B as released, read in place."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from etils import epath

from sam_jax.data.records import DataError
from sam_jax.data.sa1b.pairs import EXPECTED, Sa1bPairs, first_of_each
from sam_jax.data.sa1b.tar_index import TarIndex, find_index

_INDEX_THREADS = 8  # indices are small, but cloud storage has a high latency
_MAX_GAP = 1 << 16  # bytes between image and JSON that cost less than a second read


class Sa1bTars(Sa1bPairs):
    """All pairs in the tars of a directory, or in one tar, local or gs://; sorted by tar, then by position in it.

    Each tar has an index, built on first use. Every read opens the file anew: there are no handles to share or pickle.

    Args:
      path: a directory of .tar files, one of them, or a glob such as data/sa1b/sa_0000*.tar.
      index_dir: directory for indices that cannot be written beside the tars; None is the user's cache.
      progress: wraps the iteration over the tars, such as tqdm.
    """

    def __init__(
        self,
        path: epath.PathLike,
        index_dir: epath.PathLike | None = None,
        progress: Callable[..., Iterable[TarIndex]] | None = None,
    ):
        tars = find_tars(path)
        with ThreadPoolExecutor(_INDEX_THREADS) as pool:
            found: Iterable[TarIndex] = pool.map(lambda tar: find_index(tar, index_dir), tars)
            indices = list(progress(found, total=len(tars)) if progress else found)
        ids = np.concatenate([index.image_ids for index in indices])
        first = first_of_each(ids)
        self._tars = [str(tar) for tar in tars]
        self._tar_of = np.repeat(np.arange(len(tars), dtype=np.int32), [len(i.image_ids) for i in indices])[first]
        self._stems = np.concatenate([index.stems for index in indices])[first]
        self._places = np.concatenate([index.places for index in indices])[first]
        unpaired = sum(int(index.unpaired) for index in indices)
        super().__init__(str(path), ids[first], unpaired, len(ids) - len(first))

    def name(self, index: int, suffix: str) -> str:
        """The tar and the member: "sa_000000.tar: sa_1.jpg"."""
        stem = self._stems[index].decode("utf-8", "replace")
        return f"{epath.Path(self._tars[self._tar_of[index]]).name}: {stem}{suffix}"

    def read(self, index: int) -> tuple[bytes, bytes]:
        """The encoded image and the JSON text."""
        image, image_size, text, text_size = self._places[index].tolist()
        begin, end = min(image, text), max(image + image_size, text + text_size)
        if end - begin > image_size + text_size + _MAX_GAP:
            return self._read(index, image, image_size), self._read(index, text, text_size)
        data = self._read(index, begin, end - begin)
        return data[image - begin :][:image_size], data[text - begin :][:text_size]

    def read_json(self, index: int) -> bytes:
        """The JSON text only."""
        return self._read(index, *self._places[index, 2:].tolist())

    def _read(self, index: int, begin: int, size: int) -> bytes:
        tar = self._tars[self._tar_of[index]]
        try:
            with epath.Path(tar).open("rb") as file:
                file.seek(begin)
                data = file.read(size)
        except OSError as error:
            raise DataError(f"{tar} cannot be read ({error})") from error
        if len(data) != size:
            raise DataError(f"{tar} has become shorter since it was indexed; fetch it again")
        return data


def find_tars(path: epath.PathLike) -> list[epath.Path]:
    """The tars of a directory or glob, sorted by name, or the tar at `path`. Raises DataError if there are none."""
    place = epath.Path(path)
    if is_glob(place):
        tars = sorted(filter(_is_tar, place.parent.glob(place.name)), key=lambda file: file.name)
    elif place.is_dir():
        tars = sorted(filter(_is_tar, place.iterdir()), key=lambda file: file.name)
    else:
        tars = [place] if _is_tar(place) else []
    if not tars:
        raise DataError(f"{path} matches no .tar file; expected {EXPECTED}")
    return tars


def is_glob(path: epath.Path) -> bool:
    """Whether the last part of a path is a pattern."""
    return any(char in path.name for char in "*?[")


def _is_tar(file: epath.Path) -> bool:
    return file.suffix == ".tar" and not file.name.startswith(".")
