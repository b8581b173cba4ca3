"""Edge maps on disk: OUT/sub/cat.png, 255 the strongest edge of the image. Each says what it was made with."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image, PngImagePlugin

from sam_jax.batch.image_list import ImageFile
from sam_jax.batch.prompt_files import ImageObjects
from sam_jax.batch.result_files import Record, ResultFiles, lasting_errors
from sam_jax.files import write_atomically

_KEY = "sam_jax edges"


class EdgeFiles(ResultFiles):
    """The output directory of a run for edges. `settings`: whatever edges depend on, as JSON would hold it."""

    def __init__(self, out: epath.PathLike, settings: dict[str, Any]) -> None:
        super().__init__(out, (), settings)

    def path(self, image_file: ImageFile) -> epath.Path:
        """Where an image's edges are."""
        return self._path(image_file, "png")

    def is_finished(self, image_file: ImageFile, objects: ImageObjects | None = None) -> bool:
        """Whether an image's edges are there, and of these settings.

        Raises:
          ValueError: another program's file lies there.
        """
        path = self.path(image_file)
        if not path.exists():
            return False
        try:
            with Image.open(io.BytesIO(path.read_bytes())) as image:
                made_with = image.info.get(_KEY)
        except (OSError, SyntaxError, ValueError):
            made_with = None
        if made_with is None:
            raise ValueError(f"{path} exists and was not written by this program; choose another output directory")
        return bool(made_with == self._fingerprint(image_file, None))

    def write(
        self,
        image_file: ImageFile,
        objects: ImageObjects | None,
        size: tuple[int, int],
        records: Sequence[Record],
        image: np.ndarray,
    ) -> None:
        """Writes an image's edges, the `edges` of the only record.

        Raises:
          OutputError: nothing can be written any more, as with a full disk.
        """
        note, content = PngImagePlugin.PngInfo(), io.BytesIO()
        note.add_text(_KEY, self._fingerprint(image_file, None))
        Image.fromarray(records[0]["edges"]).save(content, "PNG", pnginfo=note)
        path = self.path(image_file)
        with lasting_errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content.getvalue())
