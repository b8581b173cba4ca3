"""Kernels under a mesh: XLA cannot split them, so they say themselves that images go their own ways."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def split_over_batch(function: Callable[..., Any], rule: str) -> Callable[..., Any]:
    """The same function, of which each device computes its own part of the batch.

    Args:
      function: takes arrays and returns a tuple of arrays.
      rule: a letter for every axis of every array, "b n c, s d -> b n c, s d". Axis b, always the first, is the batch;
        results without it are added up over the devices. All other axes are whole on every device.
    """
    inputs, outputs = ([term.split()[0] == "b" for term in side.split(",")] for side in rule.split("->"))
    others = dict.fromkeys(letter for letter in rule if letter.isalpha() and letter != "b")

    def partition(mesh: Mesh, arguments: Any, results: Any) -> Any:
        spec = arguments[0].sharding.spec
        axes = spec[0] if spec else None
        split, whole = NamedSharding(mesh, PartitionSpec(axes)), NamedSharding(mesh, PartitionSpec())

        def part(*own: jax.Array) -> tuple[jax.Array, ...]:
            found = function(*own)
            if axes is None:
                return tuple(found)
            return tuple(x if batched else jax.lax.psum(x, axes) for x, batched in zip(found, outputs, strict=True))

        of = {True: split, False: whole}
        return mesh, part, tuple(of[b] for b in outputs), tuple(of[b] for b in inputs)

    @custom_partitioning
    def divided(*arguments: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(function(*arguments))

    divided.def_partition(partition=partition, sharding_rule=rule, need_replication_factors=tuple(others))
    return divided
