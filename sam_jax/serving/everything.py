"""Everything mode, and phrases, as server-sent events: progress, then masks. A client that goes away ends the work."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from sam_jax.inference.exports import Record
from sam_jax.serving.refusals import Refusal, busy
from sam_jax.serving.service import SegmentationService

_LOG = logging.getLogger(__name__)
_LOOK_SECONDS = 0.5  # whether the client is still there
# Finds masks, and tells how many points are done, and of how many: size (H, W) and records.
Find = Callable[[Callable[[int, int], None]], tuple[tuple[int, int], list[Record]]]


class _GoneError(Exception):
    """The client is gone."""


class EverythingRuns:
    """Runs of everything mode: so many at once, as many again wait, more are refused."""

    def __init__(self, service: SegmentationService) -> None:
        self._service, self._most, self._runs = service, 2 * service.config.everything_runs, 0

    def start(self, name: str, find: Find, has_gone: Callable[[], Awaitable[bool]]) -> AsyncIterator[bytes]:
        """Begins a run; its events, as the bytes to send. Raises Refusal (404, 503) before there is any.

        Args:
          name: the image's id.
          find: the work.
          has_gone: whether the client does not listen any more.
        """
        self._service.images.get(name)
        if self._runs >= self._most:
            raise busy("everything mode is at work on other images")
        loop, run = asyncio.get_running_loop(), _Run(name, find)
        self._runs += 1
        loop.run_in_executor(self._service.everything_workers, run.work).add_done_callback(self._ended)
        return run.events(has_gone)

    def _ended(self, _: object) -> None:
        self._runs -= 1


class _Run:
    """One run: `work` in a thread, `events` in the loop that made it."""

    def __init__(self, name: str, find: Find) -> None:
        self._name, self._find = name, find
        self._loop, self._gone = asyncio.get_running_loop(), threading.Event()
        self._told: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()

    def work(self) -> None:
        """Finds everything, and tells of it."""
        try:
            size, records = self._find(self._on_progress)
            masks = [_plain(record) for record in records]
            self._tell("masks", {"image_id": self._name, "size": list(size), "masks": masks})
        except _GoneError:
            _LOG.info("everything mode: the client has gone; stopped")
        except Refusal as refusal:
            self._tell("error", {"error": refusal.detail})
        except Exception:
            _LOG.exception("everything mode failed")
            self._tell("error", {"error": "the server failed; its log says why"})

    async def events(self, has_gone: Callable[[], Awaitable[bool]]) -> AsyncIterator[bytes]:
        """What is told, as server-sent events, until the masks or an error."""
        try:
            yield b": begun\n\n"
            while not await has_gone():
                try:
                    event, data = await asyncio.wait_for(self._told.get(), _LOOK_SECONDS)
                except TimeoutError:
                    continue
                yield f"event: {event}\ndata: {json.dumps(data)}\n\n".encode()
                if event != "progress":
                    return
        finally:
            self._gone.set()

    def _tell(self, event: str, data: Any) -> None:
        self._loop.call_soon_threadsafe(self._told.put_nowait, (event, data))

    def _on_progress(self, done: int, total: int) -> None:
        if self._gone.is_set():
            raise _GoneError
        self._tell("progress", {"done": done, "total": total})


def _plain(record: Record) -> Record:
    """A record without what a client of the whole image needs not."""
    return {key: value for key, value in record.items() if key != "crop_box"}
