"""Placement of arrays: the device mesh, batches, and parameters split by path and shape. Works on any pytree.

Axes: `data` counts whole copies of the parameters, `fsdp` the devices that share one copy. Batches are split over both.
Random numbers drawn inside `jax.jit` do not depend on the mesh, so all hosts draw the same.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp")
# Arrays with fewer elements are cheaper to replicate than to gather.
MIN_SPLIT_ELEMENTS = 1 << 14

Rules = Sequence[tuple[str, PartitionSpec]]


def make_mesh(data: int = -1, fsdp: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of `data` x `fsdp` devices; data -1 uses all devices.

    Raises:
      ValueError: the number of devices does not fit.
    """
    devices = jax.devices() if devices is None else list(devices)
    count = len(devices)
    if count % fsdp or (data != -1 and data * fsdp != count):
        wanted = f"{'any' if data == -1 else data} x {fsdp}"
        raise ValueError(f"{count} devices cannot form a mesh of data x fsdp = {wanted}; change mesh.data or mesh.fsdp")
    shape = (count // fsdp, fsdp)
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """A sharding with the whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """A sharding with the leading axis split over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def to_global(mesh: Mesh, batch: Any) -> Any:
    """A global batch from the part of each host: numpy (B / hosts, ...) -> jax.Array (B, ...)."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


def check_batch(mesh: Mesh, batch_size: int, pieces: int = 1) -> None:
    """Raises ValueError unless every device gets the same number of images in each of `pieces` microbatches."""
    devices = math.prod(mesh.devices.shape)
    if batch_size % (devices * pieces):
        split = f"{devices} devices" + (f" x {pieces} accumulated pieces" if pieces > 1 else "")
        raise ValueError(
            f"batch_size {batch_size} does not divide over {split}; choose a multiple of {devices * pieces}"
        )


def tree_shardings(mesh: Mesh, shapes: Any, rules: Rules = ()) -> Any:
    """A sharding for every leaf of a tree of arrays or shapes.

    The first rule whose pattern matches a leaf's whole path ("params/.../kernel") applies. Other leaves are split over
    `fsdp` along their largest divisible axis if they have at least MIN_SPLIT_ELEMENTS, else replicated.

    Raises:
      ValueError: a rule matches no leaf.
    """
    used: set[str] = set()

    def choose(path: Any, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        for pattern, spec in rules:
            if re.fullmatch(pattern, name):
                used.add(pattern)
                return NamedSharding(mesh, spec)
        return NamedSharding(mesh, _split_by_shape(leaf.shape, mesh.shape["fsdp"]))

    shardings = jax.tree_util.tree_map_with_path(choose, shapes)
    if idle := [pattern for pattern, _ in rules if pattern not in used]:
        raise ValueError(f"sharding rules {idle} match no array")
    return shardings


def _split_by_shape(shape: tuple[int, ...], ways: int) -> PartitionSpec:
    if ways == 1 or math.prod(shape) < MIN_SPLIT_ELEMENTS:
        return PartitionSpec()
    divisible = [axis for axis in range(len(shape)) if shape[axis] % ways == 0]
    if not divisible:
        return PartitionSpec()
    largest = max(divisible, key=lambda axis: (shape[axis], axis))
    return PartitionSpec(*("fsdp" if axis == largest else None for axis in range(len(shape))))
