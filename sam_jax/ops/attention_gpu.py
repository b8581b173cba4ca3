"""Attention with decomposed relative positions as Triton kernels for NVIDIA GPUs, for windows and for the whole grid.

A program computes a block of queries of one head, and goes through the keys one row of the grid at a time. So the bias
of a step is one number per query for the row of keys, and one per query and column that stays in registers throughout:
nothing of size tokens^2 is ever written to memory. Heads are read directly from the projection (B, tokens, 3C).

Logits and softmax are float32; exponentials have base 2, which is what the hardware computes. `attend`, which has
gradients, and the backward pass are in attention_gpu_backward.py.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from sam_jax.ops.products import dot_general

# Contractions of dot_general: a b^T, a b.
NT = (((1,), (1,)), ((), ()))
NN = (((1,), (0,)), ((), ()))
LOG2_E = 1.4426950408889634
# The smallest side of a matrix that tensor cores take; rows of keys are padded to it and to a power of two.
SMALLEST_SIDE = 16
WIDEST_GRID = WIDEST_HEAD = 128


@dataclasses.dataclass(frozen=True)
class Blocks:
    """An h x w grid of tokens with `heads` heads of `dim` channels.

    A program computes `block` queries of a head by `warps` of 32 threads.
    """

    h: int
    w: int
    heads: int
    dim: int
    block: int
    warps: int

    @property
    def tokens(self) -> int:
        """Number of queries, and of keys."""
        return self.h * self.w

    @property
    def columns(self) -> int:
        """Keys of one step: a row of the grid, padded to a power of two."""
        return max(SMALLEST_SIDE, 1 << (self.w - 1).bit_length())

    @property
    def query_blocks(self) -> int:
        """Number of blocks that cover all queries; the last one may reach beyond them."""
        return -(-self.tokens // self.block)

    @property
    def pieces(self) -> list[tuple[int, int]]:
        """(first channel, channels) of the parts of a head: Triton's arrays have sides of powers of two."""
        sizes = [1 << bit for bit in reversed(range(self.dim.bit_length())) if self.dim >> bit & 1]
        return [(sum(sizes[:n]), size) for n, size in enumerate(sizes)]

    @property
    def exponent_scale(self) -> float:
        """What products of queries and keys are multiplied with: 1 / sqrt(D), for exponentials of base 2."""
        return float(self.dim**-0.5 * LOG2_E)


def blocks_for(h: int, w: int, heads: int, dim: int, dtype: Any) -> Blocks:
    """The blocks for a shape.

    Raises:
      ValueError: the kernels do not support the shape or dtype; the message says why.
    """
    if dim % SMALLEST_SIDE or dim > WIDEST_HEAD:
        raise ValueError(f"heads have {dim} channels; expected a multiple of {SMALLEST_SIDE} up to {WIDEST_HEAD}")
    if w > WIDEST_GRID:
        raise ValueError(f"the grid is {h} x {w}; its width is limited to {WIDEST_GRID}")
    if dtype not in (jnp.float32, jnp.bfloat16):
        raise ValueError(f"the dtype is {jnp.dtype(dtype).name}; expected float32 or bfloat16")
    # float32 is multiplied without tensor cores, so everything lies in registers, of which more warps have more.
    block, warps = (64, 4) if dtype == jnp.bfloat16 else (32, 8)
    return Blocks(h, w, heads, dim, block, warps)


def forward(
    s: Blocks, qkv: jax.Array, bias_h: jax.Array, bias_w: jax.Array, interpret: bool
) -> tuple[jax.Array, jax.Array]:
    """softmax(q k^T / sqrt(D) + bias_h[key row] + bias_w[key column]) v of all heads.

    Args:
      qkv: (B, tokens, 3C); queries, keys and values concatenated along channels.
      bias_h: (B, heads, h, tokens) and bias_w: (B, heads, w, tokens), for each key row or column and each query.
      interpret: run on any platform, slowly.

    Returns:
      (B, tokens, C) in the dtype of qkv, and the log-sum-exp of the logits to base 2, (B, heads, tokens) float32.
    """
    batch = len(qkv)
    found: tuple[jax.Array, jax.Array] = pl.pallas_call(
        functools.partial(_forward_kernel, s),
        name=f"attention_{s.h}x{s.w}_{s.heads}x{s.dim}",
        grid=(s.query_blocks, s.heads, batch),
        in_specs=[*(head_spec(s, part) for part in range(3)), bias_spec(s, s.h), bias_spec(s, s.w)],
        out_specs=[head_spec(s), query_spec(s)],
        out_shape=[
            jax.ShapeDtypeStruct((batch, s.tokens, s.heads * s.dim), qkv.dtype),
            jax.ShapeDtypeStruct((batch, s.heads, s.tokens), jnp.float32),
        ],
        compiler_params=plgpu.CompilerParams(num_warps=s.warps, num_stages=2),
        interpret=interpret,
    )(qkv, qkv, qkv, bias_h, bias_w)
    return found


def head_spec(s: Blocks, part: int = 0) -> pl.BlockSpec:
    """All tokens of a program's head, in arrays (B, tokens, C) or q, k or v (`part` 0, 1 or 2) of (B, tokens, 3C)."""
    return pl.BlockSpec((None, s.tokens, s.dim), lambda i, n, b: (b, 0, part * s.heads + n))


def bias_spec(s: Blocks, side: int) -> pl.BlockSpec:
    """The bias of a program's head, in arrays (B, heads, side, tokens)."""
    return pl.BlockSpec((None, None, side, s.tokens), lambda i, n, b: (b, n, 0, 0))


def query_spec(s: Blocks) -> pl.BlockSpec:
    """One number per query of a program's head, in arrays (B, heads, tokens)."""
    return pl.BlockSpec((None, None, s.tokens), lambda i, n, b: (b, n, 0))


def _forward_kernel(
    s: Blocks, q_ref: Any, k_ref: Any, v_ref: Any, bias_h_ref: Any, bias_w_ref: Any, out_ref: Any, lse_ref: Any
) -> None:
    own = queries_of(s, pl.program_id(0))
    queries = load_head(s, q_ref, own, s.tokens)
    bias_w = load_bias_w(s, bias_w_ref, own).T

    def step(row: Any, carry: Any) -> Any:
        top, total, mixed = carry
        keys = keys_of(s, row)
        logits = s.exponent_scale * product(queries, load_head(s, k_ref, keys, (row + 1) * s.w))
        logits = logits + load_bias_h(s, bias_h_ref, row, own)[:, None] + bias_w
        highest = jnp.maximum(top, logits.max(axis=1))
        weights = jnp.exp2(logits - highest[:, None])
        fade = jnp.exp2(top - highest)
        values = load_head(s, v_ref, keys, (row + 1) * s.w)
        mixed = [fade[:, None] * old + dot(weights.astype(x.dtype), x) for old, x in zip(mixed, values, strict=True)]
        return highest, fade * total + weights.sum(axis=1), mixed

    nothing = [jnp.zeros((s.block, size), jnp.float32) for _, size in s.pieces]
    start = (jnp.full(s.block, -jnp.inf, jnp.float32), jnp.zeros(s.block, jnp.float32), nothing)
    top, total, mixed = jax.lax.fori_loop(0, s.h, step, start)
    store_head(s, out_ref, own, s.tokens, [x / total[:, None] for x in mixed])
    plgpu.store(lse_ref.at[own], top + jnp.log2(total), mask=own < s.tokens)


def dot(a: jax.Array, b: jax.Array, dimensions: Any = NN) -> jax.Array:
    """A product of two matrices, accumulated in float32."""
    return dot_general(a, b, dimensions, preferred_element_type=jnp.float32)


def product(a: Sequence[jax.Array], b: Sequence[jax.Array]) -> jax.Array:
    """a b^T of heads in pieces, (rows of a, rows of b) float32."""
    parts = [dot(x, y, NT) for x, y in zip(a, b, strict=True)]
    return sum(parts[1:], parts[0])


def queries_of(s: Blocks, block: Any) -> jax.Array:
    """(block,) int32: numbers of the queries of a block; those from `tokens` on do not exist."""
    return block * s.block + jnp.arange(s.block, dtype=jnp.int32)


def keys_of(s: Blocks, row: Any) -> jax.Array:
    """(columns,) int32: numbers of the keys of a row of the grid; from the `w`-th on they are padding."""
    return row * s.w + jnp.arange(s.columns, dtype=jnp.int32)


def load_head(s: Blocks, ref: Any, tokens: jax.Array, end: Any) -> list[jax.Array]:
    """A head's channels of these tokens, in pieces; zero from the token `end` on."""
    real = (tokens < end)[:, None]
    return [plgpu.load(_piece(ref, tokens, piece), mask=real, other=0.0) for piece in s.pieces]


def store_head(s: Blocks, ref: Any, tokens: jax.Array, end: Any, pieces: Sequence[jax.Array]) -> None:
    """The inverse of `load_head`."""
    real = (tokens < end)[:, None]
    for piece, x in zip(s.pieces, pieces, strict=True):
        plgpu.store(_piece(ref, tokens, piece), x.astype(ref.dtype), mask=jnp.broadcast_to(real, x.shape))


def _piece(ref: Any, tokens: jax.Array, piece: tuple[int, int]) -> Any:
    first, size = piece
    return ref.at[tokens[:, None], first + jnp.arange(size, dtype=jnp.int32)[None, :]]


def load_bias_w(s: Blocks, ref: Any, queries: jax.Array) -> jax.Array:
    """(columns, block) float32 to base 2; columns that do not exist get -inf, so that nobody attends to them."""
    columns = jnp.arange(s.columns, dtype=jnp.int32)[:, None]
    real = (columns < s.w) & (queries < s.tokens)[None, :]
    bias = plgpu.load(ref.at[columns, queries[None, :]], mask=real, other=0.0)
    return jnp.where(columns < s.w, LOG2_E * bias.astype(jnp.float32), -jnp.inf)


def load_bias_h(s: Blocks, ref: Any, row: Any, queries: jax.Array) -> jax.Array:
    """(block,) float32 to base 2: each query's bias for one row of keys."""
    bias = plgpu.load(ref.at[row, queries], mask=queries < s.tokens, other=0.0)
    return LOG2_E * bias.astype(jnp.float32)
