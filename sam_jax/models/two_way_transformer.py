"""The two-way transformer: prompt tokens attend to the image, and the image attends to the tokens.

Source: official `modeling/transformer.py`; SAM paper, appendix A.

A prompt has few tokens (T), an image has many pixels (S = h*w), kept as planes (C, S). Two savings, both exact:
  - Until the first image-to-token attention, all prompts of an image see the same pixels. Image-side tensors therefore
    have a prompt axis of size 1 there and are projected once per image.
  - Once pixels differ per prompt, projecting them costs S * C * I, I being the inner width. Folding the projection into
    the tokens ((W k) . q = k . (W^T q)) costs S * C * heads * T, and is done if that is less. All heads are then rows
    of one matrix (T * heads, C) per prompt, heads innermost: eight of them fill a TPU's tile, so that the softmax over
    tokens is elementwise arithmetic between tiles.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from sam_jax.config import MaskDecoderConfig
from sam_jax.models.layers import Dense, Dropout, LayerNorm, Linear
from sam_jax.models.planes import PlaneNorm
from sam_jax.ops.mask_decoder import PixelUpdate, read_pixels, update_pixels
from sam_jax.ops.planes import project
from sam_jax.ops.products import einsum, matmul
from sam_jax.ops.random_bits import Dropping
from sam_jax.ops.softmax import low_precision_softmax


class Attention(nn.Module):
    """Multi-head attention with an inner width of `dim / downsample_rate`.

    Shapes: tokens (B, N, T, C); pixels (B, N or 1, C, S); image_pe (1, 1, C, S), a constant to which no gradient flows;
    valid (B, N, T) bool, which tokens may be attended to. `kernels`: see `MaskDecoderConfig`.
    """

    dim: int
    num_heads: int
    downsample_rate: int = 1
    dtype: jnp.dtype = jnp.float32
    kernels: str = "xla"

    def setup(self) -> None:
        inner = self.dim // self.downsample_rate
        self.q_proj = Linear(self.dim, inner, dtype=self.dtype)
        self.k_proj = Linear(self.dim, inner, dtype=self.dtype)
        self.v_proj = Linear(self.dim, inner, dtype=self.dtype)
        self.out_proj = Linear(inner, self.dim, dtype=self.dtype)

    @property
    def _inner(self) -> int:
        return self.dim // self.downsample_rate

    @property
    def _scale(self) -> float:
        return (self._inner // self.num_heads) ** -0.5

    def _heads(self, x: jax.Array) -> jax.Array:
        """(B, N, T, I) -> (B, N, heads, T, D)."""
        return rearrange(x, "b n t (h d) -> b n h t d", h=self.num_heads)

    def _fold(self, heads: jax.Array, kernel: jax.Array) -> jax.Array:
        """Folds a kernel (C, I) into heads (B, N, heads, T, D): rows (B, N, T * heads, C) that multiply pixels."""
        parts = rearrange(kernel.astype(self.dtype), "c (h d) -> h d c", h=self.num_heads)
        return rearrange(einsum("bnhtd,hdc->bnthc", heads, parts), "b n t h c -> b n (t h) c")

    def _folds(self, length: int) -> bool:
        """Whether folding a projection of the pixels into `length` tokens saves work."""
        return self.dim * self.num_heads * length < (self.dim + length) * self._inner

    def among_tokens(self, q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array) -> jax.Array:
        """Self-attention of the tokens: (B, N, T, C)."""
        logits = matmul(self._heads(self.q_proj(q)), self._heads(self.k_proj(k)).swapaxes(-1, -2)) * self._scale
        logits = jnp.where(valid[:, :, None, None, :], logits.astype(jnp.float32), -jnp.inf)
        out = matmul(jax.nn.softmax(logits).astype(self.dtype), self._heads(self.v_proj(v)))
        return self.out_proj(rearrange(out, "b n h t d -> b n t (h d)"))

    def tokens_to_pixels(
        self, tokens: jax.Array, pixels: jax.Array, image_pe: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Attention of tokens to pixels: (B, N, T, C), and the pixels for what comes next, see `read_pixels`."""
        q, image_pe = self._heads(self.q_proj(tokens)) * self._scale, jax.lax.stop_gradient(image_pe)
        k_proj, v_proj = self.k_proj, self.v_proj

        def each_pixel_projected() -> jax.Array:
            keys, values = _projected(q, k_proj, pixels + image_pe), _projected(q, v_proj, pixels)
            weights = low_precision_softmax(_matmul_shared(q, keys), -1)
            return rearrange(_matmul_shared(weights, values.swapaxes(-1, -2)), "b n h t d -> b n t (h d)")

        if not self._folds(tokens.shape[2]):
            return self.out_proj(each_pixel_projected()), pixels
        # The key bias adds the same constant to all logits of a query, which cancels in the softmax.
        rows = self._fold(q, k_proj.kernel)
        kernel = rearrange(v_proj.kernel.astype(self.dtype), "c (h d) -> h c d", h=self.num_heads)
        cheaper = each_pixel_projected if _shared(pixels, tokens) else None
        read, pixels = read_pixels(rows, kernel, v_proj.bias, pixels, image_pe, self.kernels, cheaper)
        return self.out_proj(read), pixels

    def pixels_to_tokens(
        self,
        pixels: jax.Array,
        image_pe: jax.Array,
        keys: jax.Array,
        values: jax.Array,
        valid: jax.Array,
        norm: PlaneNorm,
        drop: Dropping | None,
    ) -> jax.Array:
        """Attention of pixels to tokens, then dropout (`drop`), the residual and `norm`: (B, N, C, S)."""
        k, v = self._heads(self.k_proj(keys)) * self._scale, self._heads(self.v_proj(values))
        invalid = jnp.where(valid, 0.0, -jnp.inf)[..., None]
        q_proj, image_pe = self.q_proj, jax.lax.stop_gradient(image_pe)

        def each_pixel_projected() -> jax.Array:
            logits = _matmul_shared(k, _projected(k, q_proj, pixels + image_pe))
            return rearrange(logits, "b n h t s -> b n t h s") + invalid[..., None].astype(self.dtype)

        if not self._folds(keys.shape[2]):
            weights = low_precision_softmax(each_pixel_projected(), 2)
            out = rearrange(einsum("bnhtd,bnths->bnhds", v, weights), "b n h d s -> b n (h d) s")
            out = project(self.out_proj.kernel.astype(self.dtype), out)
            out = out + self.out_proj.bias.astype(self.dtype)[:, None]
            return norm(pixels + (drop(out) if drop else out))
        q_bias = rearrange(q_proj.bias.astype(self.dtype), "(h d) -> h d", h=self.num_heads)
        constants = einsum("bnhtd,hd->bnth", k, q_bias).astype(jnp.float32) + invalid
        update = PixelUpdate(
            self._fold(k, q_proj.kernel),
            rearrange(constants, "b n t h -> b n (t h) 1"),
            self._fold(v, self.out_proj.kernel.T),
            self.out_proj.bias,
            norm.scale,
            norm.bias,
        )
        cheaper = each_pixel_projected if _shared(pixels, keys) else None
        return update_pixels(update, pixels, image_pe, self.num_heads, norm.epsilon, self.kernels, cheaper, drop)


def _shared(pixels: jax.Array, tokens: jax.Array) -> bool:
    """Whether several prompts share the same pixels."""
    return pixels.shape[1] == 1 and tokens.shape[1] > 1


def _projected(heads: jax.Array, linear: Linear, pixels: jax.Array) -> jax.Array:
    """Projects pixels (B, n, C, S) to as many heads as `heads` (B, N, h, T, D) has: (B, n, h, D, S)."""
    dtype = heads.dtype
    out = project(linear.kernel.astype(dtype), pixels) + linear.bias.astype(dtype)[:, None]
    return rearrange(out, "b n (h d) s -> b n h d s", h=heads.shape[2])


def _matmul_shared(few: jax.Array, many: jax.Array) -> jax.Array:
    """(B, N, h, T, a) @ (B, N or 1, h, a, b); if all N share the right operand, they become rows of one matmul."""
    if many.shape[1] != 1 or few.shape[1] == 1:
        return matmul(few, many)
    n = few.shape[1]
    rows = rearrange(few, "b n h t a -> b h (n t) a")
    return rearrange(matmul(rows, many[:, 0]), "b h (n t) c -> b n h t c", n=n)


class MlpBlock(nn.Module):
    """Two dense layers with a ReLU between."""

    dim: int
    mlp_dim: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(Dense(self.mlp_dim, dtype=self.dtype, name="lin1")(x))
        return Dense(self.dim, dtype=self.dtype, name="lin2")(x)


class TwoWayAttentionBlock(nn.Module):
    """Self-attention of tokens, tokens to image, MLP on tokens, image to tokens."""

    config: MaskDecoderConfig
    dim: int
    skip_first_layer_pe: bool
    dtype: jnp.dtype
    deterministic: bool = True

    @nn.compact
    def __call__(
        self, tokens: jax.Array, pixels: jax.Array, token_pe: jax.Array, image_pe: jax.Array, valid: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        c = self.config

        def norm(name: str) -> LayerNorm:
            return LayerNorm(epsilon=1e-5, dtype=self.dtype, name=name)

        def attention(name: str, rate: int) -> Attention:
            return Attention(self.dim, c.num_heads, rate, self.dtype, c.kernels, name=name)

        drop = Dropout(c.dropout_rate, deterministic=self.deterministic)
        self_attn = attention("self_attn", 1)
        if self.skip_first_layer_pe:
            tokens = drop(self_attn.among_tokens(tokens, tokens, tokens, valid))
        else:
            q = tokens + token_pe
            tokens = tokens + drop(self_attn.among_tokens(q, q, tokens, valid))
        tokens = norm("norm1")(tokens)

        rate = c.attention_downsample_rate
        to_image = attention("cross_attn_token_to_image", rate)
        read, pixels = to_image.tokens_to_pixels(tokens + token_pe, pixels, image_pe)
        tokens = norm("norm2")(tokens + drop(read))
        tokens = norm("norm3")(tokens + drop(MlpBlock(self.dim, c.mlp_dim, self.dtype, name="mlp")(tokens)))
        to_tokens = attention("cross_attn_image_to_token", rate)
        norm4 = PlaneNorm(self.dim, 1e-5, dtype=self.dtype, name="norm4")
        dropped = drop.draw(tokens.shape[:2])
        return tokens, to_tokens.pixels_to_tokens(pixels, image_pe, tokens + token_pe, tokens, valid, norm4, dropped)


class TwoWayTransformer(nn.Module):
    """Tokens (B, N, T, C) and pixels (B, N or 1, C, S) -> both, updated; pixels (B, N, C, S).

    `outputs`: return only the first tokens, so that the others skip the final attention; None returns all.
    """

    config: MaskDecoderConfig
    dim: int
    dtype: jnp.dtype = jnp.float32
    deterministic: bool = True

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        pixels: jax.Array,
        image_pe: jax.Array,
        valid: jax.Array,
        outputs: int | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        c, token_pe = self.config, tokens
        for i in range(c.depth):
            block = TwoWayAttentionBlock(c, self.dim, i == 0, self.dtype, self.deterministic, name=f"layers_{i}")
            tokens, pixels = block(tokens, pixels, token_pe, image_pe, valid)
        rate = c.attention_downsample_rate
        final = Attention(self.dim, c.num_heads, rate, self.dtype, c.kernels, name="final_attn_token_to_image")
        drop = Dropout(c.dropout_rate, deterministic=self.deterministic)
        tokens, token_pe = tokens[:, :, :outputs], token_pe[:, :, :outputs]
        read, pixels = final.tokens_to_pixels(tokens + token_pe, pixels, image_pe)
        return LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm_final_attn")(tokens + drop(read)), pixels
