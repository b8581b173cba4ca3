"""The backward pass of attention_tpu.py as one TPU kernel: logits are recomputed block by block and never stored.

Blocks have keys along sublanes and queries along lanes, so that only one product needs a transposed left operand.
Gradients of keys and values are accumulated in float32 in VMEM over the blocks of queries.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from sam_jax.ops.attention_tiles import (
    LANES,
    Tiling,
    collect_tables,
    place_tables,
)
from sam_jax.ops.attention_tpu import (
    NT,
    TN,
    VMEM_LIMIT,
    as_row,
    constant_specs,
    cost_estimate,
    dot,
    key_spec,
    key_vectors,
    lse_spec,
    own_lanes,
    pick,
    put_head,
    query_spec,
    query_vectors,
    take_head,
)


class _Queries(NamedTuple):
    """What the backward pass needs of one head's queries in a step."""

    vectors: jax.Array  # (block, 128 or 256): scaled channels and bias
    scaled: jax.Array  # (block, 128): scaled channels alone
    outer: jax.Array  # (block, 128): the output's gradient
    lse: jax.Array  # (1, block): log-sum-exp of the logits
    delta: jax.Array  # (1, block): the output's gradient times the output


def _backward_kernel(t: Tiling, *refs: Any) -> None:
    q_ref, k_ref, v_ref, outer_ref, out_ref, lse_ref, tables_ref, onehots_ref, columns_ref, lanes_ref = refs[:10]
    dq_ref, dk_ref, dv_ref, dtables_ref = refs[10:]
    first_block = pl.program_id(2) == 0

    @pl.when(first_block)
    def _() -> None:
        dk_ref[...] = jnp.zeros_like(dk_ref)
        dv_ref[...] = jnp.zeros_like(dv_ref)

    @pl.when(first_block & (pl.program_id(0) == 0) & (pl.program_id(1) == 0))
    def _() -> None:
        dtables_ref[...] = jnp.zeros_like(dtables_ref)

    blocks: list[Any] = [None] * (t.step_lanes // LANES)
    for head in range(t.step_heads):
        slot = head % t.slots
        shared = slot if t.packed else 0
        own, tables = own_lanes(t, head), tables_ref[slot]
        q = take_head(t, q_ref[0], head)
        outer = jnp.where(own, take_head(t, outer_ref[0], head), 0)
        product = outer.astype(jnp.float32) * take_head(t, out_ref[0], head).astype(jnp.float32)
        vectors = query_vectors(t, q, tables, columns_ref[shared], own)
        scaled = jnp.where(own, vectors[:, :LANES], 0)
        queries = _Queries(vectors, scaled, outer, lse_ref[0, 0, head : head + 1], as_row(product))
        found = _keys_and_values(t, head, queries, (k_ref, v_ref, onehots_ref[shared]), (dk_ref, dv_ref))
        dq, dtables = _queries_and_tables(t, jnp.where(own, q, 0), found, own, tables, lanes_ref[shared])
        put_head(t, blocks, head, dq)
        dtables_ref[slot] += dtables
    for number, block in enumerate(blocks):
        dq_ref[0, :, number * LANES : (number + 1) * LANES] = block.astype(dq_ref.dtype)


def _keys_and_values(
    t: Tiling, head: int, queries: _Queries, keys_values: tuple[Any, Any, jax.Array], gradients: tuple[Any, Any]
) -> jax.Array:
    """Adds a head's gradients of keys and values to `gradients`; returns that of its query vectors, (block, 128 or
    256) float32."""
    k_ref, v_ref, onehots = keys_values
    own = own_lanes(t, head)
    total = jnp.zeros(queries.vectors.shape, jnp.float32)
    for start in range(0, t.tokens, t.chunk):
        here = slice(start, start + t.chunk)
        keys = key_vectors(t, take_head(t, k_ref[0, here], head), onehots[here], own)
        values = take_head(t, v_ref[0, here], head)
        weights = jnp.exp(dot(keys, queries.vectors, NT) - queries.lse)
        inner = weights * (dot(values, queries.outer, NT) - queries.delta)
        weights, inner = weights.astype(keys.dtype), inner.astype(keys.dtype)
        for ref, gradient in zip(gradients, (dot(inner, queries.scaled), dot(weights, queries.outer)), strict=True):
            _add(t, ref, here, head, gradient)
        total = total + dot(inner, keys, TN)
    return total


def _add(t: Tiling, ref: Any, rows: slice, head: int, gradient: jax.Array) -> None:
    """Adds a head's (rows, 128) into a float32 block (1, tokens, step_lanes)."""
    blocks: list[Any] = [None] * (t.step_lanes // LANES)
    put_head(t, blocks, head, gradient)
    for number, block in enumerate(blocks):
        if block is not None:
            ref[0, rows, number * LANES : (number + 1) * LANES] += block


def _queries_and_tables(
    t: Tiling, q: jax.Array, found: jax.Array, own: jax.Array, tables: jax.Array, lanes: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Gradient of the query vectors -> gradients of queries (block, 128) and of tables (1 or 2, 128, 128)."""
    dq = jnp.where(own, found[:, :LANES], 0.0) * t.dim**-0.5
    bias = found[:, -LANES:]
    dtables = []
    for table, where in zip(tables, lanes, strict=True):
        offsets = jnp.where(where >= 0, pick(bias, jnp.maximum(where, 0)), 0.0).astype(q.dtype)
        dq = dq + dot(offsets, table, NT)
        dtables.append(dot(q, offsets, TN))
    return dq, jnp.stack(dtables)


def backward(
    t: Tiling,
    qkv: jax.Array,
    table_h: jax.Array,
    table_w: jax.Array,
    onehots: jax.Array,
    columns: jax.Array,
    lanes: jax.Array,
    out: jax.Array,
    lse: jax.Array,
    outer: jax.Array,
    interpret: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients of qkv and both tables.

    Args:
      qkv, table_h, table_w, onehots, columns: the arguments of `forward`.
      lanes: `column_lanes`.
      out, lse: the results of `forward`.
      outer: gradient of `out`.
    """
    constants = (place_tables(t, table_h.astype(qkv.dtype), table_w.astype(qkv.dtype)), onehots, columns)
    whole = pl.BlockSpec((1, t.tokens, t.step_lanes), lambda b, g, i: (b, 0, g))
    sums = jax.ShapeDtypeStruct(out.shape, jnp.float32)
    dq, dk, dv, dtables = pl.pallas_call(
        partial(_backward_kernel, t),
        name=f"attention_{t.h}x{t.w}_{t.heads}x{t.dim}_backward",
        grid=(len(qkv), t.groups, t.tokens // t.block),
        in_specs=[
            query_spec(t),
            key_spec(t, 1),
            key_spec(t, 2),
            query_spec(t),
            query_spec(t),
            lse_spec(t),
            *constant_specs(t, constants),
            pl.BlockSpec((*lanes.shape[:2], t.block, LANES), lambda b, g, i: (0, 0, i, 0)),
        ],
        out_specs=[query_spec(t), whole, whole, pl.BlockSpec(constants[0].shape, lambda b, g, i: (0, 0, 0, 0))],
        out_shape=[
            jax.ShapeDtypeStruct(out.shape, qkv.dtype),
            sums,
            sums,
            jax.ShapeDtypeStruct(constants[0].shape, jnp.float32),
        ],
        # The gradients of the tables are summed over all steps, so steps must not run in parallel.
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",) * 3, vmem_limit_bytes=VMEM_LIMIT),
        cost_estimate=cost_estimate(t, qkv, products=5 if t.packed else 7, arrays=12),
        interpret=interpret,
    )(qkv, qkv, qkv, outer, out, lse, *constants, lanes)
    dqkv = jnp.concatenate([dq, dk.astype(qkv.dtype), dv.astype(qkv.dtype)], axis=-1)
    dtable_h, dtable_w = collect_tables(t, dtables)
    return dqkv, dtable_h.astype(table_h.dtype), dtable_w.astype(table_w.dtype)
