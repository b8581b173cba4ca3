"""Details: what lies between the patches of the ViT, for outlines finer than its grid.

The published models have none. Ma et al. 2023 (SAM-HQ) and SAM 2 hand early, fine features of their encoders to the
mask decoder; a plain ViT has none to hand on, so that a few convolutions at a quarter of the picture's side make them.
They also join the patches that the ViT reads, which lets it learn with far less data (Xiao et al. 2021, "Early
convolutions help transformers see better").
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from sam_jax.models.layers import Dense, LayerNorm, PatchConv
from sam_jax.ops.gelu import gelu

WIDTH = 32  # channels of the convolutions
DEPTH = 2  # of them after the first: each output cell sees 20 x 20 pixels
STRIDE = 4  # pixels per cell, as of the decoder's masks


class ImageDetails(nn.Module):
    """Fine features of a picture: (B, H, W, 3) normalised RGB -> (B, H / 4, W / 4, WIDTH)."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = PatchConv(WIDTH, STRIDE, dtype=self.dtype, name="proj")(images)
        for i in range(DEPTH):
            y = gelu(LayerNorm(epsilon=1e-6, dtype=self.dtype, name=f"norm_{i}")(x))
            x = x + nn.Conv(WIDTH, (3, 3), padding=1, dtype=self.dtype, name=f"conv_{i}")(y)
        return gelu(LayerNorm(epsilon=1e-6, dtype=self.dtype, name=f"norm_{DEPTH}")(x))


class DetailsToTokens(nn.Module):
    """What the details add to the ViT's patches: (B, 4h, 4w, WIDTH) -> (B, h, w, features). Nothing at first."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, details: jax.Array) -> jax.Array:
        cells = rearrange(details, "b (h i) (w j) c -> b h w (i j c)", i=4, j=4)
        return Dense(self.features, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="proj")(cells)


class DetailsToPixels(nn.Module):
    """What the details add to the mask decoder's pixels after its first and its second enlargement. Nothing at first.

    (B, 4h, 4w, WIDTH) -> (B, h, w, 3 C): for each cell of the embedding 4 sub-pixels of C / 4 channels, then 16 of
    C / 8, ordered as `ops.planes` says.
    """

    dim: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, details: jax.Array) -> jax.Array:
        def dense(features: int, name: str) -> nn.Module:
            return Dense(features, dtype=self.dtype, kernel_init=nn.initializers.zeros, name=name)

        pairs = rearrange(details, "b (h c) (w d) f -> b h w (c d f)", c=2, d=2)
        first = rearrange(dense(self.dim // 4, "first")(pairs), "b (h i) (w j) f -> b h w (i j f)", i=2, j=2)
        second = dense(self.dim // 8, "second")(details)
        second = rearrange(second, "b (h i c) (w j d) f -> b h w (i j c d f)", i=2, j=2, c=2, d=2)
        return jnp.concatenate([first, second], axis=-1)


def split_details(image_embeddings: jax.Array, dim: int) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
    """(B, h, w, C or 4 C) -> the embeddings proper (B, h, w, C) and, where they carry details, these as planes:
    (B, 1, 4, C / 4, h*w) and (B, 1, 4, 4 C / 8, h*w)."""
    proper, rest = image_embeddings[..., :dim], image_embeddings[..., dim:]
    if not rest.shape[-1]:
        return proper, None
    first = rearrange(rest[..., :dim], "b h w (x f) -> b 1 x f (h w)", x=4)
    return proper, (first, rearrange(rest[..., dim:], "b h w (x f) -> b 1 x f (h w)", x=4))
