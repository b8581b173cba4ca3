"""Kernels under a mesh: XLA cannot partition them, so `shard_map` splits them over the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec


def split_over_batch(function: Callable[..., Any], arguments: Sequence[bool], results: Sequence[bool]) -> Any:
    """The same function, with the batch split over the devices of the arguments' mesh.

    If the batch does not divide evenly, every device computes all of it. Without a mesh nothing changes.

    Args:
      function: takes arrays and returns a tuple of arrays.
      arguments, results: for each, whether its first axis is the batch. Results without one are summed over the batch.
    """

    def divided(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        mesh = jax.typeof(arrays[0]).sharding.mesh
        if mesh.empty or mesh.size == 1 or AxisType.Manual in mesh.axis_types:
            return tuple(function(*arrays))
        axes = mesh.axis_names if len(arrays[0]) % mesh.size == 0 else ()

        def part(*own: jax.Array) -> tuple[jax.Array, ...]:
            found = zip(function(*own), results, strict=True)
            return tuple(x if batched or not axes else jax.lax.psum(x, axes) for x, batched in found)

        specs = {True: PartitionSpec(axes or None), False: PartitionSpec()}
        # check_vma needs to know over which mesh axes results vary, and Pallas does not say.
        mapped: Any = jax.shard_map(
            part,
            mesh=mesh,
            in_specs=tuple(specs[batched] for batched in arguments),
            out_specs=tuple(specs[batched] for batched in results),
            check_vma=False,
        )
        divided: tuple[jax.Array, ...] = mapped(*arrays)
        return divided

    return divided
