"""Small layers that the networks share. Parameter names and layouts follow Flax, arithmetic follows torch."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn

from sam_jax.ops.int8_mlp import Int8Dense, quantize
from sam_jax.ops.layer_norm import ONE_PASS, TWO_PASSES, layer_norm
from sam_jax.ops.products import conv_general_dilated, einsum, matmul
from sam_jax.ops.random_bits import Dropping, draw

KERNEL_SCALE = "kernel_scale"  # of an int8 kernel, beside it in the parameter tree
kernel_init = nn.initializers.truncated_normal(stddev=0.02)


class LayerNorm(nn.Module):
    """Layer normalisation of the last axis, with statistics in float32; parameters as in `nn.LayerNorm`.

    The variance takes two passes, because E[x^2] - E[x]^2 loses digits on ViT-H's large activations. With bfloat16 one
    pass is enough: rounding x loses far more digits where the mean is far from zero.
    """

    epsilon: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., C) -> (..., C) in `dtype`."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        statistics = ONE_PASS if self.dtype == jnp.bfloat16 else TWO_PASSES
        x = x.astype(jnp.promote_types(x.dtype, self.dtype))
        return layer_norm(x, scale, bias, self.epsilon, -1, statistics).astype(self.dtype)


def dense(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """(..., in) @ (in, out) as one two-dimensional product, which makes the kernel's gradient three times faster on
    CPUs."""
    return matmul(x.reshape(-1, x.shape[-1]), kernel).reshape(*x.shape[:-1], kernel.shape[-1])


def _flat_dot_general(x: jax.Array, kernel: jax.Array, dimension_numbers: Any, **_: Any) -> jax.Array:
    return dense(x, kernel)


Dense = partial(nn.Dense, dot_general=_flat_dot_general)
Conv = partial(nn.Conv, conv_general_dilated=conv_general_dilated)


class Linear(nn.Module):
    """A dense layer whose kernel (in, out) and bias (out,) are accessible, so that they can be folded into others."""

    in_features: int
    features: int
    dtype: jnp.dtype = jnp.float32
    kernel_init: Any = nn.initializers.xavier_uniform()

    def setup(self) -> None:
        self.kernel = self.param("kernel", self.kernel_init, (self.in_features, self.features))
        self.bias = self.param("bias", nn.initializers.zeros, (self.features,))

    def __call__(self, x: jax.Array) -> jax.Array:
        return dense(x.astype(self.dtype), self.kernel.astype(self.dtype)) + self.bias.astype(self.dtype)

    def int8(self) -> Int8Dense:
        """The layer in 8-bit integers: quantised here, or already by `inference_variables`."""
        known: jax.Array | None = self.get_variable("params", KERNEL_SCALE)
        kernel, scale = quantize(self.kernel, 0) if known is None else (self.kernel, known)
        return Int8Dense(kernel, scale[0], self.bias.astype(jnp.float32))


class Mlp(nn.Module):
    """`layers_0 .. layers_{n-1}` with ReLU between: the hypernetworks and the IoU head (official `MLP`)."""

    hidden_dim: int
    features: int
    num_layers: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(self.num_layers - 1):
            x = nn.relu(Dense(self.hidden_dim, dtype=self.dtype, name=f"layers_{i}")(x))
        return Dense(self.features, dtype=self.dtype, name=f"layers_{self.num_layers - 1}")(x)


class PatchConv(nn.Module):
    """Convolution whose stride is its kernel size, as one matmul over patches.

    Kernel (k, k, in, out), as in `nn.Conv`. Compilers handle the matmul better than a convolution with few channels.
    """

    features: int
    size: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., H, W, in) -> (..., H / size, W / size, features)."""
        k = self.size
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (k, k, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        patches = rearrange(x, "... (h a) (w b) c -> ... h w (a b c)", a=k, b=k)
        flat = rearrange(kernel, "a b c d -> (a b c) d")
        return dense(patches.astype(self.dtype), flat.astype(self.dtype)) + bias.astype(self.dtype)


class DropPath(nn.Module):
    """Stochastic depth: drops the residual branch of a whole image with a probability (rng stream drop_path)."""

    @nn.compact
    def __call__(self, x: jax.Array, rate: float | jax.Array, deterministic: bool) -> jax.Array:
        if deterministic or (isinstance(rate, float) and rate == 0.0):
            return x
        keep = 1.0 - rate
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        kept = jax.random.bernoulli(self.make_rng("drop_path"), keep, shape)
        return jnp.where(kept, (x / keep).astype(x.dtype), jnp.zeros_like(x))


class Dropout(nn.Module):
    """Dropout (rng stream dropout) like `nn.Dropout`, at a third of its cost on TPUs: see `ops/random_bits.py`."""

    rate: float
    deterministic: bool = True

    def draw(self, leading: tuple[int, ...]) -> Dropping | None:
        """The elements that are dropped next, in matrices (*leading, M, N); None if none are."""
        if self.deterministic or self.rate == 0.0:
            return None
        return Dropping(draw(self.make_rng("dropout"), leading), 1.0 - self.rate)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., M, N)."""
        drop = self.draw(x.shape[:-2])
        return x if drop is None else drop(x)


def _cubic_weights(target: int, source: int) -> np.ndarray:
    """(target, source) matrix of torch's bicubic interpolation (a = -0.75, align_corners False, edges repeated).

    jax.image.resize uses Keys' a = -0.5 and drops samples outside the border, hence this matrix.
    """
    a = -0.75
    centre = (np.arange(target) + 0.5) * source / target - 0.5
    matrix = np.zeros((target, source))
    for tap in range(-1, 3):
        index = np.floor(centre).astype(int) + tap
        d = np.abs(centre - index)
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        np.add.at(matrix, (np.arange(target), np.clip(index, 0, source - 1)), np.where(d <= 1, near, far))
    return matrix.astype(np.float32)


def resize_pos_embed(pos_embed: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Absolute position table (1, s, s, C) -> (1, h, w, C) by bicubic interpolation; unchanged at the native size."""
    source = pos_embed.shape[1:3]
    if source == grid:
        return pos_embed
    rows, cols = _cubic_weights(grid[0], source[0]), _cubic_weights(grid[1], source[1])
    return einsum("hs,bstc,wt->bhwc", rows, pos_embed, cols)


def resize_rel_pos(rel_pos: jax.Array, size: int) -> jax.Array:
    """Relative position table (2s - 1, D) -> (2 size - 1, D) by linear interpolation; unchanged at the native size
    (official `get_rel_pos`)."""
    needed = 2 * size - 1
    if rel_pos.shape[0] == needed:
        return rel_pos
    return jax.image.resize(rel_pos, (needed, rel_pos.shape[1]), "linear", antialias=False)
