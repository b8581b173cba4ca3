"""Planes: arrays (..., rows, S) whose last axis runs over the S = h*w pixels of the embedding grid, row-major.

The decoder has few channels and many pixels. A TPU moves arrays in tiles of 8 x 128 of their last two axes, so that
pixels last fill every tile, while 4, 16, 32 or 64 channels last would leave most of each empty.

A mask of (4h, 4w) is 16 planes, one per sub-pixel of an embedding cell. They are ordered as two strided convolutions
split them: row 2a + c and column 2b + d of the cell is plane ((a b) (c d)). Masks stay in planes from one interaction
to the next, and losses are the same sums in any order; only a picture for people needs the sub-pixels side by side.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn

SIDE = 4  # sub-pixels per side of an embedding cell
_SPLIT = "... (h a c) (w b d) -> ... (a b c d) (h w)"
_JOIN = "... (a b c d) (h w) -> ... (h a c) (w b d)"


def split_subpixels(masks: jax.Array) -> jax.Array:
    """(..., 4h, 4w) -> planes (..., 16, h*w)."""
    return rearrange(masks, _SPLIT, a=2, b=2, c=2, d=2)


def join_subpixels(planes: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Planes (..., 16, h*w) -> (..., 4h, 4w)."""
    return rearrange(planes, _JOIN, a=2, b=2, c=2, d=2, h=grid[0], w=grid[1])


def subpixel_position(index: jax.Array, width: int, size: int) -> jax.Array:
    """Where in the joined mask an index into the flattened planes (16 * size) lies: (..., 2) int32 (x, y).

    Args:
      width: w of the embedding grid; size: its h*w.
    """
    plane, cell = index // size, index % size
    a, b, c, d = (plane // step % 2 for step in (8, 4, 2, 1))
    return jnp.stack([cell % width * SIDE + 2 * b + d, cell // width * SIDE + 2 * a + c], axis=-1)


def project(kernel: jax.Array, planes: jax.Array) -> jax.Array:
    """One matrix (in, out) on every pixel: (..., in, S) -> (..., out, S)."""
    return _each(kernel.T, planes)


def _each(matrices: jax.Array, planes: jax.Array) -> jax.Array:
    """(x, out, in) or (out, in) times (..., in, S) -> (..., x, out, S) or (..., out, S).

    Both sides are repeated to the same leading axes, so that this is one product per prompt and sub-pixel. Left to
    themselves, compilers make one large product of it, whose result they then have to re-order and its gradient again.
    """
    some = matrices.ndim - 2
    lead = planes.shape[:-2]
    planes = planes.reshape(*lead, *(1,) * some, *planes.shape[-2:])
    planes = jnp.broadcast_to(planes, (*lead, *matrices.shape[:-2], *planes.shape[-2:]))
    return jnp.broadcast_to(matrices, (*lead, *matrices.shape)) @ planes


def _each_at_once(matrices: jax.Array, planes: jax.Array) -> jax.Array:
    """As `_each` of (x, out, in), in one product: three times as fast on CPUs, which need not re-order anything."""
    out = project(rearrange(matrices, "x o i -> i (x o)"), planes)
    return rearrange(out, "... (x o) s -> ... x o s", x=len(matrices))


class PlaneNorm(nn.Module):
    """LayerNorm over the channels of each pixel; parameters as `nn.LayerNorm`, statistics float32, in two passes.

    `centred` promises that the channels add up to zero, as those of a `centred` convolution do: no mean is taken.
    """

    epsilon: float
    centred: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., C, S)."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-2:-1])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-2:-1])
        return _normalize(x.astype(self.dtype), scale, bias, self.epsilon, self.centred)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _normalize(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, centred: bool) -> jax.Array:
    """Remembers its input and a pixel's two statistics; autodiff would keep float32 copies of all channels."""
    return _normalize_forward(x, scale, bias, epsilon, centred)[0]


def _normalize_forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, centred: bool
) -> tuple[jax.Array, Any]:
    high = x.astype(jnp.float32)
    mean = jnp.zeros(()) if centred else high.mean(axis=-2, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.square(high - mean).mean(axis=-2, keepdims=True) + epsilon)
    out = (high - mean) * inverse * scale[:, None] + bias[:, None]
    return out.astype(x.dtype), (x, scale, mean, inverse)


def _normalize_backward(
    epsilon: float, centred: bool, kept: Any, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, scale, mean, inverse = kept
    slope = cotangent.astype(jnp.float32)
    normal = (x.astype(jnp.float32) - mean) * inverse
    others = (*range(x.ndim - 2), x.ndim - 1)
    d_scale, d_bias = (slope * normal).sum(axis=others), slope.sum(axis=others)
    slope = slope * scale[:, None]
    d_x = slope - normal * (slope * normal).mean(axis=-2, keepdims=True)
    if not centred:
        d_x = d_x - slope.mean(axis=-2, keepdims=True)
    return (d_x * inverse).astype(x.dtype), d_scale, d_bias


_normalize.defvjp(_normalize_forward, _normalize_backward)


def _less_mean(kernel: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What makes the outputs add up to zero: a kernel (..., out) and a bias (out,) without their means over `out`.

    The LayerNorm that follows would subtract the same from every pixel of every prompt.
    """
    return kernel - kernel.mean(axis=-1, keepdims=True), bias - bias.mean()


class PlanePatchConv(nn.Module):
    """Convolution whose stride is its kernel size, where the patches are planes already.

    Kernel (k, k, in, out), as `nn.Conv`. `groups` patches lie one after the other: they share the kernel, which is
    applied to all of them as one block-diagonal matrix. `centred`: see `PlaneNorm`, which has to follow.
    """

    in_features: int
    features: int
    size: int
    groups: int = 1
    centred: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., groups * k * k * in, S) -> (..., groups * features, S)."""
        shape = (self.size, self.size, self.in_features, self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        if self.centred:
            kernel, bias = _less_mean(kernel, bias)
        matrix = jnp.kron(np.eye(self.groups, dtype=np.float32), kernel.reshape(-1, self.features))
        out = project(matrix.astype(self.dtype), x.astype(self.dtype))
        return out + jnp.tile(bias, self.groups).astype(self.dtype)[:, None]


class PlaneSubpixelConv(nn.Module):
    """Transposed convolution with a 2x2 kernel and stride 2, its four sub-pixels left as planes.

    Sub-pixel (a, b) is `x @ kernel[a, b] + bias`, so that the kernel (2, 2, in, out) is torch's ConvTranspose2d weight
    (in, out, 2, 2) with its axes moved and nothing flipped (`nn.ConvTranspose` would need the flip). `centred`: see
    `PlaneNorm`, which has to follow.
    """

    in_features: int
    features: int
    centred: bool = False
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        # Each output pixel sees one 1x1 kernel: the fan-in is the input width alone.
        init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=-2, batch_axis=(0, 1))
        self.kernel = self.param("kernel", init, (2, 2, self.in_features, self.features))
        self.bias = self.param("bias", nn.initializers.zeros, (self.features,))

    def _applied(self) -> tuple[jax.Array, jax.Array]:
        return _less_mean(self.kernel, self.bias) if self.centred else (self.kernel, self.bias)

    def split(self, x: jax.Array) -> jax.Array:
        """(..., in, S) -> (..., 4, features, S), sub-pixels in row-major order."""
        kernel, bias = self._applied()
        matrices = rearrange(kernel, "a b i o -> (a b) o i").astype(self.dtype)
        out = jax.lax.platform_dependent(matrices, x.astype(self.dtype), cpu=_each_at_once, default=_each)
        return out + bias.astype(self.dtype)[:, None]

    def stack(self, x: jax.Array) -> jax.Array:
        """(..., in, S) -> (..., 4 * features, S): the same as one product, for few features."""
        kernel, bias = self._applied()
        matrix = rearrange(kernel, "a b i o -> i (a b o)").astype(self.dtype)
        return project(matrix, x.astype(self.dtype)) + jnp.tile(bias, 4).astype(self.dtype)[:, None]
