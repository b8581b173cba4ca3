"""Room for examples in shared memory: an array of records, one a slot, with masks packed to bits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sam_jax.composites.shared_memory import attach
from sam_jax.config import CompositeConfig


class Slots:
    """`count` examples of one config, written by one process and read by another.

    Who may touch which slot is for those to agree on: nothing is locked here.
    """

    def __init__(self, descriptor: int, config: CompositeConfig):
        self._columns = config.image_size // config.mask_stride
        self._records = np.frombuffer(attach(descriptor, writable=True), slot_dtype(config))

    def __len__(self) -> int:
        return len(self._records)

    def write(self, slot: int, example: dict[str, np.ndarray]) -> None:
        """Puts one `Example`'s fields in a slot."""
        record = self._records[slot]
        for name, value in example.items():
            record[name] = np.packbits(value, axis=-1) if name == "masks" else value

    def read(self, slots: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """A batch: the fields of the examples in `slots`, stacked, copied out of the shared memory."""
        chosen = np.asarray(slots)
        batch = {name: self._records[name][chosen] for name in self._records.dtype.names or ()}
        batch["masks"] = np.unpackbits(batch["masks"], axis=-1, count=self._columns).astype(bool)
        return batch


def slot_dtype(config: CompositeConfig) -> np.dtype:
    """One slot: the fields of an `Example`, its masks packed along the columns."""
    side, grid = config.image_size, config.image_size // config.mask_stride
    return np.dtype(
        [
            ("image", np.uint8, (side, side, 3)),
            ("masks", np.uint8, (config.masks_per_image, grid, -(-grid // 8))),
            ("mask_valid", np.bool_, (config.masks_per_image,)),
            ("input_size", np.int32, (2,)),
            ("image_id", np.int64),
        ]
    )
