"""TinyViT, MobileSAM's image encoder: convolutions, then windowed attention in stages that halve the grid.

Source: Wu et al. 2022, "TinyViT: Fast pretraining distillation for small vision transformers"; MobileSAM's
`modeling/tiny_vit_sam.py`. As there, the last stage keeps the grid of the previous one, so that a cell is 16 pixels.
Batch normalisation always uses its running statistics, which are constants.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn

from sam_jax.config import TinyVitConfig
from sam_jax.models.image_encoder import Windows, neck
from sam_jax.models.layers import Dense, LayerNorm, dense
from sam_jax.ops.gelu import gelu
from sam_jax.ops.products import conv_general_dilated, einsum
from sam_jax.ops.softmax import low_precision_softmax

_init = nn.initializers.lecun_normal()


class Kernel(nn.Module):
    """A convolution without bias, with a kernel (size, size, in, features) and padding size // 2."""

    features: int
    size: int
    stride: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", _init, (self.size, self.size, x.shape[-1], self.features)).astype(self.dtype)
        if self.size == 1:
            return dense(x, kernel[0, 0])
        padding = [(self.size // 2,) * 2] * 2
        return conv_general_dilated(x, kernel, (self.stride,) * 2, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


class DepthwiseKernel(nn.Module):
    """A depthwise 3x3 convolution without bias: kernel (3, 3, 1, C).

    Written as nine shifted products, which compilers fuse into one loop; grouped convolutions are slow on most
    platforms.
    """

    stride: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", _init, (3, 3, 1, x.shape[-1])).astype(self.dtype)
        s, (h, w) = self.stride, x.shape[1:3]
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        taps = [x[:, i : i + h : s, j : j + w : s] * kernel[i, j, 0] for i in range(3) for j in range(3)]
        return sum(taps[1:], taps[0])


class FrozenBatchNorm(nn.Module):
    """Batch normalisation with fixed statistics (collection `constants`), in float32."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        mean = self.variable("constants", "running_mean", jnp.zeros, shape).value
        variance = self.variable("constants", "running_var", jnp.ones, shape).value
        factor = scale * jax.lax.rsqrt(variance + 1e-5)
        return (x.astype(jnp.float32) * factor + (bias - mean * factor)).astype(self.dtype)


class ConvNorm(nn.Module):
    """A convolution (depthwise if `features` is 0) and its batch normalisation."""

    features: int
    size: int
    stride: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.features:
            x = Kernel(self.features, self.size, self.stride, self.dtype, name="c")(x)
        else:
            x = DepthwiseKernel(self.stride, self.dtype, name="c")(x)
        return FrozenBatchNorm(self.dtype, name="bn")(x)


class PatchEmbed(nn.Module):
    """(B, H, W, 3) -> (B, H / 4, W / 4, C): two convolutions of stride 2."""

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = ConvNorm(self.features // 2, 3, 2, self.dtype, name="seq_0")(images.astype(self.dtype))
        return ConvNorm(self.features, 3, 2, self.dtype, name="seq_2")(gelu(x))


class ConvBlock(nn.Module):
    """An inverted bottleneck (MBConv): expand, depthwise convolution, project; then the residual and a GELU."""

    hidden: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = gelu(ConvNorm(self.hidden, 1, 1, self.dtype, name="conv1")(x))
        y = gelu(ConvNorm(0, 3, 1, self.dtype, name="conv2")(y))
        return gelu(x + ConvNorm(x.shape[-1], 1, 1, self.dtype, name="conv3")(y))


class Merging(nn.Module):
    """Between stages: changes the number of channels, and halves the grid if `stride` is 2."""

    features: int
    stride: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = gelu(ConvNorm(self.features, 1, 1, self.dtype, name="conv1")(x))
        x = gelu(ConvNorm(0, 3, self.stride, self.dtype, name="conv2")(x))
        return ConvNorm(self.features, 1, 1, self.dtype, name="conv3")(x)


class Attention(nn.Module):
    """Self-attention inside windows, with a learned bias for each pair of row and column distances.

    Padding is not masked: padded cells are zero before the normalisation, and are attended to.
    """

    num_heads: int
    window: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, windows, side^2, C) -> (B, windows, side^2, C)."""
        channels = x.shape[-1]
        biases = self.param("attention_biases", nn.initializers.zeros, (self.num_heads, self.window**2))
        x = LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(x)
        x = Dense(3 * channels, dtype=self.dtype, name="qkv")(x)
        # Unlike in SAM, heads are outermost: query, key and value of each head are adjacent.
        q, k, v = rearrange(x, "b n l (h p d) -> p b n h l d", h=self.num_heads, p=3)
        logits = einsum("bnhld,bnhmd->bnhlm", q, k) * (channels // self.num_heads) ** -0.5
        weights = low_precision_softmax(logits + biases[:, _distances(self.window)].astype(self.dtype), -1)
        x = rearrange(einsum("bnhlm,bnhmd->bnhld", weights, v), "b n h l d -> b n l (h d)")
        return Dense(channels, dtype=self.dtype, name="proj")(x)


def _distances(side: int) -> np.ndarray:
    """(side^2, side^2) int: index of the bias of two cells of a window, by their distances along rows and columns."""
    rows, columns = np.divmod(np.arange(side**2), side)
    return np.abs(rows[:, None] - rows) * side + np.abs(columns[:, None] - columns)


class Mlp(nn.Module):
    """A normalisation and two dense layers with a GELU between."""

    hidden: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(x)
        y = gelu(Dense(self.hidden, dtype=self.dtype, name="fc1")(y))
        return Dense(x.shape[-1], dtype=self.dtype, name="fc2")(y)


class AttentionBlock(nn.Module):
    """Windowed attention, a depthwise convolution across windows, and an MLP: (B, h, w, C) -> (B, h, w, C)."""

    num_heads: int
    window: int
    hidden: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        windows = Windows(self.window, *x.shape[1:3])
        attention = Attention(self.num_heads, self.window, self.dtype, name="attn")
        x = x + windows.join(attention(windows.split(x)))
        x = ConvNorm(0, 3, 1, self.dtype, name="local_conv")(x)
        return x + Mlp(self.hidden, self.dtype, name="mlp")(x)


class Stage(nn.Module):
    """The blocks of stage `index`, and the merging layer before the next stage."""

    config: TinyVitConfig
    index: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c, i = self.config, self.index
        width, last = c.widths[i], len(c.widths) - 1
        for number in range(c.depths[i]):
            name = f"blocks_{number}"
            if i == 0:
                x = ConvBlock(int(width * c.expand_ratio), self.dtype, name=name)(x)
            else:
                hidden = int(width * c.mlp_ratio)
                x = AttentionBlock(c.num_heads[i - 1], c.window_sizes[i - 1], hidden, self.dtype, name=name)(x)
        if i == last:
            return x
        return Merging(c.widths[i + 1], 1 if i + 1 == last else 2, self.dtype, name="downsample")(x)


class TinyVit(nn.Module):
    """Preprocessed images -> image embeddings, as `ImageEncoder`."""

    config: TinyVitConfig
    out_channels: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, deterministic: bool = True) -> jax.Array:
        """(B, H, W, 3) normalised RGB -> (B, h, w, out_channels) float32. `deterministic` has no effect.

        Raises:
          ValueError: the images have another shape.
        """
        return neck(self._stages(images)[1], self.out_channels, self.dtype).astype(jnp.float32)

    def _stages(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The input of the last stage but one, where cells have their final size, and the output of the last stage."""
        c = self.config
        if images.ndim != 4 or images.shape[3] != 3 or images.shape[1] % c.patch_size or images.shape[2] % c.patch_size:
            raise ValueError(
                f"images have shape {images.shape}; expected (B, H, W, 3) with H and W multiples of {c.patch_size}"
            )
        x = PatchEmbed(c.widths[0], self.dtype, name="patch_embed")(images)
        early = x
        for i in range(len(c.widths)):
            early = x if i == len(c.widths) - 2 else early
            x = Stage(c, i, self.dtype, name=f"layers_{i}")(x)
        return early, x


class HqTinyVit(TinyVit):
    """TinyViT for HQ-SAM, which also returns early features: the input of the last stage but one."""

    @nn.compact
    def __call__(self, images: jax.Array, deterministic: bool = True) -> jax.Array:
        """(B, H, W, 3) -> (B, h, w, `out_channels` + width) float32: embeddings, then early features."""
        early, x = self._stages(images)
        parts = [neck(x, self.out_channels, self.dtype), early]
        return jnp.concatenate([part.astype(jnp.float32) for part in parts], axis=-1)
