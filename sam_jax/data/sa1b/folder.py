"""A folder of images with a JSON each."""

from __future__ import annotations

import numpy as np
from etils import epath

from sam_jax.data.records import DataError
from sam_jax.data.sa1b.pairs import EXPECTED, Sa1bPairs, first_of_each, image_id_of, pair_up


class Sa1bFolder(Sa1bPairs):
    """name.jpg + name.json pairs of one directory, local or gs://, sorted by name."""

    def __init__(self, path: epath.PathLike):
        folder = epath.Path(path)
        if not folder.is_dir():
            raise DataError(f"{path} is not a directory; expected {EXPECTED}")
        pairs, unpaired = pair_up(file.name for file in folder.iterdir())
        if not pairs:
            raise DataError(f"{path} holds no name.jpg + name.json pair; expected {EXPECTED}")
        ids = np.array([image_id_of(epath.Path(image).stem) for image, _ in pairs], np.int64)
        first = first_of_each(ids)
        self._files = [pairs[number] for number in first]
        super().__init__(str(path), ids[first], unpaired, len(pairs) - len(first))

    def name(self, index: int, suffix: str) -> str:
        """The file's path."""
        image, text = self._files[index]
        return f"{self.path.rstrip('/')}/{text if suffix == '.json' else image}"

    def read(self, index: int) -> tuple[bytes, bytes]:
        """The encoded image and the JSON text."""
        return self._read(self.name(index, ".jpg")), self.read_json(index)

    def read_json(self, index: int) -> bytes:
        """The JSON text only."""
        return self._read(self.name(index, ".json"))

    def _read(self, name: str) -> bytes:
        try:
            return epath.Path(name).read_bytes()
        except OSError as error:
            raise DataError(f"{name} cannot be read ({error})") from error
