"""Files that appear whole or not at all. Local and gs:// paths alike."""

from __future__ import annotations

from etils import epath


def write_atomically(path: epath.PathLike, content: bytes) -> None:
    """Writes a file under a temporary name and renames it, so that no reader ever sees half of it."""
    target = epath.Path(path)
    unfinished = target.parent / f".{target.name}.unfinished"
    try:
        unfinished.write_bytes(content)
        unfinished.replace(target)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
