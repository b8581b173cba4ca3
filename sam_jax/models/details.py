"""Details: image features finer than the grid of the ViT, for sharper outlines.

The published models have none: their decoder sees each cell of 16 x 16 pixels as one vector. SAM-HQ (Ke et al. 2023)
and SAM 2 pass early, fine features of their encoders to the mask decoder. A plain ViT has no such features, so a few
convolutions at a quarter of the image's side compute them. They are used three times:
  - added to the patch embedding, which lets the ViT learn from far less data (Xiao et al. 2021, "Early convolutions
    help transformers see better");
  - combined with the ViT's output, added to the decoder's pixels after each of its two upscaling steps, as in SAM 2;
  - in the masks: each prompt's hypernetwork weights these features, too, as in MaskFormer (Cheng et al. 2021).

F are the channels of the details.
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
from sam_jax.ops.products import einsum, matmul

DEPTH = 2  # convolutions before and after the ViT
_CELLS = SIDE**2  # sub-pixels per embedding cell


class Details(NamedTuple):
    """Details of an image, shared by its prompts, as planes (see ops/planes.py).

    Attributes:
      first: (B, 1, 4, C / 4, S), added after the first upscaling step.
      second: (B, 1, 4, 4 C / 8, S), added after the second.
      masks: (B, 1, 16, F, S), features that the hypernetworks weight.
    """

    first: jax.Array
    second: jax.Array
    masks: jax.Array


class Convolutions(nn.Module):
    """DEPTH residual convolutions and a normalisation: (B, H, W, F) -> (B, H, W, F)."""

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
    """Details as an addition to the ViT's tokens: (B, 4h, 4w, F) -> (B, h, w, features); initialised to zero."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, details: jax.Array) -> jax.Array:
        cells = rearrange(details, "b (h i) (w j) c -> b h w (i j c)", i=SIDE, j=SIDE)
        return Dense(self.features, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="proj")(cells)


class DetailsToPixels(nn.Module):
    """Combines details with the ViT's tokens, as extra channels of the image embedding.

    (B, 4h, 4w, F) and tokens (B, h, w, D) -> (B, h, w, 3 C + 16 F), which `split_details` splits; C is `dim`.
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
    """Splits image embeddings into those of SAM (B, h, w, C = dim) and the details, or None if there are none."""
    proper, rest = image_embeddings[..., :dim], image_embeddings[..., dim:]
    return proper, details_of(rearrange(rest, "b h w c -> b 1 c (h w)"), dim) if rest.shape[-1] else None


def details_of(rows: jax.Array, dim: int) -> Details:
    """Details of an image embedding's further channels (B, 1, 3 C + 16 F, S); C is `dim`."""
    first, second, masks = rows[:, :, :dim], rows[:, :, dim : 3 * dim], rows[:, :, 3 * dim :]
    parts = (rearrange(x, "b 1 (x f) s -> b 1 x f s", x=n) for x, n in ((first, 4), (second, 4), (masks, _CELLS)))
    return Details(*parts)


def centred(details: Details) -> Details:
    """Details whose `first` sums to zero over its channels, as the LayerNorm that follows it wants."""
    return details._replace(first=details.first - details.first.mean(axis=-2, keepdims=True))


def weighted(weights: jax.Array, masks: jax.Array) -> jax.Array:
    """Each mask's weights (B, N, M, F) times `Details.masks`: planes (B, N, M, 16, S)."""
    if weights.shape[1] != 1:
        return einsum("bnmf,bxfs->bnmxs", weights, masks[:, 0])
    # As above, but without a transposition of the features, which would be most of the work for a single prompt.
    return matmul(jnp.broadcast_to(weights[:, :, None], (*masks.shape[:3], *weights.shape[2:])), masks).swapaxes(2, 3)


def pixel_embeddings(masks: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """`Details.masks` with sub-pixels joined, for an embedding grid (h, w): (B, 4h, 4w, F)."""
    return jnp.moveaxis(join_subpixels(masks[:, 0].swapaxes(1, 2), grid), 1, -1)
