"""The files of a pool, from its directory or from the tar that `pack_pool` makes of it."""

from __future__ import annotations

import json
import pathlib
import tarfile
from collections.abc import Mapping
from typing import Any

LISTING = "pool.json"


class PoolFiles:
    """What a pool holds.

    Attributes:
        root: its directory, or its tar.
        entries: one a file, as `pool.json` has them: "path", "kind", "package", "split" and where it came from. A
            region of a packed pool has "background", the path of the photograph that it was found in.

    Raises FileNotFoundError if there is no pool at `root`, ValueError if it is no tar of a pool.
    """

    def __init__(self, root: str | pathlib.Path):
        self.root = pathlib.Path(root)
        self._packed: Mapping[str, bytes] | None = _unpacked(self.root) if self.root.is_file() else None
        if self._packed is None and not (self.root / LISTING).is_file():
            raise FileNotFoundError(
                f"no cut-out pool at {root} ({LISTING} is missing); make one with `sam-jax data pool {root}`"
            )
        self.entries: list[dict[str, Any]] = json.loads(self.read(LISTING))["files"]

    def read(self, path: str) -> bytes:
        """The content of one file. Raises FileNotFoundError that names it."""
        if self._packed is None:
            return (self.root / path).read_bytes()
        if path not in self._packed:
            raise FileNotFoundError(f"{self.root} does not hold {path}; pack the pool again")
        return self._packed[path]


def open_directory(root: str | pathlib.Path) -> PoolFiles:
    """A pool to add files to. Raises FileNotFoundError if there is none, ValueError if it is packed."""
    if pathlib.Path(root).is_file():
        raise ValueError(f"{root} is a packed pool; add to the directory that it was made of, and pack that again")
    return PoolFiles(root)


def write_listing(root: pathlib.Path, entries: list[dict[str, Any]]) -> None:
    """Writes a pool's list of files."""
    unfinished = root / f".{LISTING}.unfinished"
    unfinished.write_text(json.dumps({"files": entries}, indent=0))
    unfinished.replace(root / LISTING)


def parts_path(path: str) -> str:
    """The path of the parts of a rendered model at `path`, beside it in the pool."""
    return str(pathlib.PurePosixPath(path).with_suffix(".parts.png"))


def _unpacked(path: pathlib.Path) -> dict[str, bytes]:
    try:
        with tarfile.open(path) as archive:
            files = {member.name: archive.extractfile(member) for member in archive if member.isfile()}
            content = {name: file.read() for name, file in files.items() if file is not None}
    except tarfile.TarError as error:
        raise ValueError(f"{path} is no tar of a pool ({error}); make one with `sam-jax data pack-pool`") from error
    if LISTING not in content:
        raise ValueError(f"{path} is no tar of a pool ({LISTING} is missing); make one with `sam-jax data pack-pool`")
    return content
