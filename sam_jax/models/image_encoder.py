"""The image encoder: a plain ViT with windowed and global blocks and a small convolutional neck.

Source: official `modeling/image_encoder.py`; Li et al. 2022, "Exploring plain vision transformer backbones".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn

from sam_jax.config import ImageEncoderConfig
from sam_jax.models.details import DetailsToPixels, DetailsToTokens, ImageDetails
from sam_jax.models.layers import (
    Conv,
    DropPath,
    LayerNorm,
    Linear,
    PatchConv,
    kernel_init,
    resize_pos_embed,
    resize_rel_pos,
)
from sam_jax.ops.attention import packed_attention
from sam_jax.ops.block_dense import Layer, Norm, norm_dense, residual_mlp
from sam_jax.ops.gelu import gelu
from sam_jax.ops.planes import SIDE


class PatchEmbed(nn.Module):
    """(B, H, W, 3) -> (B, h, w, C)."""

    config: ImageEncoderConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        c = self.config
        return PatchConv(c.embed_dim, c.patch_size, dtype=self.dtype, name="proj")(images)


class Windows(NamedTuple):
    """An h x w grid of tokens, split into windows of `side` x `side` and zero-padded at the right and bottom."""

    side: int
    h: int
    w: int

    @property
    def counts(self) -> tuple[int, int]:
        """Windows along h and along w."""
        return -(-self.h // self.side), -(-self.w // self.side)

    @property
    def is_padded(self) -> bool:
        """Whether the grid has to be padded."""
        return (self.h % self.side, self.w % self.side) != (0, 0)

    def split(self, x: jax.Array) -> jax.Array:
        """Grid order (B, h, w, C) -> window order (B, windows, side^2, C)."""
        (nh, nw), s = self.counts, self.side
        x = jnp.pad(x, ((0, 0), (0, nh * s - self.h), (0, nw * s - self.w), (0, 0)))
        return rearrange(x, "b (nh i) (nw j) c -> b (nh nw) (i j) c", i=s, j=s)

    def join(self, x: jax.Array) -> jax.Array:
        """The inverse of `split`; padding is dropped."""
        nh, nw = self.counts
        x = rearrange(x, "b (nh nw) (i j) c -> b (nh i) (nw j) c", nh=nh, nw=nw, i=self.side, j=self.side)
        return x[:, : self.h, : self.w]

    def real(self) -> np.ndarray:
        """(1, windows, side^2, 1) bool: True for tokens of the grid, False for padding."""
        (nh, nw), s = self.counts, self.side
        real = (np.arange(nh * s) < self.h)[:, None] & (np.arange(nw * s) < self.w)
        return rearrange(real, "(nh i) (nw j) -> 1 (nh nw) (i j) 1", i=s, j=s)


class Attention(nn.Module):
    """Self-attention over windows of `window` x `window` tokens, or over the whole grid if `window` is 0."""

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

    def __call__(self, x: jax.Array, windows: Windows | None = None, norm: Norm | None = None) -> jax.Array:
        """(B, h, w, C) -> (B, h, w, C); with `windows`, input and output are in window order (B, windows, side^2, C).

        `norm` is applied to x first; None if it has been. Official SAM pads with zeros before the projection and does
        not mask the padding, so padded tokens have keys and values equal to the projection's bias.
        """
        qkv = self._project(x, _real_tokens(windows), norm)
        if windows is not None:
            return self.proj(self._attend_windows(qkv))
        _, h, w, _ = x.shape
        if not self.window:
            return self.proj(self._attend(rearrange(qkv, "b h w c -> b (h w) c"), h, w).reshape(x.shape))
        # Project only real tokens, then pad with the bias: the same result.
        windows = Windows(self.window, h, w)
        qkv = windows.split(qkv)
        if windows.is_padded:
            qkv = jnp.where(windows.real(), qkv, self.qkv.bias.astype(qkv.dtype))
        return self.proj(windows.join(self._attend_windows(qkv)))

    def _project(self, x: jax.Array, real: np.ndarray | None, norm: Norm | None) -> jax.Array:
        """Queries, keys and values (..., 3C) of x (..., C). `real`: see `_real_tokens`."""
        if norm is None:
            return self.qkv(x if real is None else jnp.where(real[:, :, None], x, 0))
        layer = Layer(self.qkv.kernel, self.qkv.bias)
        out = norm_dense(_rows(self.config, x), norm, layer, self.config.attention, real)
        return out.reshape(*x.shape[:-1], -1)

    def _attend_windows(self, qkv: jax.Array) -> jax.Array:
        x = self._attend(rearrange(qkv, "b n l c -> (b n) l c"), self.window, self.window)
        return rearrange(x, "(b n) l c -> b n l c", b=qkv.shape[0])

    def _attend(self, qkv: jax.Array, h: int, w: int) -> jax.Array:
        """(B, h*w, 3C) -> (B, h*w, C)."""
        c = self.config
        tables = resize_rel_pos(self.rel_pos_h, h), resize_rel_pos(self.rel_pos_w, w)
        return packed_attention(qkv, *tables, num_heads=c.num_heads, implementation=c.attention)


class MlpBlock(nn.Module):
    """Two dense layers with a GELU between."""

    config: ImageEncoderConfig
    dtype: jnp.dtype

    def setup(self) -> None:
        c = self.config
        hidden = int(c.embed_dim * c.mlp_ratio)
        self.lin1 = Linear(c.embed_dim, hidden, self.dtype, kernel_init)
        self.lin2 = Linear(hidden, c.embed_dim, self.dtype, kernel_init)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Tokens in grid order (B, h, w, C) or in window order (B, windows, side^2, C)."""
        return self.lin2(gelu(self.lin1(x)))

    def residual(self, x: jax.Array, norm: Norm, windows: Windows | None) -> jax.Array:
        """x + mlp(norm(x)), with `int8_mlp` in 8-bit integers."""
        layers, int8 = (self.lin1, self.lin2), self.config.int8_mlp
        first, second = (x.int8() if int8 else Layer(x.kernel, x.bias) for x in layers)
        tokens, real = _rows(self.config, x), _real_tokens(windows)
        return residual_mlp(tokens, norm, first, second, self.config.attention, real).reshape(x.shape)


def _rows(config: ImageEncoderConfig, x: jax.Array) -> jax.Array:
    """(B, n, L, C) for kernels: windows fit into one step; rows of a grid are joined, and kernels split them."""
    return x if x.shape[2] == config.window_size**2 else rearrange(x, "b h w c -> b 1 (h w) c")


def _real_tokens(windows: Windows | None) -> np.ndarray | None:
    """`Windows.real` as (windows, side^2); None if there is no padding."""
    return windows.real()[0, :, :, 0] if windows is not None and windows.is_padded else None


class Block(nn.Module):
    """One transformer block: x + attention(norm1(x)), then x + mlp(norm2(x)).

    Tokens are in grid order (B, h, w, C), or with `windows` in window order (B, windows, side^2, C).
    """

    config: ImageEncoderConfig
    index: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        deterministic: bool = True,
        windows: Windows | None = None,
        drop_path_rate: float | jax.Array = 0.0,
    ) -> jax.Array:
        c = self.config
        window = 0 if self.index in c.global_attn_indexes else c.window_size
        drop_path = DropPath()
        norm1, norm2 = (LayerNorm(epsilon=1e-6, dtype=self.dtype, name=name) for name in ("norm1", "norm2"))
        attn, mlp = Attention(c, window, self.dtype, name="attn"), MlpBlock(c, self.dtype, name="mlp")
        # In inference norms and dense layers are one operation, for its kernel; 8-bit integers are there alone.
        fused = deterministic and (c.int8_mlp or c.attention != "xla") and not self.is_initializing()
        y = attn(x, windows, _parameters(norm1)) if fused else attn(norm1(x), windows)
        x = x + drop_path(y, drop_path_rate, deterministic)
        if fused:
            return mlp.residual(x, _parameters(norm2), windows)
        return x + drop_path(mlp(norm2(x)), drop_path_rate, deterministic)


def _parameters(norm: LayerNorm) -> Norm:
    known: Any = norm.variables["params"]
    return Norm(known["scale"], known["bias"], norm.epsilon)


class ImageEncoder(nn.Module):
    """Preprocessed images -> image embeddings.

    Input sides may be any multiples of the patch size: position tables are interpolated to the grid if it is not the
    native one.
    """

    config: ImageEncoderConfig
    out_channels: int
    dtype: jnp.dtype = jnp.float32
    details: int = 0

    @nn.compact
    def __call__(self, images: jax.Array, deterministic: bool = True) -> jax.Array:
        """(B, H, W, 3) normalised RGB -> (B, h, w, C) float32; C is `out_channels`, and more with `details`.

        Raises:
          ValueError: the images have another shape.
        """
        c = self.config
        x = self._tokens(images)
        if not self.details:
            return neck(self._blocks(x, deterministic), self.out_channels, self.dtype).astype(jnp.float32)
        details = ImageDetails(self.details, c.patch_size // SIDE, self.dtype, name="details")(images)
        x = x + DetailsToTokens(c.embed_dim, self.dtype, name="details_to_tokens")(details)
        x = self._blocks(x, deterministic)
        fine = DetailsToPixels(self.out_channels, self.dtype, name="details_to_pixels")(details, x)
        return jnp.concatenate([neck(x, self.out_channels, self.dtype), fine], axis=-1).astype(jnp.float32)

    def _tokens(self, images: jax.Array) -> jax.Array:
        """Patch embedding plus absolute position embedding: (B, H, W, 3) -> (B, h, w, embed_dim)."""
        c = self.config
        if images.ndim != 4 or images.shape[3] != 3 or images.shape[1] % c.patch_size or images.shape[2] % c.patch_size:
            raise ValueError(
                f"images have shape {images.shape}; expected (B, H, W, 3) with H and W multiples of {c.patch_size}"
            )
        x = PatchEmbed(c, self.dtype, name="patch_embed")(images)
        pos_embed = self.param("pos_embed", kernel_init, (1, c.grid_size, c.grid_size, c.embed_dim))
        return x + resize_pos_embed(pos_embed, (x.shape[1], x.shape[2])).astype(self.dtype)

    def _blocks(self, x: jax.Array, deterministic: bool) -> jax.Array:
        """All blocks, (B, h, w, C) in and out."""
        c = self.config
        if c.scan and not self.is_initializing():
            return self._scanned(x, deterministic)
        return self._in_order(self._made_blocks(), x, deterministic)

    @property
    def _block(self) -> Any:
        return nn.remat(Block, static_argnums=(2, 3)) if self.config.remat else Block

    @property
    def _rates(self) -> list[float]:
        """Drop path rate of each block."""
        rates: list[float] = np.linspace(0.0, self.config.drop_path_rate, self.config.depth).tolist()
        return rates

    def _made_blocks(self) -> list[Callable[..., jax.Array]]:
        c, block, rates = self.config, self._block, self._rates
        return [partial(block(c, i, self.dtype, name=f"blocks_{i}"), drop_path_rate=rates[i]) for i in range(c.depth)]

    def _in_order(
        self, blocks: Sequence[Callable[..., jax.Array]], x: jax.Array, deterministic: bool, first: int = 0
    ) -> jax.Array:
        """Applies blocks numbered from `first`; tokens may stay in window order between windowed blocks."""
        c, order = self.config, self.config.token_order
        if order == "auto":
            order = "windows" if self.dtype == jnp.bfloat16 else "grid"
        ordered: Windows | None = None
        for i, block in enumerate(blocks, first):
            windowed = order == "windows" and i not in c.global_attn_indexes
            if windowed and not ordered:
                ordered = Windows(c.window_size, *x.shape[1:3])
                # Without the barrier XLA keeps the five axes of the split in every norm, which wastes lanes on TPUs.
                x = jax.lax.optimization_barrier(ordered.split(x))
            elif ordered and not windowed:
                x, ordered = ordered.join(x), None
            x = block(x, deterministic, ordered)
        return ordered.join(x) if ordered else x

    def _scanned(self, x: jax.Array, deterministic: bool) -> jax.Array:
        """Applies all blocks as a scan over equal groups, of which one is compiled; parameter names do not change."""
        c, block, rates = self.config, self._block, self._rates
        size = c.depth // len(c.global_attn_indexes)
        params = self.variables["params"]
        groups = [[params[f"blocks_{i}"] for i in range(k, k + size)] for k in range(0, c.depth, size)]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *groups)
        random = not deterministic and c.drop_path_rate > 0
        keys = jax.random.split(self.make_rng("drop_path") if random else jax.random.key(0), (len(groups), size))

        def group(x: jax.Array, part: Any) -> tuple[jax.Array, None]:
            params, rates, keys = part
            blocks = [
                partial(
                    block(c, i, self.dtype, parent=None).apply,
                    {"params": params[i]},
                    drop_path_rate=rates[i] if random else 0.0,
                    rngs={"drop_path": keys[i]},
                )
                for i in range(size)
            ]
            return self._in_order(blocks, x, deterministic), None

        x, _ = jax.lax.scan(group, x, (stacked, jnp.asarray(rates, jnp.float32).reshape(len(groups), size), keys))
        return x


class HqImageEncoder(ImageEncoder):
    """The image encoder of HQ-SAM, which also returns the features after its first global block."""

    @nn.compact
    def __call__(self, images: jax.Array, deterministic: bool = True) -> jax.Array:
        """(B, H, W, 3) -> (B, h, w, `out_channels` + embed_dim) float32: embeddings, then early features."""
        blocks, first = self._made_blocks(), self.config.global_attn_indexes[0] + 1
        early = self._in_order(blocks[:first], self._tokens(images), deterministic)
        x = self._in_order(blocks[first:], early, deterministic, first)
        parts = [neck(x, self.out_channels, self.dtype), early]
        return jnp.concatenate([part.astype(jnp.float32) for part in parts], axis=-1)


def neck(x: jax.Array, channels: int, dtype: jnp.dtype) -> jax.Array:
    """Two convolutions, each with LayerNorm, as submodules of the caller: (B, h, w, C) -> (B, h, w, channels)."""
    x = Conv(channels, (1, 1), use_bias=False, dtype=dtype, name="neck_0")(x)
    x = LayerNorm(epsilon=1e-6, dtype=dtype, name="neck_1")(x)
    x = Conv(channels, (3, 3), padding=1, use_bias=False, dtype=dtype, name="neck_2")(x)
    return LayerNorm(epsilon=1e-6, dtype=dtype, name="neck_3")(x)
