"""Absolute paths, and atomic writes. Local and gs:// paths alike."""

from __future__ import annotations

import os

from etils import epath


def absolute(path: epath.PathLike) -> str:
    """An absolute path. gs:// paths already are; `resolve` would make them local."""
    text = os.fspath(path)
    return text.rstrip("/") if "://" in text else os.path.abspath(text)


def write_atomically(path: epath.PathLike, content: bytes) -> None:
    """Writes a file under a temporary name and renames it, so that no reader sees an incomplete file."""
    target = epath.Path(path)
    unfinished = target.parent / f".{target.name}.unfinished"
    try:
        unfinished.write_bytes(content)
        unfinished.replace(target)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
