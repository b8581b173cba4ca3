"""Attention with decomposed relative positions (SAM's image encoder), written so that compilers can fuse it.

    softmax(q k^T / sqrt(D) + rel_h[query row, key row] + rel_w[query column, key column]) v

where rel_h and rel_w are dot products of the *unscaled* query with a table per axis (official
`add_decomposed_rel_pos`). Call `packed_attention`.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from sam_jax.ops import attention_tpu, attention_tpu_backward
from sam_jax.ops.attention_tiles import (
    Tiling,
    bias_columns,
    column_lanes,
    gather_heads,
    key_onehots,
    spread_heads,
    tiling_for,
)
from sam_jax.ops.batch_partition import split_over_batch
from sam_jax.ops.kernel_choice import run_gpu_kernel, run_kernel
from sam_jax.ops.products import einsum, einsum_float32, matmul

# Logits (4 bytes each) that the CPU form computes at once; heads with more are split into strips of queries.
CPU_CHUNK_LOGITS = 1 << 22


def packed_attention(
    qkv: jax.Array, table_h: jax.Array, table_w: jax.Array, num_heads: int, implementation: str = "auto"
) -> jax.Array:
    """Multi-head attention over an h x w grid of tokens, directly on the output of the qkv projection.

    Args:
      qkv: (B, h*w, 3C), row-major tokens; queries, keys and values concatenated along channels, each with
        D = C / num_heads channels per head. B may count windows.
      table_h: (2h - 1, D) and table_w: (2w - 1, D), indexed by query position - key position + size - 1.
      implementation: "auto", "xla", "pallas" or "triton", see `kernel_choice`.

    Returns:
      (B, h*w, C) in the dtype of qkv; logits and softmax are float32.

    Raises:
      ValueError: implementation is "pallas" or "triton" and its kernel does not support the shape.
    """
    xla = functools.partial(_xla, num_heads=num_heads)
    h, w, dim = (len(table_h) + 1) // 2, (len(table_w) + 1) // 2, table_h.shape[1]
    if implementation == "triton":
        return _on_gpu(h, w, num_heads, dim, qkv, table_h, table_w)
    try:
        tiling, problem = tiling_for(h, w, num_heads, dim), None
    except ValueError as error:
        tiling, problem = None, str(error)

    def kernel(*operands: jax.Array, interpret: bool) -> jax.Array:
        assert tiling is not None
        return _kernel(tiling, interpret, *operands)

    return run_kernel("attention", implementation, problem, kernel, xla, qkv, table_h, table_w)


def _on_gpu(h: int, w: int, heads: int, dim: int, *operands: jax.Array) -> jax.Array:
    """Attention by the Triton kernels."""
    from sam_jax.ops import attention_gpu

    try:
        blocks, problem = attention_gpu.blocks_for(h, w, heads, dim, operands[0].dtype), None
    except ValueError as error:
        blocks, problem = None, str(error)

    def kernel(*operands: jax.Array, interpret: bool) -> jax.Array:
        return _gpu_kernel(blocks, interpret, *operands)

    return run_gpu_kernel("attention", problem, kernel, *operands)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _gpu_kernel(blocks: Any, interpret: bool, qkv: jax.Array, table_h: jax.Array, table_w: jax.Array) -> jax.Array:
    from sam_jax.ops import attention_gpu_backward

    shape = {"h": blocks.h, "w": blocks.w, "t": 3, "n": blocks.heads}
    q = rearrange(qkv, "b (h w) (t n d) -> t b n h w d", **shape)[0]
    rel_h, rel_w = (relative_positions(table).astype(qkv.dtype) for table in (table_h, table_w))
    # Queries last, so that the kernels read those of a block in one piece.
    bias_h = rearrange(einsum("bnhwd,hkd->bnkhw", q, rel_h), "b n k h w -> b n k (h w)")
    bias_w = rearrange(einsum("bnhwd,wkd->bnkhw", q, rel_w), "b n k h w -> b n k (h w)")
    out: jax.Array = attention_gpu_backward.attend(blocks, interpret, qkv, bias_h, bias_w)
    return out


# Jitted separately so that blocks of the same shape are traced only once.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _kernel(t: Tiling, interpret: bool, qkv: jax.Array, table_h: jax.Array, table_w: jax.Array) -> jax.Array:
    spread: jax.Array = _attend(t, interpret, spread_heads(t, qkv), table_h, table_w)
    return gather_heads(t, spread)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(t: Tiling, interpret: bool, qkv: jax.Array, table_h: jax.Array, table_w: jax.Array) -> jax.Array:
    return _partitioned(t, interpret, "forward")(qkv, table_h, table_w, *_constants(t, qkv.dtype))[0]


def _attend_forward(t: Tiling, interpret: bool, *arguments: jax.Array) -> tuple[jax.Array, Any]:
    constants = _constants(t, arguments[0].dtype)
    out, lse = _partitioned(t, interpret, "forward with lse")(*arguments, *constants)
    return out, (*arguments, out, lse)


def _attend_backward(t: Tiling, interpret: bool, kept: Any, outer: jax.Array) -> Any:
    *arguments, out, lse = kept
    constants = *_constants(t, out.dtype), jnp.asarray(column_lanes(t))
    return tuple(_partitioned(t, interpret, "backward")(*arguments, *constants, out, lse, outer))


def _constants(t: Tiling, dtype: Any) -> tuple[jax.Array, jax.Array]:
    return jnp.asarray(key_onehots(t), dtype), jnp.asarray(bias_columns(t))


_attend.defvjp(_attend_forward, _attend_backward)


def _partitioned(t: Tiling, interpret: bool, direction: str) -> Any:
    """One direction of the kernel, split over the batch under a mesh."""
    if direction == "backward":
        backward = functools.partial(attention_tpu_backward.backward, t, interpret=interpret)
        batched = (True, False, False, False, False, False, True, True, True)
        return split_over_batch(backward, batched, (True, False, False))
    with_lse = direction == "forward with lse"
    forward = functools.partial(attention_tpu.forward, t, with_lse=with_lse, interpret=interpret)
    return split_over_batch(forward, (True, False, False, False, False), (True, True) if with_lse else (True,))


def relative_positions(table: jax.Array) -> jax.Array:
    """(2s - 1, D) -> (s, s, D), indexed [query position, key position]."""
    size = (table.shape[0] + 1) // 2
    offsets = np.arange(size)[:, None] - np.arange(size)[None, :] + size - 1
    return table[offsets]


def _xla(qkv: jax.Array, table_h: jax.Array, table_w: jax.Array, num_heads: int) -> jax.Array:
    q, k, v = rearrange(qkv, "b l (t n d) -> t b n l d", t=3, n=num_heads)
    x = attention_with_rel_pos(q, k, v, relative_positions(table_h), relative_positions(table_w))
    return rearrange(x, "b n l d -> b l (n d)")


def attention_with_rel_pos(q: jax.Array, k: jax.Array, v: jax.Array, rel_h: jax.Array, rel_w: jax.Array) -> jax.Array:
    """The XLA form, which compiles on every platform.

    Args:
      q, k, v: (B, heads, h*w, D), row-major tokens. B may count windows.
      rel_h: (h, h, D) and rel_w: (w, w, D), indexed [query position, key position].

    Returns:
      (B, heads, h*w, D) in q's dtype; logits and softmax are float32.
    """
    bias_h, bias_w = _decomposed_bias(q, rel_h, rel_w)
    if q.shape[2] * k.shape[2] <= CPU_CHUNK_LOGITS // 16:
        return _folded(q, k, v, bias_h, bias_w)
    return jax.lax.platform_dependent(q, k, v, bias_h, bias_w, cpu=_chunked, default=_folded)


def _decomposed_bias(q: jax.Array, rel_h: jax.Array, rel_w: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(B, heads, h*w, h) and (B, heads, h*w, w): each query's bias for every key row and every key column."""
    h, w = rel_h.shape[0], rel_w.shape[0]
    grid = rearrange(q, "b n (h w) d -> b n h w d", h=h, w=w)
    bias_h = einsum("bnhwd,hkd->bnhwk", grid, rel_h.astype(q.dtype))
    bias_w = einsum("bnhwd,wkd->bnhwk", grid, rel_w.astype(q.dtype))
    flat = "b n h w k -> b n (h w) k"
    return rearrange(bias_h, flat), rearrange(bias_w, flat)


def _folded(q: jax.Array, k: jax.Array, v: jax.Array, bias_h: jax.Array, bias_w: jax.Array) -> jax.Array:
    """Computes the bias inside the dot product: q' = [q s, bias_h, bias_w], k' = [k, onehot(row), onehot(column)].

    This is exact, needs no (h*w, h*w) bias tensor, and the TPU compiler recognises the rest as flash attention.
    """
    h, w = bias_h.shape[-1], bias_w.shape[-1]
    rows = np.repeat(np.eye(h, dtype=np.float32), w, axis=0)
    cols = np.tile(np.eye(w, dtype=np.float32), (h, 1))
    onehot = jnp.asarray(np.concatenate([rows, cols], axis=1), k.dtype)
    onehot = jnp.broadcast_to(onehot, (*k.shape[:2], *onehot.shape))
    q = jnp.concatenate([q * q.shape[-1] ** -0.5, bias_h, bias_w], axis=-1)
    k = jnp.concatenate([k, onehot], axis=-1)
    logits = einsum_float32("bnqd,bnkd->bnqk", q, k)
    return einsum("bnqk,bnkd->bnqd", jax.nn.softmax(logits).astype(v.dtype), v)


def _chunked(q: jax.Array, k: jax.Array, v: jax.Array, bias_h: jax.Array, bias_w: jax.Array) -> jax.Array:
    """Computes one head and one strip of queries at a time: memory use stays constant and logits fit in cache."""
    batch, heads, length, _ = q.shape
    strips = max(1, length * length // CPU_CHUNK_LOGITS)
    while length % strips:
        strips += 1

    def head(args: tuple[jax.Array, ...]) -> jax.Array:
        q, k, v, bias_h, bias_w = args
        kt = k.T * (k.shape[-1] ** -0.5)

        @jax.checkpoint
        def strip(args: tuple[jax.Array, ...]) -> jax.Array:
            q, bias_h, bias_w = args
            logits = matmul(q, kt).astype(jnp.float32)
            bias = bias_h[:, :, None].astype(jnp.float32) + bias_w[:, None, :].astype(jnp.float32)
            logits = logits + bias.reshape(logits.shape)
            logits = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
            total = logits.sum(axis=-1, keepdims=True)
            return (matmul(logits.astype(v.dtype), v) / total).astype(v.dtype)

        split = [rearrange(x, "(s q) d -> s q d", s=strips) for x in (q, bias_h, bias_w)]
        return rearrange(jax.lax.map(strip, tuple(split)), "s q d -> (s q) d")

    flat = tuple(rearrange(x, "b n l d -> (b n) l d") for x in (q, k, v, bias_h, bias_w))
    return rearrange(jax.lax.map(head, flat), "(b n) l d -> b n l d", b=batch, n=heads)
