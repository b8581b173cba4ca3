"""Image and text towers of CLIP and SigLIP 2 as linen modules. Names follow the Hugging Face state dicts of both.

Sources: transformers `models/clip/modeling_clip.py` and `models/siglip/modeling_siglip.py`; for the attention that a
mask limits SAM paper, appendix D.6.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from sam_jax.config import TextTowerConfig, TowersConfig, VisionTowerConfig
from sam_jax.models.layers import Dense, LayerNorm, Linear
from sam_jax.ops.products import einsum, matmul

_EPSILON = {"clip": 1e-5, "siglip": 1e-6}
_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": partial(nn.gelu, approximate=False),
    "gelu_tanh": partial(nn.gelu, approximate=True),
}
_init = nn.initializers.normal(stddev=0.02)


class Style(NamedTuple):
    """What all blocks of both towers have in common."""

    epsilon: float
    activation: str
    dtype: Any

    def norm(self, name: str) -> LayerNorm:
        """A layer normalisation."""
        return LayerNorm(self.epsilon, dtype=self.dtype, name=name)

    def mlp(self, hidden_dim: int) -> TowerMlp:
        """An MLP."""
        return TowerMlp(hidden_dim, self.activation, self.dtype, name="mlp")


class Towers(nn.Module):
    """Both towers, and the numbers that turn cosines into logits.

    Call through `towers.apply(variables, ..., method="embed_images")`; all parameters are in `params`.
    """

    config: TowersConfig
    dtype: Any = jnp.float32

    def setup(self) -> None:
        c = self.config
        style = Style(_EPSILON[c.family], c.activation, self.dtype)
        self.vision_model = VisionTower(c.vision, c.is_clip, style)
        self.text_model = TextTower(c.text, None if c.is_clip else c.embed_dim, style)
        scalar = () if c.is_clip else (1,)
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(2.6592), scalar)
        if c.is_clip:
            self.visual_projection = Dense(c.embed_dim, use_bias=False, dtype=self.dtype)
            self.text_projection = Dense(c.embed_dim, use_bias=False, dtype=self.dtype)
        else:
            self.logit_bias = self.param("logit_bias", nn.initializers.zeros, scalar)

    def embed_images(self, images: jax.Array, tokens_inside: jax.Array | None = None) -> jax.Array:
        """Embeddings of images.

        Args:
          images: (B, S, S, 3) float32, normalised by the config's mean and deviation.
          tokens_inside: (B, grid, grid) bool; where given, what the embedding is read from sees these tokens alone, in
            the last block (CLIP) or in the pooling (SigLIP). A row without any sees all.

        Returns:
          (B, embed_dim) float32 of length one.
        """
        found = self.vision_model(images, tokens_inside)
        return _unit(self.visual_projection(found) if self.config.is_clip else found)

    def embed_tokens(self, tokens: jax.Array) -> jax.Array:
        """Embeddings of texts: tokens (B, context_length) int32 -> (B, embed_dim) float32 of length one."""
        found = self.text_model(tokens)
        return _unit(self.text_projection(found) if self.config.is_clip else found)

    def __call__(self, images: jax.Array, tokens: jax.Array) -> jax.Array:
        """Logits (B images, B texts) float32 of every image with every text."""
        similarity = matmul(self.embed_images(images), self.embed_tokens(tokens).T)
        logits = similarity * jnp.exp(self.logit_scale)
        return logits if self.config.is_clip else logits + self.logit_bias


def init_towers(config: TowersConfig, rng: jax.Array) -> dict[str, Any]:
    """Fresh float32 variables of towers."""
    images = jnp.zeros((1, config.vision.image_size, config.vision.image_size, 3))
    tokens = jnp.zeros((1, config.text.context_length), jnp.int32)
    variables: Any = jax.jit(Towers(config).init)(rng, images, tokens)
    return variables


class VisionTower(nn.Module):
    """A ViT up to the embedding before its projection."""

    config: VisionTowerConfig
    is_clip: bool
    style: Style

    @nn.compact
    def __call__(self, images: jax.Array, tokens_inside: jax.Array | None = None) -> jax.Array:
        """(B, S, S, 3) -> (B, width)."""
        c, style = self.config, self.style
        inside = None if tokens_inside is None else rearrange(tokens_inside, "b h w -> b (h w)")
        x = VisionEmbeddings(c, self.is_clip, style.dtype, name="embeddings")(images)
        if self.is_clip:
            x = style.norm("pre_layrnorm")(x)
            if inside is not None:
                # The class token reads image tokens alone; one of an empty mask reads all, itself among them.
                inside = jnp.pad(inside, ((0, 0), (1, 0)))
        seen = None if inside is None else (inside | ~inside.any(axis=-1, keepdims=True))[:, None, None]
        encoder, norm = Encoder(c.depth, c.num_heads, c.mlp_dim, style, name="encoder"), style.norm("post_layernorm")
        if self.is_clip:
            return norm(encoder(x, last=seen, only_first=True)[:, 0])
        return PoolingHead(c.num_heads, c.mlp_dim, style, name="head")(norm(encoder(x)), seen)


class VisionEmbeddings(nn.Module):
    """Patches, the class token (CLIP) and positions."""

    config: VisionTowerConfig
    is_clip: bool
    dtype: Any

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """(B, S, S, 3) -> (B, tokens, width)."""
        c, side = self.config, self.config.grid_size * self.config.patch_size
        patches = images[:, :side, :side].astype(self.dtype)
        x = PatchEmbedding(c.width, c.patch_size, not self.is_clip, self.dtype, name="patch_embedding")(patches)
        if self.is_clip:
            first = self.param("class_embedding", _init, (c.width,)).astype(self.dtype)
            x = jnp.concatenate([jnp.broadcast_to(first, (len(x), 1, c.width)), x], axis=1)
        return x + self.param("position_embedding", _init, x.shape[1:]).astype(self.dtype)


class PatchEmbedding(nn.Module):
    """A convolution whose stride is its kernel size, as one product over patches."""

    features: int
    size: int
    use_bias: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, h k, w k, 3) -> (B, h w, features)."""
        k = self.size
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (k, k, x.shape[-1], self.features))
        patches = rearrange(x, "n (h a) (w b) c -> n (h w) (a b c)", a=k, b=k)
        x = matmul(patches, rearrange(kernel, "a b c d -> (a b c) d").astype(self.dtype))
        if self.use_bias:
            x = x + self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return x


class TextTower(nn.Module):
    """A transformer over tokens: causal and read at the end of text, or, with `embed_dim`, as SigLIP's: read at the
    last place and projected."""

    config: TextTowerConfig
    embed_dim: int | None
    style: Style

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """(B, context_length) int32 -> (B, width), or (B, embed_dim) of SigLIP."""
        c, style = self.config, self.style
        x = TextEmbeddings(c, style.dtype, name="embeddings")(tokens)
        places = jnp.arange(c.context_length)
        causal = (places[:, None] >= places)[None, None] if self.embed_dim is None else None
        encoder = Encoder(c.depth, c.num_heads, c.mlp_dim, style, name="encoder")
        x = style.norm("final_layer_norm")(encoder(x, every=causal))
        if self.embed_dim is not None:
            return Dense(self.embed_dim, dtype=style.dtype, name="head")(x[:, -1])
        # The end of text has the highest number of all tokens.
        return jnp.take_along_axis(x, tokens.argmax(axis=-1)[:, None, None], axis=1)[:, 0]


class TextEmbeddings(nn.Module):
    """Tokens and positions."""

    config: TextTowerConfig
    dtype: Any

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """(B, T) int32 -> (B, T, width)."""
        c = self.config
        table = self.param("token_embedding", _init, (c.vocab_size, c.width))
        positions = self.param("position_embedding", _init, (c.context_length, c.width))
        return table[tokens].astype(self.dtype) + positions.astype(self.dtype)


class Encoder(nn.Module):
    """Blocks `layers_0` .. `layers_{depth-1}`."""

    depth: int
    num_heads: int
    mlp_dim: int
    style: Style

    @nn.compact
    def __call__(
        self, x: jax.Array, every: jax.Array | None = None, last: jax.Array | None = None, only_first: bool = False
    ) -> jax.Array:
        """(B, T, C) -> (B, T, C).

        Args:
          every: (B or 1, 1, T, T) bool, what queries see in every block; last: the same of the last block.
          only_first: of the last block only the first token is wanted; (B, 1, C) comes back.
        """
        for i in range(self.depth):
            is_last = i == self.depth - 1
            block = Block(self.num_heads, self.mlp_dim, self.style, name=f"layers_{i}")
            x = block(x, last if is_last and last is not None else every, only_first and is_last)
        return x


class Block(nn.Module):
    """A block with normalisation before attention and MLP."""

    num_heads: int
    mlp_dim: int
    style: Style

    @nn.compact
    def __call__(self, x: jax.Array, seen: jax.Array | None = None, only_first: bool = False) -> jax.Array:
        """(B, T, C) -> the same, or (B, 1, C)."""
        style, wanted = self.style, slice(1) if only_first else slice(None)
        y = style.norm("layer_norm1")(x)
        x = x[:, wanted] + SelfAttention(self.num_heads, style.dtype, name="self_attn")(y[:, wanted], y, seen)
        return x + style.mlp(self.mlp_dim)(style.norm("layer_norm2")(x))


class SelfAttention(nn.Module):
    """Multi-head attention with four projections."""

    num_heads: int
    dtype: Any

    @nn.compact
    def __call__(self, queries: jax.Array, x: jax.Array, seen: jax.Array | None) -> jax.Array:
        """Queries (B, Q, C) and x (B, T, C) -> (B, Q, C)."""
        project = partial(Dense, x.shape[-1], dtype=self.dtype)
        q, k, v = project(name="q_proj")(queries), project(name="k_proj")(x), project(name="v_proj")(x)
        return project(name="out_proj")(attend(q, k, v, self.num_heads, seen))


class TowerMlp(nn.Module):
    """Two layers with an activation between."""

    hidden_dim: int
    activation: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., C) -> (..., C)."""
        hidden = _ACTIVATIONS[self.activation](Dense(self.hidden_dim, dtype=self.dtype, name="fc1")(x))
        return Dense(x.shape[-1], dtype=self.dtype, name="fc2")(hidden)


class PoolingHead(nn.Module):
    """SigLIP's attention pooling: one learned query over all tokens, then an MLP."""

    num_heads: int
    mlp_dim: int
    style: Style

    @nn.compact
    def __call__(self, x: jax.Array, seen: jax.Array | None = None) -> jax.Array:
        """(B, T, C) -> (B, C)."""
        style = self.style
        probe = self.param("probe", _init, (1, 1, x.shape[-1])).astype(style.dtype)
        x = PoolingAttention(self.num_heads, style.dtype, name="attention")(probe, x, seen)
        return (x + style.mlp(self.mlp_dim)(style.norm("layernorm")(x)))[:, 0]


class PoolingAttention(nn.Module):
    """torch's `MultiheadAttention`, whose projections to queries, keys and values are one matrix (C, 3C)."""

    num_heads: int
    dtype: Any

    @nn.compact
    def __call__(self, queries: jax.Array, x: jax.Array, seen: jax.Array | None) -> jax.Array:
        """Queries (1, Q, C) and x (B, T, C) -> (B, Q, C)."""
        c = x.shape[-1]
        project = Linear(c, 3 * c, self.dtype, name="in_proj")
        kernels, biases = jnp.split(project.kernel, 3, axis=1), jnp.split(project.bias, 3)
        q, k, v = (
            matmul(part, kernel.astype(self.dtype)) + bias.astype(self.dtype)
            for part, kernel, bias in zip((queries, x, x), kernels, biases, strict=True)
        )
        q = jnp.broadcast_to(q, (len(x), *q.shape[1:]))
        return Dense(c, dtype=self.dtype, name="out_proj")(attend(q, k, v, self.num_heads, seen))


def attend(q: jax.Array, k: jax.Array, v: jax.Array, num_heads: int, seen: jax.Array | None) -> jax.Array:
    """Multi-head attention, softmax in float32: q (B, Q, C), k and v (B, T, C), seen (B or 1, 1, Q or 1, T) bool."""
    q, k, v = (rearrange(x, "b t (n d) -> b n t d", n=num_heads) for x in (q, k, v))
    logits = einsum("bnqd,bnkd->bnqk", q * q.shape[-1] ** -0.5, k).astype(jnp.float32)
    if seen is not None:
        logits = jnp.where(seen, logits, -jnp.inf)
    weights = jax.nn.softmax(logits).astype(v.dtype)
    return rearrange(einsum("bnqk,bnkd->bnqd", weights, v), "b n q d -> b q (n d)")


def _unit(x: jax.Array) -> jax.Array:
    x = x.astype(jnp.float32)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
