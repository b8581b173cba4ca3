"""Prompts of all users, decoded together: a thread takes what waits and runs it as one program.

Nothing waits for company: while a batch is decoded, the next one gathers. A single user's prompt is a batch of one. A
CPU gains nothing by batches, and each of its cores decodes a prompt of its own.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sam_jax.inference.point_decoding import decoding_cores
from sam_jax.models.mask_decoder import PreparedEmbeddings
from sam_jax.models.sam import Sam
from sam_jax.structs import MaskPredictions, Prompts

_STOP = None  # what `close` puts behind the last job


class Job(NamedTuple):
    """One prompt of one image, as arrays with the axes B and N of length 1; and where the answer goes."""

    embedding: PreparedEmbeddings
    prompts: Prompts
    answer: Future[MaskPredictions]


@partial(jax.jit, static_argnums=0)
def _decode(
    model: Sam, variables: Any, embeddings: tuple[PreparedEmbeddings, ...], prompts: tuple[Prompts, ...]
) -> MaskPredictions:
    together = jax.tree.map(lambda *parts: jnp.concatenate(parts), *prompts)
    images = jax.tree.map(lambda *parts: jnp.concatenate(parts), *embeddings)
    images = images.replace(image_pe=embeddings[0].image_pe)  # which all images share
    predictions: Any = model.apply(variables, images, together, method="predict_masks")
    return predictions


class DecodingQueue:
    """Decodes prompts in batches. `submit` may be called from any thread."""

    def __init__(
        self,
        model: Sam,
        variables: Any,
        max_batch: int | None = None,
        on_batch: Callable[[int], None] = lambda size: None,
    ) -> None:
        """Starts the threads: one, or on a CPU without batches one for each core.

        Args:
          max_batch: prompts decoded at once, rounded down to a power of two; None means 8, on a CPU 1.
          on_batch: told the size of each batch.
        """
        cores = decoding_cores()
        max_batch = max_batch or (1 if cores else 8)
        threads = max(1, cores) if max_batch == 1 else 1
        self._model, self._variables, self._on_batch = model, variables, on_batch
        self._sizes = [1 << power for power in range(max_batch.bit_length()) if 1 << power <= max_batch]
        self._waiting: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._work, name="decoding", daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def submit(self, embedding: PreparedEmbeddings, prompts: Prompts) -> Future[MaskPredictions]:
        """A prompt (1, 1, ...) of an image; predictions come as numpy (M, ...)."""
        job = Job(embedding, prompts, Future())
        self._waiting.put(job)
        return job.answer

    def compile(self, embedding: PreparedEmbeddings, prompts: Prompts) -> None:
        """Compiles the programs for all sizes of batches, which first users would wait for otherwise."""
        for size in self._sizes:
            jax.block_until_ready(_decode(self._model, self._variables, (embedding,) * size, (prompts,) * size))

    def close(self) -> None:
        """Ends when all that waits is done."""
        self._waiting.put(_STOP)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while True:
            first = self._waiting.get()
            if first is None:
                self._waiting.put(_STOP)  # for the other threads
                return
            jobs = [first]
            while len(jobs) < self._sizes[-1] and not self._waiting.empty():
                job = self._waiting.get()
                if job is None:
                    self._waiting.put(_STOP)
                    break
                jobs.append(job)
            self._run([job for job in jobs if job.answer.set_running_or_notify_cancel()])

    def _run(self, jobs: Sequence[Job]) -> None:
        if not jobs:
            return
        self._on_batch(len(jobs))
        try:
            for job, found in zip(jobs, self._decoded(jobs), strict=True):
                job.answer.set_result(found)
        except BaseException as error:  # whatever it is, those who wait have to hear of it
            for job in jobs:
                if not job.answer.done():
                    job.answer.set_exception(error)

    def _decoded(self, jobs: Sequence[Job]) -> list[MaskPredictions]:
        slots = max(job.prompts.point_labels.shape[-1] for job in jobs)  # type: ignore[union-attr]
        size = next(size for size in self._sizes if size >= len(jobs))
        filled = [*jobs, *[jobs[0]] * (size - len(jobs))]
        prompts = tuple(_with_slots(job.prompts, slots) for job in filled)
        found = _decode(self._model, self._variables, tuple(job.embedding for job in filled), prompts)
        low_res, iou = np.asarray(found.low_res_masks), np.asarray(found.iou_predictions)
        return [MaskPredictions(low_res[number, 0], iou[number, 0]) for number in range(len(jobs))]


def _with_slots(prompts: Prompts, slots: int) -> Prompts:
    """Prompts whose points are filled up with absent ones."""
    coords, labels = prompts.point_coords, prompts.point_labels
    assert coords is not None
    assert labels is not None
    spare = slots - labels.shape[-1]
    padding = [(0, 0)] * (labels.ndim - 1) + [(0, spare)]
    return prompts.replace(  # type: ignore[attr-defined]
        point_coords=np.pad(coords, [*padding, (0, 0)]), point_labels=np.pad(labels, padding, constant_values=-1)
    )
