"""Details: what lies between the patches of the ViT, for outlines finer than its grid.

The published models have none: all that their decoder knows of a cell of 16 x 16 pixels is one vector. SAM-HQ (Ke et
al. 2023) and SAM 2 hand early, fine features of their encoders to the mask decoder. A plain ViT has none to hand on, so
a few convolutions at a quarter of the image's side make them. They go three ways:
  - into the patches that the ViT reads, which then learns with far less data (Xiao et al. 2021, "Early convolutions
    help transformers see better");
  - joined with what the ViT found, into the decoder's pixels after each of its two enlargements, as in SAM 2;
  - into its masks: each prompt's hypernetwork weighs these features, too, as in MaskFormer (Cheng et al. 2021).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from sam_jax.models.layers import Conv, Dense, LayerNorm, PatchConv
from sam_jax.ops.gelu import gelu
from sam_jax.ops.planes import SIDE, join_subpixels

DEPTH = 2  # convolutions before and after the ViT
_CELLS = SIDE**2  # of details in one of the embedding


class Details(NamedTuple):
    """What an image's prompts share, as planes (see ops/planes.py).

    Attributes:
      first: (B, 1, 4, C / 4, S), for each sub-pixel of the first enlargement.
      second: (B, 1, 4, 4 C / 8, S), for each of the second.
      masks: (B, 1, 16, F, S), what masks are weighed together of.
    """

    first: jax.Array
    second: jax.Array
    masks: jax.Array


class Convolutions(nn.Module):
    """DEPTH residual convolutions and a normalisation: (B, H, W, F) -> the same."""

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(DEPTH):
            y = gelu(LayerNorm(epsilon=1e-6, dtype=self.dtype, name=f"norm_{i}")(x))
            x = x + Conv(self.features, (3, 3), padding=1, dtype=self.dtype, name=f"conv_{i}")(y)
        return LayerNorm(epsilon=1e-6, dtype=self.dtype, name=f"norm_{DEPTH}")(x)


class ImageDetails(nn.Module):
    """Fine features of an image: (B, H, W, 3) normalised RGB -> (B, H / stride, W / stride, F)."""

    features: int
    stride: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = PatchConv(self.features, self.stride, dtype=self.dtype, name="proj")(images)
        return gelu(Convolutions(self.features, self.dtype, name="convolutions")(x))


class DetailsToTokens(nn.Module):
    """What details add to the ViT's patches: (B, 4h, 4w, F) -> (B, h, w, features). Nothing at first."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, details: jax.Array) -> jax.Array:
        cells = rearrange(details, "b (h i) (w j) c -> b h w (i j c)", i=SIDE, j=SIDE)
        return Dense(self.features, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="proj")(cells)


class DetailsToPixels(nn.Module):
    """Details and the ViT's tokens, joined, as they travel in an image embedding.

    (B, 4h, 4w, F) and (B, h, w, D) -> (B, h, w, 3 C + 16 F), which `split_details` takes apart.
    """

    dim: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, details: jax.Array, tokens: jax.Array) -> jax.Array:
        def dense(features: int, name: str) -> nn.Module:
            return Dense(features, dtype=self.dtype, kernel_init=nn.initializers.zeros, name=name)

        width = details.shape[-1]
        context = Dense(_CELLS * width, dtype=self.dtype, name="context")(tokens)
        x = details + rearrange(context, "b h w (i j c) -> b (h i) (w j) c", i=SIDE, j=SIDE)
        x = Convolutions(width, self.dtype, name="convolutions")(x)
        pairs = rearrange(x, "b (h c) (w d) f -> b h w (c d f)", c=2, d=2)
        first = rearrange(dense(self.dim // 4, "first")(pairs), "b (h i) (w j) f -> b h w (i j f)", i=2, j=2)
        parts = [first, _by_cell(dense(self.dim // 8, "second")(x)), _by_cell(x)]
        return jnp.concatenate(parts, axis=-1)


def _by_cell(x: jax.Array) -> jax.Array:
    """(B, 4h, 4w, F) -> (B, h, w, 16 F), sub-pixels ordered as planes are."""
    return rearrange(x, "b (h i c) (w j d) f -> b h w (i j c d f)", i=2, j=2, c=2, d=2)


def split_details(image_embeddings: jax.Array, dim: int) -> tuple[jax.Array, Details | None]:
    """The embeddings proper (B, h, w, C), and the details that they carry, if any."""
    proper, rest = image_embeddings[..., :dim], image_embeddings[..., dim:]
    if not rest.shape[-1]:
        return proper, None

    def planes(x: jax.Array, subpixels: int) -> jax.Array:
        return rearrange(x, "b h w (x f) -> b 1 x f (h w)", x=subpixels)

    first, second, masks = rest[..., :dim], rest[..., dim : 3 * dim], rest[..., 3 * dim :]
    return proper, Details(planes(first, 4), planes(second, 4), planes(masks, _CELLS))


def pixel_embeddings(masks: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """`Details.masks` with sub-pixels side by side, for an embedding of (h, w) cells: (B, 4h, 4w, F)."""
    return jnp.moveaxis(join_subpixels(masks[:, 0].swapaxes(1, 2), grid), 1, -1)
