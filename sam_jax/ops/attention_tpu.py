"""Attention with relative positions as one TPU kernel, for windows and for the whole grid; see attention_tiles.py.

A grid step reads the queries, keys and values of its heads directly from the projection (B, tokens, 3C), so that no
head is transposed in memory, computes the relative position bias in place, and keeps logits in VMEM: nothing of size
tokens^2 is written to HBM. Logits and softmax are float32. The backward pass is in attention_tpu_backward.py.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from sam_jax.ops.attention_tiles import (
    LANES,
    Tiling,
    place_tables,
)
from sam_jax.ops.products import dot_general, tpu_passes

VMEM_LIMIT = 64 * 2**20
# Contractions of dot_general: a b^T, a b, a^T b.
NT = (((1,), (1,)), ((), ()))
NN = (((1,), (0,)), ((), ()))
TN = (((0,), (0,)), ((), ()))


def dot(a: jax.Array, b: jax.Array, dimensions: Any = NN) -> jax.Array:
    """A product of two matrices, accumulated in float32."""
    return dot_general(a, b, dimensions, preferred_element_type=jnp.float32)


def lane_numbers() -> jax.Array:
    """(1, 128): 0 .. 127."""
    return jax.lax.broadcasted_iota(jnp.int32, (1, LANES), 1)


def own_lanes(t: Tiling, head: int) -> jax.Array:
    """(1, 128) bool: the lanes of a head's channels in the output of `take_head`."""
    first = t.first_lane(head % t.slots)
    return (lane_numbers() >= first) & (lane_numbers() < first + t.dim)


def take_head(t: Tiling, x: jax.Array, head: int) -> jax.Array:
    """(rows, step_lanes) -> the 128 lanes (rows, 128) around a head, which starts at the first lane of its slot."""
    start = head * t.stride
    first, shift = start // LANES * LANES, start % LANES
    if t.slots > 1 or shift == 0:
        return x[:, first : first + LANES]
    wide = x[:, first : first + (LANES if shift + t.dim <= LANES else 2 * LANES)]
    turned = pltpu.roll(wide.astype(jnp.float32), wide.shape[1] - shift, 1)
    return turned[:, :LANES].astype(x.dtype)


def put_head(t: Tiling, blocks: list[Any], head: int, x: jax.Array) -> None:
    """The inverse of `take_head`: adds (rows, 128), zero outside the head's lanes, to a step's blocks of 128 lanes."""
    start = head * t.stride
    first, shift = start // LANES, start % LANES
    if t.slots > 1 or shift == 0:
        parts = [x]
    else:
        turned = pltpu.roll(x, shift, 1)
        parts = [jnp.where(lane_numbers() >= shift, turned, 0.0)]
        if shift + t.dim > LANES:
            parts.append(jnp.where(lane_numbers() < shift, turned, 0.0))
    for block, part in enumerate(parts, first):
        held = blocks[block]
        blocks[block] = part if held is None else held + part


def bias_channels(t: Tiling, q: jax.Array, tables: jax.Array, columns: jax.Array) -> jax.Array:
    """(rows, 128) float32: each query's bias for every key row and column in the bias lanes; other lanes are undefined
    but finite.

    One product with the whole table gives the bias for all offsets; each query then picks the ones it needs.
    """
    for_rows = pick(dot(q, tables[0]), columns)
    if t.joint:
        return for_rows
    return jnp.where(lane_numbers() < t.h, for_rows, pick(dot(q, tables[1]), columns))


def pick(x: jax.Array, lanes: jax.Array) -> jax.Array:
    """out[i, j] = x[i, lanes[i, j]]."""
    return jnp.take_along_axis(x, lanes, axis=1, mode="promise_in_bounds")


def query_vectors(t: Tiling, q: jax.Array, tables: jax.Array, columns: jax.Array, own: jax.Array) -> jax.Array:
    """Queries (rows, 128) -> their scaled channels and their bias: (rows, 128 or 256) in q's dtype."""
    scaled = (q.astype(jnp.float32) * t.dim**-0.5).astype(q.dtype)
    bias = bias_channels(t, q, tables, columns).astype(q.dtype)
    if t.packed:
        return jnp.where(own, scaled, bias)
    return jnp.concatenate([jnp.where(own, scaled, 0).astype(q.dtype), bias], axis=1)


def key_vectors(t: Tiling, k: jax.Array, onehots: jax.Array, own: jax.Array) -> jax.Array:
    """Keys (rows, 128) -> the vectors that `query_vectors` are multiplied with: (rows, 128 or 256) in k's dtype."""
    return jnp.where(own, k, onehots) if t.packed else jnp.concatenate([k, onehots], axis=1)


def as_row(x: jax.Array) -> jax.Array:
    """Sums (rows, 128) over lanes and transposes to (1, rows), on the matrix unit."""
    return dot(jnp.ones((8, LANES), jnp.float32), x, NT)[:1]


def _forward_kernel(t: Tiling, q_ref: Any, k_ref: Any, v_ref: Any, *refs: Any) -> None:
    tables_ref, onehots_ref, columns_ref, out_ref, *lse_ref = refs
    blocks: list[Any] = [None] * (t.step_lanes // LANES)
    for head in range(t.step_heads):
        slot = head % t.slots
        tables, columns = tables_ref[slot], columns_ref[slot if t.packed else 0]
        out, lse = _attend(t, head, (q_ref, k_ref, v_ref), tables, onehots_ref[slot if t.packed else 0], columns)
        put_head(t, blocks, head, out)
        if lse_ref:
            lse_ref[0][0, 0, head : head + 1] = as_row(jnp.where(lane_numbers() == 0, lse, 0.0))
    for number, block in enumerate(blocks):
        out_ref[0, :, number * LANES : (number + 1) * LANES] = block.astype(out_ref.dtype)


def _attend(
    t: Tiling, head: int, qkv: tuple[Any, Any, Any], tables: jax.Array, onehots: jax.Array, columns: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """One head of a step: outputs (block, 128), zero outside its lanes, and log-sum-exp of its logits (block, 1)."""
    q_ref, k_ref, v_ref = qkv
    own = own_lanes(t, head)
    queries = query_vectors(t, take_head(t, q_ref[0], head), tables, columns, own)
    top: Any = None
    total: Any = None
    mixed: Any = None
    for start in range(0, t.tokens, t.chunk):
        here = slice(start, start + t.chunk)
        keys = key_vectors(t, take_head(t, k_ref[0, here], head), onehots[here], own)
        logits = dot(queries, keys, NT)
        highest = logits.max(axis=-1, keepdims=True)
        if top is not None:
            highest = jnp.maximum(top, highest)
        weights = jnp.exp(logits - highest)
        part = dot(weights.astype(keys.dtype), take_head(t, v_ref[0, here], head))
        if top is None:
            total, mixed = weights.sum(axis=-1, keepdims=True), part
        else:
            fade = jnp.exp(top - highest)
            total, mixed = fade * total + weights.sum(axis=-1, keepdims=True), fade * mixed + part
        top = highest
    return jnp.where(own, mixed * (1.0 / total), 0.0), top + jnp.log(total)


def forward(
    t: Tiling,
    qkv: jax.Array,
    table_h: jax.Array,
    table_w: jax.Array,
    onehots: jax.Array,
    columns: jax.Array,
    with_lse: bool,
    interpret: bool,
) -> tuple[jax.Array, ...]:
    """Attention of all heads.

    Args:
      qkv: (B, tokens, 3 * heads * stride); table_h: (2h - 1, D); table_w: (2w - 1, D).
      onehots, columns: `key_onehots` in qkv's dtype and `bias_columns`.
      with_lse: also return the log-sum-exp of the logits, which the backward pass needs.

    Returns:
      (B, tokens, heads * stride) in qkv's dtype, and with `with_lse` (B, groups, step_heads, tokens) float32.
    """
    constants = (place_tables(t, table_h.astype(qkv.dtype), table_w.astype(qkv.dtype)), onehots, columns)
    out_shape = [jax.ShapeDtypeStruct((*qkv.shape[:2], t.heads * t.stride), qkv.dtype)]
    out_specs = [query_spec(t)]
    if with_lse:
        out_shape.append(jax.ShapeDtypeStruct((len(qkv), t.groups, t.step_heads, t.tokens), jnp.float32))
        out_specs.append(lse_spec(t))
    return pl.pallas_call(
        partial(_forward_kernel, t),
        name=f"attention_{t.h}x{t.w}_{t.heads}x{t.dim}",
        grid=(len(qkv), t.groups, t.tokens // t.block),
        in_specs=[query_spec(t), key_spec(t, 1), key_spec(t, 2), *constant_specs(t, constants)],
        out_specs=out_specs,
        out_shape=out_shape,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=VMEM_LIMIT
        ),
        cost_estimate=cost_estimate(t, qkv, products=2 if t.packed else 3, arrays=4),
        interpret=interpret,
    )(qkv, qkv, qkv, *constants)


def query_spec(t: Tiling) -> pl.BlockSpec:
    """The queries and lanes of a step, in arrays (B, tokens, lanes)."""
    return pl.BlockSpec((1, t.block, t.step_lanes), lambda b, g, i: (b, i, g))


def key_spec(t: Tiling, part: int) -> pl.BlockSpec:
    """All tokens and the lanes of a step, in q, k or v (`part` 0, 1 or 2)."""
    return pl.BlockSpec((1, t.tokens, t.step_lanes), lambda b, g, i: (b, 0, part * t.groups + g))


def lse_spec(t: Tiling) -> pl.BlockSpec:
    """The queries of a step, in arrays (B, groups, step_heads, tokens)."""
    return pl.BlockSpec((1, 1, t.step_heads, t.block), lambda b, g, i: (b, g, 0, i))


def constant_specs(t: Tiling, constants: tuple[jax.Array, jax.Array, jax.Array]) -> list[pl.BlockSpec]:
    """Tables and one-hots whole; the columns of the step's queries."""
    tables, onehots, columns = constants
    return [
        pl.BlockSpec(tables.shape, lambda b, g, i: (0, 0, 0, 0)),
        pl.BlockSpec(onehots.shape, lambda b, g, i: (0, 0, 0)),
        pl.BlockSpec((len(columns), t.block, LANES), lambda b, g, i: (0, i, 0)),
    ]


def cost_estimate(t: Tiling, qkv: jax.Array, products: int, arrays: int) -> pl.CostEstimate:
    """FLOPs that the matrix unit executes: `products` of (tokens, 128) with (128, tokens) per head, with padding."""
    pairs = len(qkv) * t.heads * t.tokens * (-(-t.tokens // LANES) * LANES)
    tables = len(qkv) * t.heads * t.tokens * LANES * (1 if t.joint else 2)
    channels = len(qkv) * t.tokens * t.heads * t.stride * qkv.dtype.itemsize
    return pl.CostEstimate(
        flops=2 * LANES * (products * pairs + tables) * tpu_passes(qkv.dtype),
        transcendentals=pairs,
        bytes_accessed=arrays * channels,
    )
