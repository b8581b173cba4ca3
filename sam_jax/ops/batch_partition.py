"""Kernels under a mesh: XLA cannot split them, so they say themselves that images go their own ways."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec


def split_over_batch(function: Callable[..., Any], arguments: Sequence[bool], results: Sequence[bool]) -> Any:
    """The same function, of which each device of the arguments' mesh computes its own part of the batch.

    Every device computes all of it where the batch does not divide. Without a mesh nothing changes.

    Args:
      function: takes arrays and returns a tuple of arrays.
      arguments, results: for each, whether the batch is its first axis. Results without it are sums over the batch.
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
        # Pallas does not say over which axes its results vary, which is what check_vma would want to know.
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
