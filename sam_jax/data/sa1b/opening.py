"""Opens SA-1B data by detecting its layout."""

from __future__ import annotations

from etils import epath

from sam_jax.data.records import DataError
from sam_jax.data.sa1b.folder import Sa1bFolder
from sam_jax.data.sa1b.pairs import EXPECTED, Sa1bPairs
from sam_jax.data.sa1b.tars import Sa1bTars, is_glob


def open_sa1b(path: epath.PathLike, index_dir: epath.PathLike | None = None) -> Sa1bPairs:
    """`Sa1bTars` if the path is a tar or holds tars, else `Sa1bFolder`. Raises DataError if it is neither."""
    place = epath.Path(path)
    if is_glob(place):
        return Sa1bTars(path, index_dir)
    if not place.exists():
        raise DataError(f"{path} does not exist; expected {EXPECTED}")
    if place.suffix == ".tar" or (place.is_dir() and any(file.suffix == ".tar" for file in place.iterdir())):
        return Sa1bTars(path, index_dir)
    return Sa1bFolder(path)
