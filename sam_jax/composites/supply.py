"""Batches of what `Workers` make: each example once and in order, or several times while new ones arrive."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np

from sam_jax.composites.workers import MOST_ASKED, Workers

Batch = dict[str, np.ndarray]
_READY = 3  # batches that lie ready


def in_order(workers: Workers, indices: Iterable[int], size: int, keep: bool = False) -> Iterator[Batch]:
    """Batches of the examples of `indices`, in this order: the same whatever the number of workers.

    Args:
      keep: the slot of example i is i, and it is made once, for good. Otherwise a slot is used again once it is read.
    """
    order, asked, slots = iter(indices), deque[int](), workers.slots
    free = deque[int]() if keep else deque(range(len(slots)))
    made, known = np.zeros(len(slots), bool), np.zeros(len(slots), bool)
    ahead = max(2 * size, min(len(slots), MOST_ASKED))
    while True:
        while len(asked) < ahead and (keep or free):
            index = next(order)
            slot = index if keep else free.popleft()
            if not known[slot]:
                workers.ask(index, slot)
                known[slot] = True
            asked.append(slot)
        chosen = [asked.popleft() for _ in range(size)]
        while not made[chosen].all():
            made[workers.finished()] = True
        batch = slots.read(chosen)
        if not keep:
            made[chosen] = known[chosen] = False
            free.extend(chosen)
        yield batch


def again(workers: Workers, indices: Iterable[int], size: int, reuse: int, seed: int) -> Iterator[Batch]:
    """Batches of the examples that were used least, each up to `reuse` times.

    New ones take the place of those that were used most. What a batch holds depends on when they arrive.
    """
    order, rng, slots = iter(indices), np.random.default_rng(seed), workers.slots
    empty, uses = deque(range(len(slots))), np.full(len(slots), -1)  # -1: holds no example
    enough = min(len(slots), 4 * size)  # before the first batch: few examples would come in every batch
    while True:
        while workers.asked < min(4 * len(workers), MOST_ASKED):
            if not empty:
                most = int(uses.argmax())
                if uses[most] < 1:
                    break
                uses[most] = -1
                empty.append(most)
            workers.ask(next(order), empty.popleft())
        usable = np.flatnonzero((uses >= 0) & (uses < reuse))
        if arrived := workers.finished(wait=len(usable) < enough):
            uses[arrived] = 0
            continue
        enough = size
        least = rng.permutation(usable)
        chosen = least[np.argsort(uses[least], kind="stable")[:size]]
        uses[chosen] += 1
        yield slots.read(chosen)


class Batches:
    """Batches that a thread keeps ready. An iterator with `close`, which ends the workers, too."""

    def __init__(self, workers: Workers, batches: Iterator[Batch]):
        self._workers, self._batches = workers, batches
        self._ready: queue.Queue[Batch | BaseException] = queue.Queue(_READY)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._fill, daemon=True)
        self._thread.start()

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Batch:
        found = self._ready.get()
        if isinstance(found, BaseException):
            self.close()
            raise found
        return found

    def _fill(self) -> None:
        try:
            for batch in self._batches:
                self._put(batch)
                if self._stopping.is_set():
                    return
        except BaseException as error:  # it is for whoever asks for the batch
            self._put(error)

    def _put(self, item: Batch | BaseException) -> None:
        while not self._stopping.is_set():
            try:
                return self._ready.put(item, timeout=0.2)
            except queue.Full:
                pass

    def close(self) -> None:
        """Ends thread and processes. May be called twice."""
        self._stopping.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()
        self._workers.close()
