"""Layers on planes, see ops/planes.py."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn

from sam_jax.ops.layer_norm import CENTRED, TWO_PASSES, layer_norm
from sam_jax.ops.planes import project


class PlaneNorm(nn.Module):
    """LayerNorm over the channels of each pixel; parameters as in `nn.LayerNorm`, statistics float32, in two passes.

    `centred` assumes that the channels sum to zero, as after a `centred` convolution, and computes no mean.
    """

    features: int
    epsilon: float
    centred: bool = False
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        self.scale = self.param("scale", nn.initializers.ones, (self.features,))
        self.bias = self.param("bias", nn.initializers.zeros, (self.features,))

    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., C, S) -> (..., C, S)."""
        statistics = CENTRED if self.centred else TWO_PASSES
        return layer_norm(x.astype(self.dtype), self.scale, self.bias, self.epsilon, -2, statistics)


def _less_mean(kernel: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Subtracts the mean over `out` from a kernel (..., out) and a bias (out,), so that the outputs sum to zero.

    The LayerNorm that follows then need not subtract the mean from every pixel of every prompt.
    """
    return kernel - kernel.mean(axis=-1, keepdims=True), bias - bias.mean()


class PlanePatchConv(nn.Module):
    """Convolution whose stride is its kernel size, on planes that already hold the pixels of each patch.

    Kernel (k, k, in, out), as in `nn.Conv`. The channels hold `groups` patches one after the other, which share the
    kernel; it is applied as one block-diagonal matrix. `centred` must be followed by a centred `PlaneNorm`.
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
    """Transposed convolution with a 2x2 kernel and stride 2, whose four sub-pixels stay planes.

    See `ops.planes.split` and `stack`. Sub-pixel (a, b) is `x @ kernel[a, b] + bias`: the kernel (2, 2, in, out) is
    torch's ConvTranspose2d weight (in, out, 2, 2) with its axes moved but not flipped (`nn.ConvTranspose` would need
    the flip). `centred` must be followed by a centred `PlaneNorm`.
    """

    in_features: int
    features: int
    centred: bool = False
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        # Each output pixel sees a single 1x1 kernel, so the fan-in is just the input width.
        init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=-2, batch_axis=(0, 1))
        self.kernel = self.param("kernel", init, (2, 2, self.in_features, self.features))
        self.bias = self.param("bias", nn.initializers.zeros, (self.features,))

    def matrices(self) -> tuple[jax.Array, jax.Array]:
        """(4, features, in), sub-pixels in row-major order, and the bias (features,) in the compute dtype."""
        kernel, bias = _less_mean(self.kernel, self.bias) if self.centred else (self.kernel, self.bias)
        return rearrange(kernel, "a b i o -> (a b) o i").astype(self.dtype), bias.astype(self.dtype)
