"""Layout of attention with relative positions in a TPU's 128 lanes: the bias becomes extra channels of each head.

    logits = q k^T / sqrt(D) + rel_h[query row, key row] + rel_w[query column, key column]

is one dot product of longer vectors: the query is extended by its bias for every key row and every key column, the key
by one-hot vectors of its row and its column. If D + h + w <= 128, the bias fits into the lanes that the head leaves
free ("packed": 14 x 14 windows); otherwise it takes 128 lanes of its own ("wide": the 64 x 64 grid).
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from sam_jax.ops.products import matmul

LANES = 128
# Up to this many tokens, a grid step takes all queries; above, it takes a block of this many.
BLOCK_QUERIES = 256


@dataclasses.dataclass(frozen=True)
class Tiling:
    """An h x w grid of tokens with `heads` heads of `dim` channels, placed `stride` lanes apart.

    A grid step of a kernel computes `block` queries of `step_heads` heads against all keys, `chunk` keys at a time.
    """

    h: int
    w: int
    heads: int
    dim: int
    stride: int
    step_heads: int
    block: int
    chunk: int

    @property
    def tokens(self) -> int:
        """Number of queries, and of keys."""
        return self.h * self.w

    @property
    def groups(self) -> int:
        """Number of grid steps that cover all heads."""
        return self.heads // self.step_heads

    @property
    def step_lanes(self) -> int:
        """Number of lanes of one grid step: its heads side by side."""
        return self.step_heads * self.stride

    @property
    def packed(self) -> bool:
        """Whether the bias fits into lanes that the head leaves free."""
        return self.dim + self.h + self.w <= LANES

    @property
    def joint(self) -> bool:
        """Whether both tables of relative positions fit side by side into 128 columns."""
        return 2 * (self.h + self.w - 1) <= LANES

    @property
    def slots(self) -> int:
        """Positions that a head can have within 128 lanes; 1 if heads straddle blocks: they are moved to lane 0."""
        return LANES // self.stride if LANES % self.stride == 0 else 1

    def first_lane(self, slot: int) -> int:
        """The first lane of a head in this slot."""
        return slot * self.stride

    def bias_lanes(self, slot: int) -> np.ndarray:
        """(h + w,) lanes of the bias: one for each key row, then one for each key column."""
        first = self.first_lane(slot)
        free = [lane for lane in range(LANES) if not first <= lane < first + self.dim]
        return np.array(free if self.packed else range(LANES))[: self.h + self.w]


def tiling_for(h: int, w: int, heads: int, dim: int) -> Tiling:
    """The tiling for a shape.

    Raises:
      ValueError: the kernels do not support the shape; the message says why.
    """
    tokens, straddles = h * w, LANES % dim != 0
    if dim % 8 or dim > LANES:
        raise ValueError(f"heads have {dim} channels; expected a multiple of 8 up to {LANES}")
    if max(h, w) > LANES // 2:
        raise ValueError(f"the grid is {h} x {w}; its sides are limited to {LANES // 2}")
    if tokens > BLOCK_QUERIES and tokens % BLOCK_QUERIES:
        raise ValueError(f"{h} x {w} tokens are not a multiple of {BLOCK_QUERIES}")
    together = math.lcm(dim, LANES) // dim  # the fewest heads that fill whole blocks of 128 lanes
    if heads % together and not (straddles and tokens > BLOCK_QUERIES):
        raise ValueError(f"{heads} heads of {dim} channels do not fill whole blocks of {LANES} lanes")
    if tokens <= BLOCK_QUERIES:
        # Take as many heads per step as fit into 1024 lanes, so that the fixed cost of a step matters less.
        fitting = [n for n in range(together, heads + 1, together) if heads % n == 0 and n * dim <= 1024]
        return Tiling(h, w, heads, dim, dim, max(fitting, default=together), tokens, tokens)
    chunk = next(n for n in (1024, 512, 256) if tokens % n == 0)
    if straddles:  # spread_heads moves such heads apart first, which is cheap compared with attention of this length
        return Tiling(h, w, heads, dim, LANES, 1 + (heads % 2 == 0), BLOCK_QUERIES, chunk)
    return Tiling(h, w, heads, dim, dim, together, BLOCK_QUERIES, chunk)


def key_onehots(t: Tiling) -> np.ndarray:
    """(slots or 1, tokens, 128): ones in the bias lanes of each key's row and column."""
    rows, cols = np.divmod(np.arange(t.tokens), t.w)
    out = np.zeros((t.slots if t.packed else 1, t.tokens, LANES), np.float32)
    for slot in range(len(out)):
        lanes = t.bias_lanes(slot)
        out[slot, np.arange(t.tokens), lanes[rows]] = 1
        out[slot, np.arange(t.tokens), lanes[t.h + cols]] = 1
    return out


def bias_columns(t: Tiling) -> np.ndarray:
    """(slots or 1, tokens, 128) int32: for each bias lane, the table column whose product with the query it holds."""
    rows, cols = np.divmod(np.arange(t.tokens), t.w)
    out = np.zeros((t.slots if t.packed else 1, t.tokens, LANES), np.int32)
    start = 2 * t.h - 1 if t.joint else 0
    for slot in range(len(out)):
        lanes = t.bias_lanes(slot)
        out[slot][:, lanes[: t.h]] = rows[:, None] - np.arange(t.h) + t.h - 1
        out[slot][:, lanes[t.h :]] = start + cols[:, None] - np.arange(t.w) + t.w - 1
    return out


def column_lanes(t: Tiling) -> np.ndarray:
    """The inverse of `bias_columns`, (slots or 1, tables, tokens, 128) int32: each column's bias lane, -1 if none."""
    columns = bias_columns(t)
    out = np.full((len(columns), 1 if t.joint else 2, t.tokens, LANES), -1, np.int32)
    tokens = np.arange(t.tokens)[:, None]
    for slot in range(len(columns)):
        lanes = t.bias_lanes(slot)
        for part, table in ((lanes[: t.h], 0), (lanes[t.h :], out.shape[1] - 1)):
            out[slot, table][tokens, columns[slot][:, part]] = part
    return out


def place_tables(t: Tiling, table_h: jax.Array, table_w: jax.Array) -> jax.Array:
    """Tables (2h - 1, D), (2w - 1, D) -> (slots, 1 or 2, 128, 128): rows are a head's lanes, columns are offsets.

    The two tables become one if they fit side by side.
    """
    tables = [jnp.concatenate([table_h, table_w])] if t.joint else [table_h, table_w]
    tables = [jnp.pad(table.T, ((0, 0), (0, LANES - table.shape[0]))) for table in tables]
    before = [t.first_lane(slot) for slot in range(t.slots)]
    return jnp.stack([jnp.pad(jnp.stack(tables), ((0, 0), (n, LANES - t.dim - n), (0, 0))) for n in before])


def collect_tables(t: Tiling, placed: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Gradients of the output of `place_tables` -> gradients of both tables."""
    own = [placed[slot, :, t.first_lane(slot) : t.first_lane(slot) + t.dim] for slot in range(t.slots)]
    total = sum(own[1:], own[0]).swapaxes(1, 2)
    long_h, long_w = 2 * t.h - 1, 2 * t.w - 1
    if t.joint:
        return total[0, :long_h], total[0, long_h : long_h + long_w]
    return total[0, :long_h], total[1, :long_w]


def spread_heads(t: Tiling, x: jax.Array) -> jax.Array:
    """(B, tokens, n * dim) -> (B, tokens, n * stride), each head padded with zeros to the stride."""
    return x if t.stride == t.dim else _move_lanes(x, _places(t))


def gather_heads(t: Tiling, x: jax.Array) -> jax.Array:
    """The inverse of `spread_heads`."""
    return x if t.stride == t.dim else _move_lanes(x, _places(t).T)


def _places(t: Tiling) -> np.ndarray:
    """(n * dim, n * stride): a one where each channel goes, for the n heads after which the pattern repeats."""
    together = math.gcd(t.heads, math.lcm(t.dim, LANES) // t.dim)
    out = np.zeros((together * t.dim, together * t.stride), np.float32)
    channels = np.arange(together * t.dim)
    out[channels, channels // t.dim * t.stride + channels % t.dim] = 1
    return out


def _move_lanes(x: jax.Array, places: np.ndarray) -> jax.Array:
    """A product with ones and zeros, which is exact: on TPU it takes half the time of moving lanes."""
    matrix, step = jnp.asarray(places, x.dtype), places.shape[0]
    parts = [x[..., start : start + step] for start in range(0, x.shape[-1], step)]
    return jnp.concatenate([matmul(part, matrix) for part in parts], axis=-1)
