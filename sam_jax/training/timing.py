"""What a run measures of itself: profiles of its steps, images per second, and how long the devices waited."""

from __future__ import annotations

import logging
import time

import jax
from etils import epath

from sam_jax.training.step import TrainState

log = logging.getLogger(__name__)


class Profile:
    """A context manager that profiles steps `steps[0]` to `steps[1]`, or those of them that are still to come."""

    def __init__(self, workdir: epath.Path, steps: tuple[int, int] | None) -> None:
        self._steps, self._path, self._started_at = steps, workdir / "profile", -1

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, *_: object) -> None:
        if self._started_at >= 0:
            jax.profiler.stop_trace()

    def before_step(self, step: int) -> None:
        if self._steps is not None and self._started_at < 0 and self._steps[0] <= step < self._steps[1]:
            jax.profiler.start_trace(str(self._path))
            self._started_at = step

    def after_step(self, step: int, state: TrainState) -> None:
        if self._started_at >= 0 and self._steps is not None and step >= self._steps[1]:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            log.info("profile of steps %d to %d is in %s", self._started_at, step, self._path)
            self._started_at, self._steps = -1, None


class Throughput:
    """Measures images per second, and the share of time spent waiting for data."""

    def __init__(self, step: int) -> None:
        self._step, self._started, self._waited = step, time.perf_counter(), 0.0

    def waiting(self) -> Throughput:
        return self

    def __enter__(self) -> None:
        self._entered = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._waited += time.perf_counter() - self._entered

    def lap(self, step: int, batch_size: int) -> dict[str, float]:
        elapsed = time.perf_counter() - self._started
        row = {
            "images_per_s": round((step - self._step) * batch_size / elapsed, 2),
            "data_wait": round(self._waited / elapsed, 3),
        }
        self._step, self._started, self._waited = step, time.perf_counter(), 0.0
        return row
