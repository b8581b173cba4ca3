"""HQ-SAM's mask decoder: SAM's, with one more token, whose mask is computed from fine features.

Source: Ke et al. 2023, "Segment Anything in High Quality"; its code's `modeling/mask_decoder_hq.py`. The fine features
of an image are the sum of its embedding and of early encoder features, both upscaled fourfold. All prompts share them,
so they are computed once and stored as extra channels of the image embedding.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from sam_jax.config import HqMaskDecoderConfig
from sam_jax.models.layers import Mlp
from sam_jax.models.mask_decoder import PreparedEmbeddings, join_tokens, of_wanted
from sam_jax.models.planes import PlaneNorm, PlaneSubpixelConv
from sam_jax.models.prompt_encoder import PromptEmbeddings
from sam_jax.models.two_way_transformer import TwoWayTransformer
from sam_jax.ops.gelu import gelu
from sam_jax.ops.layer_norm import CENTRED, TWO_PASSES, layer_norm
from sam_jax.ops.mask_decoder import Upscaling, kept
from sam_jax.ops.planes import split, split_subpixels, stack
from sam_jax.ops.products import conv_general_dilated, einsum
from sam_jax.ops.sums import repeat

EPSILON = 1e-6
_normal = nn.initializers.normal(stddev=1.0)


class HqFeatures(nn.Module):
    """Image embeddings and early features -> image embeddings with fine features as extra channels.

    In the published code these parameters belong to the mask decoder: their names start with `mask_decoder`.
    """

    dim: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, encoded: jax.Array) -> jax.Array:
        """(B, h, w, C + early) -> (B, h, w, C + 16 C / 8) float32."""
        grid = encoded.shape[1:3]
        embeddings, early = (
            rearrange(x, "b h w c -> b 1 c (h w)").astype(self.dtype) for x in jnp.split(encoded, [self.dim], axis=-1)
        )
        fine = self._enlarged(embeddings, self.dim // 4, "embedding_encoder")
        fine = fine + self._enlarged(early, self.dim, "compress_vit_feat")
        cells = rearrange(fine, "b 1 x c (h w) -> b h w (x c)", h=grid[0])
        return jnp.concatenate([encoded[..., : self.dim], cells.astype(jnp.float32)], axis=-1)

    def _enlarged(self, x: jax.Array, hidden: int, name: str) -> jax.Array:
        """Two transposed convolutions, (B, 1, in, S) -> (B, 1, 16, C / 8, S)."""
        up = PlaneSubpixelConv(x.shape[2], hidden, centred=True, dtype=self.dtype, name=f"{name}_0")
        norm = PlaneNorm(hidden, EPSILON, centred=True, dtype=self.dtype, name=f"{name}_1")
        up_again = PlaneSubpixelConv(hidden, self.dim // 8, dtype=self.dtype, name=f"{name}_3")
        return _by_subpixel(stack(*up_again.matrices(), gelu(norm(split(*up.matrices(), x)))))


class ConvParameters(nn.Module):
    """Kernel (3, 3, in, features) and bias (features,) of a convolution."""

    in_features: int
    features: int
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        shape = (3, 3, self.in_features, self.features)
        self.kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        self.bias = self.param("bias", nn.initializers.zeros, (self.features,))

    def arrays(self) -> tuple[jax.Array, jax.Array]:
        """Both, in the compute dtype."""
        return self.kernel.astype(self.dtype), self.bias.astype(self.dtype)


class Refining(NamedTuple):
    """Two convolutions, with a LayerNorm between, whose output for a prompt is added to the fine features."""

    first: jax.Array
    first_bias: jax.Array
    scale: jax.Array
    shift: jax.Array
    second: jax.Array
    second_bias: jax.Array


class HqMaskDecoder(nn.Module):
    """Predicts two masks per prompt: the single mask, and the one with the highest predicted IoU of the others."""

    config: HqMaskDecoderConfig
    dim: int
    dtype: jnp.dtype = jnp.float32

    def prepare(
        self, pixels: jax.Array, rest: jax.Array | None, image_pe: jax.Array, grid: tuple[int, int]
    ) -> PreparedEmbeddings:
        """As `MaskDecoder.prepare`, with the fine features (B, 1, 2 C, S)."""
        assert rest is not None
        fine = rearrange(rest, "b 1 (x c) s -> b x c s", x=16)
        pixels, image_pe, fine = (kept(x.astype(self.dtype)) for x in (pixels, image_pe, fine))
        return PreparedEmbeddings(pixels, image_pe, fine, grid)

    @nn.compact
    def __call__(
        self,
        embeddings: PreparedEmbeddings,
        prompts: PromptEmbeddings,
        masks: slice = slice(None),
        deterministic: bool = True,
        least_iou: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """As `MaskDecoder`; `masks` selects from the two masks."""
        c, dim = self.config, self.dim
        names = {"iou_token": 1, "mask_tokens": c.num_mask_tokens, "hf_token": 1}
        tokens, valid = join_tokens(
            jnp.concatenate([self.param(name, _normal, (count, dim)) for name, count in names.items()]), prompts
        )
        pixels = repeat(embeddings.pixels, prompts.dense.shape[1], 1) + prompts.dense
        transformer = TwoWayTransformer(c, dim, self.dtype, deterministic, name="transformer")
        outputs = None if least_iou is None else sum(names.values())
        tokens, pixels = transformer(tokens.astype(self.dtype), pixels, embeddings.image_pe, valid, outputs)
        hypernetworks = [
            Mlp(dim, dim // 8, 3, self.dtype, name=f"output_hypernetworks_mlps_{i}")(tokens[:, :, 1 + i])
            for i in range(c.num_mask_tokens)
        ]
        of_token = Mlp(dim, dim // 8, 3, self.dtype, name="hf_mlp")(tokens[:, :, 1 + c.num_mask_tokens])
        head = Mlp(c.iou_head_hidden_dim, c.num_mask_tokens, c.iou_head_depth, self.dtype, name="iou_prediction_head")
        iou = head(tokens[:, :, 0]).astype(jnp.float32)
        rows, iou = (x[:, :, masks] for x in _single_and_best(jnp.stack(hypernetworks, axis=2), iou))
        of_prompts = partial(_planes, *self._parts(), embeddings.details, embeddings.grid, c.hq_token_only)
        if least_iou is None:
            return of_prompts(rows, of_token, pixels), iou
        return of_wanted(of_prompts, (iou > least_iou).any(axis=-1), rows, of_token, pixels), iou

    def _parts(self) -> tuple[Upscaling, Refining]:
        """The parameters for the pixels after the transformer; they cannot be created inside `of_wanted`."""
        c, f = self.dim // 4, self.dim // 8
        up = PlaneSubpixelConv(self.dim, c, centred=True, dtype=self.dtype, name="output_upscaling_0")
        norm = PlaneNorm(c, EPSILON, centred=True, dtype=self.dtype, name="output_upscaling_1")
        up_again = PlaneSubpixelConv(c, f, dtype=self.dtype, name="output_upscaling_3")
        first = ConvParameters(f, c, self.dtype, name="embedding_maskfeature_0")
        middle = PlaneNorm(c, EPSILON, dtype=self.dtype, name="embedding_maskfeature_1")
        second = ConvParameters(c, f, self.dtype, name="embedding_maskfeature_3")
        refining = Refining(*first.arrays(), middle.scale, middle.bias, *second.arrays())
        return Upscaling(*up.matrices(), norm.scale, norm.bias, *up_again.matrices()), refining


def _single_and_best(rows: jax.Array, iou: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rows (B, N, 1 + M, C), IoUs (B, N, 1 + M) -> the first of each, and the one with the highest IoU of the rest."""
    best = 1 + iou[..., 1:].argmax(axis=-1, keepdims=True)
    index = jnp.concatenate([jnp.zeros_like(best), best], axis=-1)
    return jnp.take_along_axis(rows, index[..., None], axis=2), jnp.take_along_axis(iou, index, axis=2)


def _planes(
    upscaling: Upscaling,
    refining: Refining,
    fine: jax.Array,
    grid: tuple[int, int],
    hq_token_only: bool,
    rows: jax.Array,
    of_token: jax.Array,
    pixels: jax.Array,
) -> jax.Array:
    """Hypernetwork outputs of SAM's masks (B, N, M, C / 8) and of the HQ token (B, N, C / 8), and pixels (B, N, C, S)
    -> (B, N, M, 16, S) float32 logits."""
    u = upscaling
    x = split(u.first, u.first_bias, pixels)
    x = gelu(layer_norm(x, u.scale, u.shift, EPSILON, -2, CENTRED))
    x = gelu(_by_subpixel(stack(u.second, u.second_bias, x)))
    own = einsum("bnc,bxcs->bnxs", of_token, fine).astype(jnp.float32)
    own = (own + split_subpixels(_refined(refining, x, grid, of_token)))[:, :, None]
    if hq_token_only:
        return jnp.broadcast_to(own, (*rows.shape[:3], *own.shape[3:]))
    return own + einsum("bnmc,bnxcs->bnmxs", rows, x).astype(jnp.float32)


def _by_subpixel(x: jax.Array) -> jax.Array:
    """Planes after two upscaling steps, as `stack` returns them: (B, N, 4, 4 C, S) -> (B, N, 16, C, S)."""
    return rearrange(x, "b n u (t c) s -> b n (u t) c s", t=4)


def _refined(refining: Refining, x: jax.Array, grid: tuple[int, int], of_token: jax.Array) -> jax.Array:
    """Both convolutions on pixels (B, N, 16, C, S), times a vector per prompt (B, N, C): (B, N, 4h, 4w) float32.

    The vector is folded into the second kernel, which then outputs one channel instead of C.
    """
    r, b = refining, len(of_token)
    x = rearrange(x, "b n (i j k l) c (h w) -> (b n) (h i k) (w j l) c", i=2, j=2, k=2, l=2, h=grid[0])
    x = conv_general_dilated(x, r.first, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")) + r.first_bias
    x = gelu(layer_norm(x, r.scale, r.shift, EPSILON, -1, TWO_PASSES))
    kernel = rearrange(einsum("ijco,bno->bnijc", r.second, of_token), "b n i j c -> (b n) (i j) c")
    taps = jnp.pad(einsum("bhwc,btc->bthw", x, kernel).astype(jnp.float32), ((0, 0), (0, 0), (1, 1), (1, 1)))
    height, width = x.shape[1:3]
    out = sum(taps[:, 3 * i + j, i : i + height, j : j + width] for i in range(3) for j in range(3))
    constant = einsum("o,bno->bn", r.second_bias, of_token).astype(jnp.float32)
    return rearrange(out, "(b n) h w -> b n h w", b=b) + constant[..., None, None]
