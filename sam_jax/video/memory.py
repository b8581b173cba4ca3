"""What is remembered of earlier frames: prompted frames, and the last frames with a good mask of each object."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from sam_jax.config import VideoConfig

_GROWTH = 0.25  # of the search radius, per frame since a good mask


class Remembered(NamedTuple):
    """A frame and its masks: number of the frame, cells (S, F), shares (N, S) float32, valid (N,) bool."""

    frame: int
    cells: Any
    shares: Any
    valid: np.ndarray


class Memory:
    """Remembered frames, stacked to arrays of one shape during the whole video, so that one program is compiled."""

    def __init__(self, anchors: list[Remembered], settings: VideoConfig, radius: float) -> None:
        """Takes the prompted frames, and the search radius from one frame to the next, in cells."""
        self._anchors, self._settings, self._radius = anchors, settings, radius
        self._slots = min(len(anchors), settings.anchors), settings.memory
        self.recent: list[Remembered] = []

    def remember(self, new: Remembered) -> None:
        """Adds a frame with some valid mask; forgets the oldest that is not the last good one of any object."""
        if not new.valid.any():
            return
        self.recent.append(new)
        if len(self.recent) > self._settings.memory:
            newer = [
                np.any([other.valid for other in self.recent[i + 1 :]], axis=0) for i in range(len(self.recent) - 1)
            ]
            spare = [i for i, covered in enumerate(newer) if not (self.recent[i].valid & ~covered).any()]
            del self.recent[spare[0] if spare else 0]

    def forget(self, objects: np.ndarray) -> None:
        """Drops the recent masks of objects (N,) bool: they were prompted anew."""
        kept = [one._replace(valid=one.valid & ~objects) for one in self.recent]
        self.recent = [one for one in kept if one.valid.any()]

    def stack(self, frame: int, active: np.ndarray) -> tuple[Any, Any, Any, Any]:
        """Arguments of `carry_to_frame` for a frame and its active objects (N,) bool: cells, masks, valid, radius."""
        anchors = sorted(self._anchors, key=lambda one: (not (one.valid & active).any(), abs(one.frame - frame)))
        anchors = anchors[: self._slots[0]]
        lost = self._frames_lost(frame, active)
        reach = [1 + _GROWTH * lost] * len(anchors)
        reach += [1 + _GROWTH * (abs(one.frame - frame) - 1) for one in self.recent]
        entries = anchors + self.recent
        blank = entries[0]._replace(valid=np.zeros_like(entries[0].valid))
        spare = sum(self._slots) - len(entries)
        entries, reach = entries + [blank] * spare, reach + [0.0] * spare
        return (
            jnp.stack([one.cells for one in entries]),
            jnp.stack([one.shares for one in entries]),
            jnp.asarray(np.stack([one.valid & active for one in entries])),
            jnp.asarray(np.array(reach, np.float32) * self._radius),
        )

    def _frames_lost(self, frame: int, active: np.ndarray) -> int:
        """Frames for which the object that was lost for longest has had no good mask."""
        seen = [one for one in self._anchors + self.recent if (one.valid & active).any()]
        gaps = [
            min((abs(one.frame - frame) for one in seen if one.valid[number]), default=1) - 1
            for number in np.flatnonzero(active)
        ]
        return max(gaps, default=0)

    def state(self) -> dict[str, np.ndarray]:
        """The recent frames as arrays, for a file."""
        if not self.recent:
            return {}
        columns = zip(*self.recent, strict=True)
        return {
            name: np.stack([np.asarray(x) for x in column])
            for name, column in zip(Remembered._fields, columns, strict=True)
        }

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """The inverse of `state`."""
        if "frame" in state:
            columns = [state[name] for name in Remembered._fields]
            self.recent = [Remembered(int(frame), *rest) for frame, *rest in zip(*columns, strict=True)]
