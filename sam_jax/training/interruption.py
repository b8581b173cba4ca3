"""Requests to stop: SIGTERM, which a preempted machine receives, or Ctrl-C."""

from __future__ import annotations

import logging
import signal
from types import FrameType

import jax
import numpy as np
from jax.experimental import multihost_utils

log = logging.getLogger(__name__)

EXIT_CODE = 75  # BSD's EX_TEMPFAIL: "run the same command again"
_AGREE_EVERY = 10  # steps between checks of whether another host was asked to stop


class Interrupted(Exception):
    """The run stopped early and its state is saved."""


class Interruption:
    """A context manager within which SIGTERM and SIGINT are only noted; after either, the next SIGINT interrupts."""

    def __init__(self) -> None:
        self._signal: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Interruption:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._signal = number
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def requested(self, step: int) -> bool:
        """Whether to stop after this step. All hosts get the same answer at the same step."""
        if jax.process_count() == 1:
            return self._signal is not None
        if step % _AGREE_EVERY:
            return False
        asked = multihost_utils.process_allgather(np.array(self._signal is not None))
        return bool(np.any(asked))
