"""Masks of the points of everything mode: in batches of one size, several at once.

An accelerator decodes a batch at once. A CPU lives by its caches: each of its cores has a batch of its own, and decodes
few points of it at once.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sam_jax.models.mask_decoder import PreparedEmbeddings
from sam_jax.models.sam import Sam
from sam_jax.structs import Prompts

CPU_GROUP = 4  # points or masks that a CPU's core processes at once: as many as fit into its caches
MOST_CORES = 8  # of a CPU that decode side by side

Decoded = tuple[jax.Array, jax.Array]  # what `decode_points` returns


def decoding_cores() -> int:
    """How many cores decode side by side; 0 where the device is no CPU."""
    return min(os.cpu_count() or 1, MOST_CORES) if jax.default_backend() == "cpu" else 0


@partial(jax.jit, static_argnums=0, static_argnames="single_output")
def decode_points(
    model: Sam,
    variables: Any,
    embedding: PreparedEmbeddings,
    points: jax.Array,
    least_iou: jax.Array,
    single_output: bool = False,
) -> Decoded:
    """Three masks of each point (HQ-SAM: one), as planes, because most are dropped before their pixels are needed.

    CPUs decode few points at once, so that pixels stay in the caches, and upscale only masks of promising points.

    Args:
      embedding: of one image. points: (P, 2) in pixels of the input frame.
      least_iou: () float32; on CPUs, points without a predicted IoU above it get planes of zeros.
      single_output: return only the decoder's mask for unambiguous prompts, one per point.

    Returns:
      (3 P, 16, h*w) logits, see `ops.planes`, and predicted IoU (3 P,), both float32.
    """

    def decode(points: jax.Array, least_iou: jax.Array | None) -> Decoded:
        prompts = Prompts(point_coords=points[None, :, None], point_labels=jnp.ones((1, len(points), 1), jnp.int32))
        wanted = slice(0, 1) if single_output else slice(1, None)
        options: Any = {"masks": wanted, "least_iou": least_iou, "method": "predict_planes"}
        found: Any = model.apply(variables, embedding, prompts, **options)
        planes, iou = found
        return planes.reshape(-1, *planes.shape[-2:]), iou.reshape(-1)

    def by_groups(points: jax.Array, least_iou: jax.Array) -> Decoded:
        found: Decoded = in_groups(lambda group: decode(group, least_iou), points)
        return found

    def at_once(points: jax.Array, _: jax.Array) -> Decoded:
        return decode(points, None)

    found: Decoded = jax.lax.platform_dependent(points, least_iou, cpu=by_groups, default=at_once)
    return found


def decode_batches(
    decode: Callable[[np.ndarray], Decoded],
    points: np.ndarray,
    size: int,
    on_points: Callable[[int], None] | None = None,
) -> Iterator[tuple[int, jax.Array, jax.Array]]:
    """Decodes points (n, 2) in batches of one size; yields each batch's first index and results, in order.

    The next is in work while the caller has an earlier one. A CPU's cores decode one each, which is faster than each
    batch by all of them: they would wait for each other after every operation.

    Args:
      decode: `decode_points` of a model and an image.
      on_points: called with the number of points of each batch before it is decoded.
    """
    cores = decoding_cores()
    compiling = threading.Lock()  # one thread compiles, the others wait for it

    def on_core(batch: np.ndarray) -> Decoded:
        with compiling:
            found = decode(batch)
        done: Decoded = jax.block_until_ready(found)
        return done

    waiting: deque[tuple[int, Callable[[], Decoded]]] = deque()
    with ThreadPoolExecutor(max(1, cores), "decoding") as pool:
        for start in range(0, len(points), size):
            batch = points[start : start + size]
            if on_points is not None:
                on_points(len(batch))
            filled = np.concatenate([batch, np.repeat(batch[:1], size - len(batch), axis=0)])
            waiting.append((start, pool.submit(on_core, filled).result if cores else partial(_same, decode(filled))))
            if len(waiting) > max(1, cores):
                first, found = waiting.popleft()
                yield first, *found()
        for first, found in waiting:
            yield first, *found()


def _same(found: Decoded) -> Decoded:
    return found


def in_groups(few: Callable[[jax.Array], Any], rows: jax.Array) -> Any:
    """Applies `few` to all rows (n, ...), CPU_GROUP at a time."""
    padded = jnp.pad(rows, ((0, -len(rows) % CPU_GROUP), *((0, 0),) * (rows.ndim - 1)), mode="edge")
    found = jax.lax.map(few, padded.reshape(-1, CPU_GROUP, *rows.shape[1:]))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[: x.shape[1] * len(rows) // CPU_GROUP], found)
