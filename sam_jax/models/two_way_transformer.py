"""The two-way transformer: prompt tokens attend to the image, and the image attends to the tokens.

Source: official `modeling/transformer.py`; SAM paper, appendix A.

Prompts are few tokens (T), the image is many pixels (S = h*w). Two facts make the arithmetic cheap and stay exact:
  - Until the first image-to-token attention, all prompts of an image see the same pixels. Image-side tensors therefore
    have a prompt axis of size 1 there and are projected once per image.
  - Where pixels differ per prompt, projecting them costs S * C * I. The projection is instead folded into the
    tokens ((W k) . q = k . (W^T q)), which costs S * C * heads * T, as long as heads * T is below the inner width I.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from sam_jax.config import MaskDecoderConfig
from sam_jax.models.layers import Dense, LayerNorm, Linear


class Attention(nn.Module):
    """Multi-head attention with an inner width of `dim / downsample_rate`.

    Shapes: tokens (B, N, T, C); pixels (B, N or 1, S, C). `valid` (B, N, T) tells which tokens may be attended to.
    """

    dim: int
    num_heads: int
    downsample_rate: int = 1
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        inner = self.dim // self.downsample_rate
        self.q_proj = Linear(self.dim, inner, dtype=self.dtype)
        self.k_proj = Linear(self.dim, inner, dtype=self.dtype)
        self.v_proj = Linear(self.dim, inner, dtype=self.dtype)
        self.out_proj = Linear(inner, self.dim, dtype=self.dtype)

    @property
    def _scale(self) -> float:
        return (self.dim // self.downsample_rate // self.num_heads) ** -0.5

    def _heads(self, x: jax.Array) -> jax.Array:
        return rearrange(x, "b n s (h d) -> b n h s d", h=self.num_heads)

    def _kernel_heads(self, linear: Linear) -> jax.Array:
        """(C, I) kernel -> (C, heads, I / heads)."""
        return rearrange(linear.kernel.astype(self.dtype), "c (h d) -> c h d", h=self.num_heads)

    def _folds(self, pixels: jax.Array, tokens: jax.Array) -> bool:
        """Whether folding a projection of the pixels into the tokens saves work; decided by static shapes."""
        shared = pixels.shape[1] == 1 and tokens.shape[1] > 1
        return not shared and self.num_heads * tokens.shape[2] < self.dim // self.downsample_rate

    def among_tokens(self, q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array) -> jax.Array:
        """Self-attention of the tokens."""
        logits = self._heads(self.q_proj(q)) @ self._heads(self.k_proj(k)).swapaxes(-1, -2) * self._scale
        logits = jnp.where(valid[:, :, None, None, :], logits.astype(jnp.float32), -jnp.inf)
        out = jax.nn.softmax(logits).astype(self.dtype) @ self._heads(self.v_proj(v))
        return self.out_proj(rearrange(out, "b n h t d -> b n t (h d)"))

    def tokens_to_pixels(self, tokens: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
        """Each token reads from all pixels. (B, N, T, C)."""
        q = self._heads(self.q_proj(tokens)) * self._scale
        if not self._folds(keys, tokens):
            logits = _matmul_shared(q, self._heads(self.k_proj(keys)).swapaxes(-1, -2))
            weights = jax.nn.softmax(logits.astype(jnp.float32)).astype(self.dtype)
            out = _matmul_shared(weights, self._heads(self.v_proj(values)))
            return self.out_proj(rearrange(out, "b n h t d -> b n t (h d)"))
        # The key bias adds one constant per query to all its logits, which softmax does not see.
        folded = jnp.einsum("bnhtd,chd->bnhtc", q, self._kernel_heads(self.k_proj))
        logits = _against_pixels(keys, rearrange(folded, "b n h t c -> b n (h t) c"))
        weights = jax.nn.softmax(logits.astype(jnp.float32), axis=2).astype(self.dtype)
        out = jnp.einsum("bnsa,bnsc->bnac", weights, values)
        out = rearrange(out, "b n (h t) c -> b n h t c", h=self.num_heads)
        out = jnp.einsum("bnhtc,chd->bnthd", out, self._kernel_heads(self.v_proj))
        return self.out_proj(rearrange(out, "b n t h d -> b n t (h d)") + self.v_proj.bias.astype(self.dtype))

    def pixels_to_tokens(self, pixels: jax.Array, keys: jax.Array, values: jax.Array, valid: jax.Array) -> jax.Array:
        """Each pixel reads from all tokens. (B, N, S, C)."""
        k, v = self._heads(self.k_proj(keys)) * self._scale, self._heads(self.v_proj(values))
        logits = self._pixel_logits(pixels, k, keys).astype(jnp.float32)
        logits = jnp.where(valid[:, :, None, :, None], logits, -jnp.inf)
        weights = jax.nn.softmax(logits, axis=3).astype(self.dtype)
        bias = self.out_proj.bias.astype(self.dtype)
        if self.num_heads * keys.shape[2] >= self.dim // self.downsample_rate:
            return self.out_proj(rearrange(jnp.einsum("bnhts,bnhtd->bnshd", weights, v), "b n s h d -> b n s (h d)"))
        kernel = rearrange(self.out_proj.kernel.astype(self.dtype), "(h d) c -> h d c", h=self.num_heads)
        folded = rearrange(jnp.einsum("bnhtd,hdc->bnhtc", v, kernel), "b n h t c -> b n (h t) c")
        return jnp.einsum("bnas,bnac->bnsc", rearrange(weights, "b n h t s -> b n (h t) s"), folded) + bias

    def _pixel_logits(self, pixels: jax.Array, k: jax.Array, keys: jax.Array) -> jax.Array:
        """(B, N, heads, T, S), pixels last so that the softmax over few tokens runs along long rows."""
        if not self._folds(pixels, keys):
            return _matmul_shared(k, self._heads(self.q_proj(pixels)).swapaxes(-1, -2))
        folded = rearrange(
            jnp.einsum("bnhtd,chd->bnhtc", k, self._kernel_heads(self.q_proj)), "b n h t c -> b n (h t) c"
        )
        logits = rearrange(_against_pixels(pixels, folded), "b n s (h t) -> b n h t s", h=self.num_heads)
        q_bias = rearrange(self.q_proj.bias.astype(self.dtype), "(h d) -> h d", h=self.num_heads)
        return logits + jnp.einsum("bnhtd,hd->bnht", k, q_bias)[..., None]


def _against_pixels(pixels: jax.Array, rows: jax.Array) -> jax.Array:
    """(B, N, S, C) and (B, N, a, C) -> (B, N, S, a): in this order no compiler has to transpose the many pixels."""
    return jnp.einsum("bnsc,bnac->bnsa", pixels, rows)


def _matmul_shared(few: jax.Array, many: jax.Array) -> jax.Array:
    """(B, N, h, T, a) @ (B, N or 1, h, a, b); where all N share the right side, N joins the rows of one matmul."""
    if many.shape[1] != 1 or few.shape[1] == 1:
        return few @ many
    n = few.shape[1]
    rows = rearrange(few, "b n h t a -> b h (n t) a")
    return rearrange(rows @ many[:, 0], "b h (n t) c -> b n h t c", n=n)


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

    @nn.compact
    def __call__(
        self, tokens: jax.Array, pixels: jax.Array, token_pe: jax.Array, image_pe: jax.Array, valid: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        c = self.config

        def norm(name: str) -> nn.LayerNorm:
            return LayerNorm(epsilon=1e-5, dtype=self.dtype, name=name)

        def attention(name: str, rate: int) -> Attention:
            return Attention(self.dim, c.num_heads, rate, self.dtype, name=name)

        self_attn = attention("self_attn", 1)
        if self.skip_first_layer_pe:
            tokens = self_attn.among_tokens(tokens, tokens, tokens, valid)
        else:
            q = tokens + token_pe
            tokens = tokens + self_attn.among_tokens(q, q, tokens, valid)
        tokens = norm("norm1")(tokens)

        rate, keys = c.attention_downsample_rate, pixels + image_pe
        to_image = attention("cross_attn_token_to_image", rate)
        tokens = norm("norm2")(tokens + to_image.tokens_to_pixels(tokens + token_pe, keys, pixels))
        tokens = norm("norm3")(tokens + MlpBlock(self.dim, c.mlp_dim, self.dtype, name="mlp")(tokens))
        to_tokens = attention("cross_attn_image_to_token", rate)
        update = to_tokens.pixels_to_tokens(keys, tokens + token_pe, tokens, valid)
        return tokens, norm("norm4")(pixels + update)


class TwoWayTransformer(nn.Module):
    """Tokens (B, N, T, C) and pixels (B, N or 1, S, C) -> both, updated; pixels (B, N, S, C)."""

    config: MaskDecoderConfig
    dim: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: jax.Array, pixels: jax.Array, image_pe: jax.Array, valid: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        c, token_pe = self.config, tokens
        for i in range(c.depth):
            block = TwoWayAttentionBlock(c, self.dim, i == 0, self.dtype, name=f"layers_{i}")
            tokens, pixels = block(tokens, pixels, token_pe, image_pe, valid)
        final = Attention(
            self.dim, c.num_heads, c.attention_downsample_rate, self.dtype, name="final_attn_token_to_image"
        )
        tokens = tokens + final.tokens_to_pixels(tokens + token_pe, pixels + image_pe, pixels)
        return LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm_final_attn")(tokens), pixels
