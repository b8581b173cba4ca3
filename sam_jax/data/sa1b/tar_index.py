"""The byte positions of images and JSONs in a tar, found once and kept in a small file: sa_000000.tar.index.npz."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import logging
import os
import tarfile
import uuid
import zipfile
from typing import IO

import numpy as np
from etils import epath

from sam_jax.data.records import DataError
from sam_jax.data.sa1b.pairs import EXPECTED, image_id_of, pair_up

SUFFIX = ".index.npz"

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class TarIndex:
    """The pairs of one tar, in the order of their images in it.

    Attributes:
        tar_size: () int64, bytes; an index with another size is of another tar.
        image_ids: (n,) int64.
        stems: (n,) bytes strings, names without ".jpg", UTF-8.
        places: (n, 4) int64, bytes: offset and length of the image, offset and length of the JSON.
        unpaired: () int64, number of files without a partner.
    """

    tar_size: np.ndarray
    image_ids: np.ndarray
    stems: np.ndarray
    places: np.ndarray
    unpaired: np.ndarray


def default_index_dir(tar: epath.Path) -> epath.Path:
    """The directory, in the user's cache, for the index of a tar whose own directory is not writable."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    directory = hashlib.sha256(os.fspath(tar.parent).encode()).hexdigest()[:16]
    return epath.Path(cache) / "sam_jax" / "sa1b" / directory


def find_index(tar: epath.Path, index_dir: epath.PathLike | None = None) -> TarIndex:
    """The index of a tar: the one beside it or in `index_dir` if that fits, else built and stored.

    Raises:
      DataError: the tar is missing, invalid, truncated or holds no pair, or its index cannot be written anywhere.
    """
    try:
        tar_size = tar.stat().length
    except OSError as error:
        raise DataError(f"{tar} cannot be read ({error}); expected {EXPECTED}") from error
    other = epath.Path(index_dir) if index_dir is not None else default_index_dir(tar)
    files = [tar.parent / (tar.name + SUFFIX), other / (tar.name + SUFFIX)]
    for file in files:
        index = _load(file)
        if index is not None and index.tar_size == tar_size:
            return index
    index = build_index(tar, tar_size)
    for file in files:
        try:
            _write(file, index)
        except OSError as error:
            _log.info("%s cannot be written (%s)", file, error)
        else:
            return index
    raise DataError(f"{tar}: its index can be written to neither {tar.parent} nor {other}; give a writable --index-dir")


def build_index(tar: epath.Path, tar_size: int) -> TarIndex:
    """Reads the headers of a tar, which takes a second for 10 GB on a disk. Raises DataError."""
    members: dict[str, tuple[int, int]] = {}
    try:
        with tar.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                if member.isfile():
                    members[member.name] = member.offset_data, member.size
                    if member.offset_data + member.size > tar_size:
                        raise tarfile.ReadError(f"{member.name} reaches beyond its end")
            _check_end(tar, file, archive.offset)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{tar} is not a whole, uncompressed tar ({error}); fetch it again") from error
    pairs, unpaired = pair_up(members)
    if not pairs:
        raise DataError(f"{tar} holds no name.jpg + name.json pair; expected a tar of SA-1B")
    pairs.sort(key=lambda pair: members[pair[0]])
    stems = [epath.Path(image).stem for image, _ in pairs]
    return TarIndex(
        tar_size=np.array(tar_size, np.int64),
        image_ids=np.array([image_id_of(stem) for stem in stems], np.int64),
        stems=np.array([stem.encode("utf-8", "surrogateescape") for stem in stems]),
        places=np.array([members[image] + members[text] for image, text in pairs], np.int64),
        unpaired=np.array(unpaired, np.int64),
    )


def _check_end(tar: epath.Path, file: IO[bytes], offset: int) -> None:
    """Checks for the zeros of a real end, as tarfile treats any unreadable header as the end."""
    file.seek(offset)
    block = file.read(tarfile.BLOCKSIZE)
    if any(block) or len(block) % tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"no member begins at byte {offset}")
    if not block:
        _log.warning("%s has no end-of-archive block; it may be truncated", tar)


def _load(file: epath.Path) -> TarIndex | None:
    """A stored index, or None if there is none or it is broken."""
    try:
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as arrays:
            return TarIndex(**{field.name: arrays[field.name] for field in dataclasses.fields(TarIndex)})
    except FileNotFoundError:
        return None
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        _log.warning("%s is broken (%s) and is built again", file, error)
        return None


def _write(file: epath.Path, index: TarIndex) -> None:
    """Writes atomically: other processes may read or write the file at the same time."""
    buffer = io.BytesIO()
    np.savez(buffer, **dataclasses.asdict(index))
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.parent / f"{file.name}.{uuid.uuid4().hex}.tmp"
    try:
        unfinished.write_bytes(buffer.getvalue())
        unfinished.replace(file)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
