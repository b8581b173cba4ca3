"""The result files of a video, from which an interrupted run continues.

OUT/masks/00000.png    an indexed PNG per frame, see label_images.py
OUT/scores.json        per frame and object: predicted IoU, area, box; written last
OUT/scores.csv         the same as a table
OUT/overlay.mp4        the video with its masks, on request
OUT/.progress.npz      of an unfinished run: where it is, and what it remembers
"""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from tqdm import tqdm

from sam_jax.files import write_atomically
from sam_jax.inference.overlays import overlay_masks
from sam_jax.ops.masks import mask_to_box
from sam_jax.video.frames import Frames, import_av
from sam_jax.video.label_images import read_labels, write_labels
from sam_jax.video.propagation import FrameMasks

Row = dict[str, Any]
_COLUMNS = ("frame", "object", "predicted_iou", "area", "x0", "y0", "x1", "y1", "hidden", "prompted")
_PROGRAM = "sam_jax"


class VideoResults:
    """The output directory of a video."""

    def __init__(self, out: epath.PathLike, frames: Frames, settings: dict[str, Any]) -> None:
        """Creates the directory.

        Args:
          settings: everything that the masks depend on, as JSON values; results with others are made again.

        Raises:
          ValueError: another program's scores.json is there.
        """
        self.out, self._frames = epath.Path(out), frames
        self._settings = json.loads(json.dumps(settings))
        self.rows: list[Row] = []
        self._reached: set[str] = set()
        self.masks.mkdir(parents=True, exist_ok=True)
        scores = self.out / "scores.json"
        if scores.exists() and _found(scores).get("program") != _PROGRAM:
            raise ValueError(f"{scores} exists and was not written by this program; choose another output directory")

    @property
    def masks(self) -> epath.Path:
        """The directory of the masks."""
        return self.out / "masks"

    def is_finished(self) -> bool:
        """Whether all results exist, with these settings."""
        scores = self.out / "scores.json"
        if not scores.exists() or _found(scores).get("settings") != self._settings:
            return False
        self.rows = _found(scores)["rows"]
        return all((self.masks / f"{name}.png").exists() for name in self._frames.names)

    def write(self, found: FrameMasks) -> None:
        """Writes the masks of a frame; objects that an earlier walk found there stay, and keep their pixels."""
        name = self._frames.names[found.frame]
        path = self.masks / f"{name}.png"
        labels = read_labels(path) if name in self._reached else np.zeros(self._frames.size, np.uint8)
        self._reached.add(name)
        labels[np.isin(labels, found.objects)] = 0
        for number, mask in zip(found.objects, found.masks, strict=True):
            labels[mask & (labels == 0)] = number
        write_labels(path, labels)
        for row, number in enumerate(found.objects.tolist()):
            mask = labels == number
            values = (name, number, float(found.iou_predictions[row]), int(mask.sum()), *mask_to_box(mask).tolist())
            flags = bool(found.hidden[row]), bool(found.prompted[row])
            self.rows.append(dict(zip(_COLUMNS, (*values, *flags), strict=True)))

    def save_progress(self, state: dict[str, np.ndarray]) -> None:
        """Remembers where the run is."""
        about = json.dumps({"settings": self._settings, "rows": self.rows}).encode()
        buffer = io.BytesIO()
        np.savez(buffer, about=np.frombuffer(about, np.uint8), **state)  # type: ignore[arg-type]
        write_atomically(self._progress, buffer.getvalue())

    def load_progress(self) -> dict[str, np.ndarray] | None:
        """The state of an unfinished run with these settings, or None."""
        if not self._progress.exists():
            return None
        with np.load(io.BytesIO(self._progress.read_bytes())) as stored:
            state = dict(stored)
        about = json.loads(state.pop("about").tobytes())
        if about["settings"] != self._settings:
            return None
        self.rows = about["rows"]
        self._reached = {row["frame"] for row in self.rows}
        return state

    def finish(self) -> None:
        """Writes the scores, in the order of the frames, and removes the progress file."""
        place = {name: index for index, name in enumerate(self._frames.names)}
        self.rows.sort(key=lambda row: (place[row["frame"]], row["object"]))
        table = io.StringIO()
        writer = csv.DictWriter(table, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomically(self.out / "scores.csv", table.getvalue().encode())
        content = {"program": _PROGRAM, "settings": self._settings, "rows": self.rows}
        write_atomically(self.out / "scores.json", json.dumps(content, indent=1).encode())
        self._progress.unlink(missing_ok=True)

    @property
    def _progress(self) -> epath.Path:
        return self.out / ".progress.npz"

    def write_overlay(self) -> epath.Path:
        """Writes the video with its masks as H.264. Raises VideoError if PyAV is missing."""
        av = import_av()
        target = self.out / "overlay.mp4"
        h, w = (side - side % 2 for side in self._frames.size)  # the format needs even sides
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "overlay.mp4"
            with av.open(str(path), "w") as container:
                stream = container.add_stream("libx264", rate=Fraction(self._frames.rate).limit_denominator(1001))
                stream.width, stream.height, stream.pix_fmt = w, h, "yuv420p"
                for drawn in self._drawn():
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(drawn[:h, :w], format="rgb24")))
                container.mux(stream.encode())
            write_atomically(target, path.read_bytes())
        return target

    def _drawn(self) -> Iterator[np.ndarray]:
        for index, name in enumerate(tqdm(self._frames.names, unit="frame", desc="overlay", disable=None)):
            labels = read_labels(self.masks / f"{name}.png")
            numbers = range(1, int(labels.max()) + 1)
            yield np.ascontiguousarray(overlay_masks(self._frames.read(index), [labels == k for k in numbers]))


def _found(path: epath.Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
