"""Output of a run: JSON lines, TensorBoard files, images and one text log per host, local or on gs://."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

import jax
import numpy as np
from etils import epath
from PIL import Image
from tensorboardX import SummaryWriter

from sam_jax.files import write_atomically

_SECONDS_BETWEEN_UPLOADS = 60


class LineFile:
    """A text file that grows line by line.

    Object stores cannot append: there the whole file is rewritten, at most once a minute and at `close`.

    Args:
      lines: what the file holds already; given, the file is rewritten with them.
    """

    def __init__(self, path: epath.Path, lines: list[str] | None = None) -> None:
        self._path = path
        self._remote = "://" in str(path)
        self._lines = lines or []
        self._written = time.monotonic()
        path.parent.mkdir(parents=True, exist_ok=True)
        if lines is not None:
            self._write_all()

    def append(self, line: str) -> None:
        """Adds one line, without its newline."""
        if not self._remote:
            with self._path.open("a") as file:
                file.write(line + "\n")
            return
        self._lines.append(line)
        if time.monotonic() - self._written > _SECONDS_BETWEEN_UPLOADS:
            self._write_all()

    def close(self) -> None:
        """Writes any lines not yet written."""
        if self._remote and self._lines:
            self._write_all()

    def _write_all(self) -> None:
        text = "".join(line + "\n" for line in self._lines)
        if self._remote:
            self._path.write_text(text)
        else:
            write_atomically(self._path, text.encode())
        self._written = time.monotonic()


class MetricWriter:
    """Writes metrics to `log.jsonl` and TensorBoard, and overlays to `overlays/`, on host 0 only.

    A context manager. Rows after `first_step`, which a resumed run writes again, are removed from `log.jsonl`.
    """

    def __init__(self, workdir: epath.Path, first_step: int) -> None:
        self._overlays = workdir / "overlays"
        self._active = jax.process_index() == 0
        if self._active:
            self._rows = LineFile(workdir / "log.jsonl", _rows_until(workdir / "log.jsonl", first_step))
            self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step or None)

    def __enter__(self) -> MetricWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._active:
            self._rows.close()
            self._board.close()

    def write(self, step: int, row: dict[str, float], group: str = "train") -> None:
        """Writes a row of metrics. `group` prefixes the names of curves and, unless it is "train", the row's keys."""
        if not self._active:
            return
        prefix = "" if group == "train" else f"{group}_"
        self._rows.append(json.dumps({"step": step} | {f"{prefix}{name}": value for name, value in row.items()}))
        for name, value in row.items():
            self._board.add_scalar(f"{group}/{name}", value, step)

    def image(self, step: int, image: np.ndarray) -> None:
        """Writes an overlay, (h, w, 3) uint8."""
        if not self._active:
            return
        self._overlays.mkdir(parents=True, exist_ok=True)
        with (self._overlays / f"step_{step:07d}.png").open("wb") as file:
            Image.fromarray(image).save(file, format="PNG")
        self._board.add_image("predictions", image, step, dataformats="HWC")


def _rows_until(path: epath.Path, step: int) -> list[str]:
    if not path.exists():
        return []
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError):  # the line that a killed process was writing
            continue
    return kept


class HostLog(logging.Handler):
    """Writes what the library logs on this host, from INFO up, to `logs/host_<index>.log`. A context manager."""

    def __init__(self, workdir: epath.Path) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(name)s: %(message)s"))
        path = workdir / "logs" / f"host_{jax.process_index()}.log"
        old = path.read_text().splitlines() if "://" in str(path) and path.exists() else None
        self._file = LineFile(path, old)
        self._logger = logging.getLogger("sam_jax")

    def __enter__(self) -> HostLog:
        self._level = self._logger.level
        self._logger.setLevel(logging.INFO)
        self._logger.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._logger.removeHandler(self)
        self._logger.setLevel(self._level)
        self._file.close()

    def emit(self, record: logging.LogRecord) -> None:
        self._file.append(self.format(record))


def to_floats(metrics: Any) -> dict[str, float]:
    """Scalars on the device -> floats of five significant digits; waits for the device."""
    return {name: float(f"{float(value):.5g}") for name, value in jax.device_get(metrics).items()}
