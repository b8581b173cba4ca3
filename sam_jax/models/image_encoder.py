"""The image encoder: a plain ViT with windowed and global blocks and a small convolutional neck.

Source: official `modeling/image_encoder.py`; Li et al. 2022, "Exploring plain vision transformer backbones".
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from sam_jax.config import ImageEncoderConfig
from sam_jax.models.layers import (
    Dense,
    DropPath,
    LayerNorm,
    Linear,
    PatchConv,
    gather_rel_pos,
    gelu,
    kernel_init,
    resize_pos_embed,
)
from sam_jax.ops.attention import attention_with_rel_pos


class PatchEmbed(nn.Module):
    """(B, H, W, 3) -> (B, h, w, C)."""

    config: ImageEncoderConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        c = self.config
        return PatchConv(c.embed_dim, c.patch_size, dtype=self.dtype, name="proj")(images)


class Attention(nn.Module):
    """Self-attention over windows of `window` x `window` tokens, or over the whole grid where `window` is 0."""

    config: ImageEncoderConfig
    window: int
    dtype: jnp.dtype

    def setup(self) -> None:
        c = self.config
        side = self.window or c.grid_size
        table = (2 * side - 1, c.embed_dim // c.num_heads)
        self.qkv = Linear(c.embed_dim, 3 * c.embed_dim, dtype=self.dtype)
        self.proj = Linear(c.embed_dim, c.embed_dim, dtype=self.dtype)
        self.rel_pos_h = self.param("rel_pos_h", nn.initializers.zeros, table)
        self.rel_pos_w = self.param("rel_pos_w", nn.initializers.zeros, table)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, h, w, C) -> (B, h, w, C)."""
        _, h, w, _ = x.shape
        qkv = self.qkv(x)
        if not self.window:
            return self.proj(self._attend(qkv))
        # Official SAM pads with zeros *before* the projection and masks nothing, so that a padded token attends with
        # key and value equal to the bias. Projecting the real tokens only and padding with the bias is the same sum.
        ws = self.window
        ph, pw = -h % ws, -w % ws
        if ph or pw:
            padded = (jnp.arange(h + ph) >= h)[:, None] | (jnp.arange(w + pw) >= w)
            qkv = jnp.pad(qkv, ((0, 0), (0, ph), (0, pw), (0, 0)))
            qkv = jnp.where(padded[..., None], self.qkv.bias.astype(qkv.dtype), qkv)
        nh, nw = (h + ph) // ws, (w + pw) // ws
        qkv = rearrange(qkv, "b (nh i) (nw j) c -> (b nh nw) i j c", nh=nh, nw=nw)
        x = rearrange(self._attend(qkv), "(b nh nw) i j c -> b (nh i) (nw j) c", nh=nh, nw=nw)
        return self.proj(x[:, :h, :w])

    def _attend(self, qkv: jax.Array) -> jax.Array:
        _, h, w, _ = qkv.shape
        q, k, v = rearrange(qkv, "b h w (t n d) -> t b n (h w) d", t=3, n=self.config.num_heads)
        rel_h, rel_w = gather_rel_pos(self.rel_pos_h, h), gather_rel_pos(self.rel_pos_w, w)
        x = attention_with_rel_pos(q, k, v, rel_h, rel_w)
        return rearrange(x, "b n (h w) d -> b h w (n d)", h=h, w=w)


class MlpBlock(nn.Module):
    """Two dense layers with an exact (erf) GELU between."""

    config: ImageEncoderConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        hidden = int(c.embed_dim * c.mlp_ratio)
        x = gelu(Dense(hidden, dtype=self.dtype, kernel_init=kernel_init, name="lin1")(x))
        return Dense(c.embed_dim, dtype=self.dtype, kernel_init=kernel_init, name="lin2")(x)


class Block(nn.Module):
    """One transformer block: x + attention(norm1(x)), then x + mlp(norm2(x))."""

    config: ImageEncoderConfig
    index: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool = True) -> jax.Array:
        c = self.config
        window = 0 if self.index in c.global_attn_indexes else c.window_size
        drop_path = DropPath(c.drop_path_rate * self.index / max(1, c.depth - 1))
        y = LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm1")(x)
        y = Attention(c, window, self.dtype, name="attn")(y)
        x = x + drop_path(y, deterministic)
        y = LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm2")(x)
        return x + drop_path(MlpBlock(c, self.dtype, name="mlp")(y), deterministic)


class ImageEncoder(nn.Module):
    """Preprocessed images -> image embeddings.

    Any input whose sides are multiples of the patch size works, square or not: position tables are interpolated to
    the grid where it is not the native one.
    """

    config: ImageEncoderConfig
    out_channels: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, deterministic: bool = True) -> jax.Array:
        """(B, H, W, 3) normalised RGB -> (B, h, w, out_channels) float32."""
        c = self.config
        if images.ndim != 4 or images.shape[3] != 3 or images.shape[1] % c.patch_size or images.shape[2] % c.patch_size:
            raise ValueError(
                f"images have shape {images.shape}; expected (B, H, W, 3) with H and W multiples of {c.patch_size}"
            )
        x = PatchEmbed(c, self.dtype, name="patch_embed")(images)
        pos_embed = self.param("pos_embed", kernel_init, (1, c.grid_size, c.grid_size, c.embed_dim))
        x = x + resize_pos_embed(pos_embed, (x.shape[1], x.shape[2])).astype(self.dtype)
        block = nn.remat(Block, static_argnums=(2,)) if c.remat else Block
        for i in range(c.depth):
            x = block(c, i, self.dtype, name=f"blocks_{i}")(x, deterministic)
        return self._neck(x).astype(jnp.float32)

    def _neck(self, x: jax.Array) -> jax.Array:
        channels, dtype = self.out_channels, self.dtype
        x = nn.Conv(channels, (1, 1), use_bias=False, dtype=dtype, name="neck_0")(x)
        x = LayerNorm(epsilon=1e-6, dtype=dtype, name="neck_1")(x)
        x = nn.Conv(channels, (3, 3), padding=1, use_bias=False, dtype=dtype, name="neck_2")(x)
        return LayerNorm(epsilon=1e-6, dtype=dtype, name="neck_3")(x)
