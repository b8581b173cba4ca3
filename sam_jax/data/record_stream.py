"""The images of a data set that a run trains or evaluates on, as an endless stream of examples."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import numpy as np
from etils import epath

from sam_jax.config import RecordDataConfig, StageConfig
from sam_jax.data.example import Example
from sam_jax.data.record_examples import ExampleMaker
from sam_jax.data.records import DataError, NoMaskError, RecordSource, image_key

log = logging.getLogger(__name__)

_TOLERATED = 4  # unreadable images that never stop a run, however short it is
_ATTEMPTS = 20  # images to try in place of one that cannot be used
# Settings of an ExampleMaker that do not affect the image.
_OF_MASKS = {"masks_per_image", "seed", "max_mask_share", "mask_stride", "with_image"}


def image_hash(image_ids: np.ndarray, salt: int) -> np.ndarray:
    """A fixed pseudo-random number in [0, 1) for each int64 id, by SplitMix64: (n,) -> (n,) float64."""
    with np.errstate(over="ignore"):
        x = image_ids.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15) * np.uint64(salt + 1)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) / 2**53


def chosen_indices(image_ids: np.ndarray, config: RecordDataConfig, held_out: bool) -> np.ndarray:
    """Which records a run uses: (m,) int64 indices, in the order of their image ids.

    Choice and order depend on image ids only, so that tars, folders and any distribution of files over directories
    give the same; a smaller `max_images` chooses a subset of a larger one's choice. Unless `hold_out` is 0, at least
    one image of two or more is held out and at least one is trained on.
    """
    hashes = image_hash(image_ids, salt=0)
    is_held_out = hashes < config.hold_out
    if config.hold_out and len(hashes) > 1:
        is_held_out[[hashes.argmin(), hashes.argmax()]] = True, False
    indices = np.flatnonzero(is_held_out == held_out)
    if config.max_images is not None and not held_out and len(indices) > config.max_images:
        order = np.argsort(image_hash(image_ids[indices], salt=1), kind="stable")
        indices = indices[order[: config.max_images]]
    return indices[np.argsort(image_ids[indices], kind="stable")]


class RecordStream:
    """Examples by their position in the stream.

    Args:
      held_out: stream the held-out images, without jitter, instead of those to train on.
      embeddings: a directory of image embeddings, `<image key>.npy` (`records.image_key`), to give instead of images.

    Raises:
      DataError: no such image is left.
    """

    def __init__(
        self,
        source: RecordSource,
        config: RecordDataConfig,
        stage: StageConfig,
        seed: int,
        held_out: bool = False,
        embeddings: epath.PathLike | None = None,
    ) -> None:
        self._source, self._config, self._seed = source, config, seed
        jitter = None if held_out else config.jitter
        self._maker = ExampleMaker(
            stage.image_size,
            stage.masks_per_image,
            seed,
            config.max_mask_share,
            jitter,
            stage.mask_stride,
            config.scaled_decode,
            with_image=embeddings is None,
        )
        self._embeddings = None if embeddings is None else epath.Path(embeddings)
        self.indices = chosen_indices(source.image_ids, config, held_out)
        self._read = self._bad = 0
        if not len(self.indices):
            kind = "held-out" if held_out else "training"
            others = "or set eval_every and overlay_every to 0" if held_out else "or lower data.hold_out"
            raise DataError(
                f"{config.path}: hold_out {config.hold_out} leaves no {kind} image of {len(source)}; give more images "
                f"(two at least){', raise data.hold_out above 0' if held_out else ''} {others}"
            )

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def image_ids(self) -> np.ndarray:
        """(n,) int64, image ids of the run."""
        return self._source.image_ids[self.indices]

    def image_settings(self) -> dict[str, Any]:
        """All settings that determine an example's pixels from a stored image, by name."""
        return {name: value for name, value in dataclasses.asdict(self._maker).items() if name not in _OF_MASKS}

    def key(self, number: int) -> str | None:
        """The key of the `number`-th image of the run, without decoding it; None if it cannot be read."""
        try:
            return image_key(self._source[int(self.indices[number])].image)
        except DataError as error:
            log.warning("no embedding: %s", error)
            return None

    def image(self, number: int) -> dict[str, np.ndarray] | None:
        """`image` and `input_size` of the `number`-th image of the run; None if it cannot be trained on."""
        try:
            return self._example(number, number)
        except DataError as error:
            log.warning("no embedding: %s", error)
            return None

    def draw(self, position: int, number: int) -> dict[str, np.ndarray]:
        """The example at a position in the stream, from the `number`-th image of the run.

        An image that cannot be used is logged and replaced by another, chosen by position and seed only.

        Returns:
          The fields of `Example`, with `image_embeddings` (h, w, C) float16 in place of `image` if `embeddings` is set.

        Raises:
          DataError: more than `max_bad_share` of the images cannot be read, or too many in a row have no mask.
        """
        rng = np.random.default_rng((self._seed, position))
        for _ in range(_ATTEMPTS):
            self._read += 1
            try:
                return self._example(position, number)
            except NoMaskError as error:
                log.debug("%s", error)
            except DataError as error:
                self._bad += 1
                log.warning("skipped: %s (%d of %d images so far)", error, self._bad, self._read)
                if self._bad > max(_TOLERATED, self._config.max_bad_share * self._read):
                    raise DataError(
                        f"{self._config.path}: {self._bad} of {self._read} images cannot be read, the last one: "
                        f"{error}; check the data, or raise data.max_bad_share ({self._config.max_bad_share})"
                    ) from error
            number = int(rng.integers(len(self.indices)))
        raise DataError(f"{self._config.path}: {_ATTEMPTS} images in a row have no mask to train on; check the data")

    def _example(self, position: int, number: int) -> dict[str, np.ndarray]:
        record = self._source[int(self.indices[number])]
        example: Example = self._maker(position, record)
        fields: dict[str, Any] = example.to_dict()
        if self._embeddings is not None:
            file = self._embeddings / f"{image_key(record.image)}.npy"
            if not file.exists():
                raise DataError(f"{record.name} has no embedding {file}; run the same training again to compute it")
            with file.open("rb") as stream:
                fields["image_embeddings"] = np.load(stream)
            del fields["image"]
        return fields
