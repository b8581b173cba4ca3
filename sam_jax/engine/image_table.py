"""The images of a store: copied or linked into its directory, each content once."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from sam_jax.engine.database import IMAGES, Database
from sam_jax.engine.rows import ASSISTED, ImageRow, NotFound
from sam_jax.files import write_atomically
from sam_jax.inference.images import ImageError, decode_image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # those that the server takes


def is_held_out(sha256: str, share: float) -> bool:
    """Whether an image of this content is for evaluation: the same answer everywhere and always."""
    return int(sha256[:12], 16) / 16**12 < share


class ImageTable(Database):
    """Adds and finds images."""

    def add_image(self, path: epath.PathLike, link: bool = False) -> tuple[ImageRow, bool]:
        """Takes in an image, with a task to label it by hand.

        Args:
          path: local or gs://.
          link: link to the file rather than copy it; it then has to stay where it is.

        Returns:
          The image, and whether it is new: a content that is there already is not added again, under whatever name.

        Raises:
          ImageError: the file is no image that can be used.
          OSError: it cannot be read or copied.
        """
        source = epath.Path(path)
        if link and "://" in str(source):
            raise ImageError(f"{source} is not a local file, which could be linked to; copy it")
        content = source.read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        known = self._known(sha256)
        if known is not None:
            return known, False
        height, width = decode_image(content, source, formats=FORMATS).shape[:2]
        held_out = is_held_out(sha256, float(self.setting("hold_out")))
        with self.transaction() as connection:
            known = self._known(sha256)  # another process may have been faster
            if known is not None:
                return known, False
            name = self._free_name(source.name, sha256)
            # The file first: a row without its file would be an image that nobody can open.
            _place(source, content, self.directory / IMAGES / name, link)
            values = (name, height, width, sha256, held_out, self.clock())
            image_id = connection.execute(
                "INSERT INTO images (file_name, height, width, sha256, held_out, added_at) VALUES (?, ?, ?, ?, ?, ?)",
                values,
            ).lastrowid
            connection.execute("INSERT INTO tasks (image_id, stage, state) VALUES (?, ?, 'open')", (image_id, ASSISTED))
        assert image_id is not None
        return self.image(image_id), True

    def image(self, image_id: int) -> ImageRow:
        """An image. Raises NotFound."""
        row = self.select_one("SELECT * FROM images WHERE id = ?", image_id)
        if row is None:
            raise NotFound(f"there is no image {image_id}")
        return _image(row)

    def images(self, held_out: bool | None = None) -> Iterator[ImageRow]:
        """All images, or those that are held out or not, by ascending id; streamed."""
        found = self.stream("SELECT * FROM images WHERE ifnull(held_out = ?, 1)", held_out)
        return map(_image, found)

    def count_images(self, held_out: bool | None = None) -> int:
        """How many there are."""
        row = self.select_one("SELECT count(*) AS n FROM images WHERE ifnull(held_out = ?, 1)", held_out)
        return int(row["n"]) if row else 0

    def image_path(self, image: ImageRow) -> Path:
        """The file of an image."""
        return self.directory / IMAGES / image.file_name

    def find_image(self, file_name: str) -> ImageRow | None:
        """The image of a file name, or None."""
        row = self.select_one("SELECT * FROM images WHERE file_name = ?", file_name)
        return None if row is None else _image(row)

    def result_name(self, image: ImageRow) -> str:
        """What files about an image are called, without a suffix: as the image, which keeps its suffix where another
        image differs in the suffix alone."""
        stem = os.path.splitext(image.file_name)[0]
        begin = f"{stem}."
        same = self.select(  # "/" follows "."
            "SELECT file_name FROM images WHERE file_name >= ? AND file_name < ? AND id != ?",
            begin,
            f"{stem}/",
            image.id,
        )
        return image.file_name if any(os.path.splitext(row["file_name"])[0] == stem for row in same) else stem

    def _known(self, sha256: str) -> ImageRow | None:
        row = self.select_one("SELECT * FROM images WHERE sha256 = ?", sha256)
        return None if row is None else _image(row)

    def _free_name(self, name: str, sha256: str) -> str:
        """`name`, or one with a part of the content's hash where another content has it. Case alone is no difference:
        some file systems know none."""
        taken = self.select_one("SELECT 1 FROM images WHERE file_name = ? COLLATE NOCASE", name)
        stem, suffix = os.path.splitext(name)
        return f"{stem}-{sha256[:12]}{suffix}" if taken else name


def _place(source: epath.Path, content: bytes, target: Path, link: bool) -> None:
    if not link:
        write_atomically(target, content)
        return
    target.unlink(missing_ok=True)  # of an add that was killed before its row was written
    target.symlink_to(os.path.realpath(source))


def _image(row: sqlite3.Row) -> ImageRow:
    return ImageRow(**dict(row) | {"held_out": bool(row["held_out"])})
