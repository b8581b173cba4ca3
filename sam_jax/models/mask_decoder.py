"""The mask decoder: image embedding and prompt embeddings -> masks and their predicted IoU.

Source: official `modeling/mask_decoder.py`; SAM paper, section 3 and appendix A.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from sam_jax.config import MaskDecoderConfig
from sam_jax.models.details import Details, centred, details_of, weighted
from sam_jax.models.layers import Mlp
from sam_jax.models.planes import PlaneNorm, PlaneSubpixelConv
from sam_jax.models.prompt_encoder import PromptEmbeddings
from sam_jax.models.two_way_transformer import TwoWayTransformer
from sam_jax.ops.mask_decoder import Upscaling, kept, upscale
from sam_jax.ops.sums import repeat

_normal = nn.initializers.normal(stddev=1.0)


@struct.dataclass
class PreparedEmbeddings:
    """Image embeddings as the mask decoder reads them, made once for any number of prompts.

    Attributes:
      pixels: (B, 1, C, S) in the compute dtype.
      image_pe: (1, 1, C, S), the positional encoding of the grid.
      details: finer features, `Details`; of HQ-SAM (B, 16, C / 8, S); None if the model has none.
      grid: (h, w).
    """

    pixels: jax.Array
    image_pe: jax.Array
    details: Any
    grid: tuple[int, int] = struct.field(pytree_node=False)


class MaskDecoder(nn.Module):
    """Predicts one mask per mask token: the single mask first, then the masks for ambiguous prompts."""

    config: MaskDecoderConfig
    dim: int
    dtype: jnp.dtype = jnp.float32

    def prepare(
        self, pixels: jax.Array, rest: jax.Array | None, image_pe: jax.Array, grid: tuple[int, int]
    ) -> PreparedEmbeddings:
        """Prepares image embeddings (B, 1, C, S), their further channels (B, 1, D, S), and image_pe (1, 1, C, S)."""
        # `first` sums to zero over its channels, as the LayerNorm that follows it wants.
        details = None if rest is None else jax.tree.map(self._compute, centred(details_of(rest, self.dim)))
        return PreparedEmbeddings(self._compute(pixels), self._compute(image_pe), details, grid)

    def _compute(self, x: jax.Array) -> jax.Array:
        return kept(x.astype(self.dtype))

    @nn.compact
    def __call__(
        self,
        embeddings: PreparedEmbeddings,
        prompts: PromptEmbeddings,
        masks: slice = slice(None),
        deterministic: bool = True,
        least_iou: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Predicts masks, as planes, and their IoUs.

        Args:
          embeddings: of B images, from `prepare`.
          prompts: of N prompts per image.
          masks: selects M of the 1 + num_multimask_outputs masks.
          deterministic: no dropout.
          least_iou: () float32; pixels are upscaled prompt by prompt, and only if at least one of the prompt's M
            predicted IoUs is above it; other prompts get planes of zeros.

        Returns:
          Logits (B, N, M, 16, h*w) float32, see `planes.join_subpixels`, and predicted IoUs (B, N, M) float32.
        """
        c = self.config
        iou_token = self.param("iou_token", _normal, (1, self.dim))
        mask_tokens = self.param("mask_tokens", _normal, (c.num_mask_tokens, self.dim))
        tokens, valid = join_tokens(jnp.concatenate([iou_token, mask_tokens]), prompts)
        details: Details | None = embeddings.details
        pixels = repeat(embeddings.pixels, prompts.dense.shape[1], 1) + prompts.dense
        transformer = TwoWayTransformer(c, self.dim, self.dtype, deterministic, name="transformer")
        outputs = None if least_iou is None else 1 + c.num_mask_tokens
        tokens, pixels = transformer(tokens.astype(self.dtype), pixels, embeddings.image_pe, valid, outputs)
        weights = self.dim // 8 + (0 if details is None else details.masks.shape[-2])
        hypernetworks = [
            Mlp(self.dim, weights, 3, self.dtype, name=f"output_hypernetworks_mlps_{i}")(tokens[:, :, 1 + i])
            for i in range(c.num_mask_tokens)[slice(None) if self.is_initializing() else masks]
        ]
        head = Mlp(c.iou_head_hidden_dim, c.num_mask_tokens, c.iou_head_depth, self.dtype, name="iou_prediction_head")
        iou = head(tokens[:, :, 0])[..., masks].astype(jnp.float32)
        wanted = None if least_iou is None else (iou > least_iou).any(axis=-1)
        planes = self._planes(jnp.stack(hypernetworks, axis=2), pixels, details, wanted)
        if c.iou_times_stability and not self.is_initializing():
            iou = iou * stability(planes)
        return planes, iou

    def _planes(
        self, hypernetworks: jax.Array, pixels: jax.Array, details: Details | None, wanted: jax.Array | None
    ) -> jax.Array:
        """Hypernetwork outputs (B, N, M, C / 8) and pixels (B, N, C, S) -> (B, N, M, 16, S) float32 logits.

        With `details`, hypernetwork outputs are (B, N, M, C / 8 + F); the last F weight the details. Prompts that are
        not `wanted` (B, N) get zeros. Sub-pixels of both upscaling steps stay planes, so nothing is transposed.
        """
        c = self.dim
        up = PlaneSubpixelConv(c, c // 4, centred=True, dtype=self.dtype, name="output_upscaling_0")
        norm = PlaneNorm(c // 4, 1e-6, centred=True, dtype=self.dtype, name="output_upscaling_1")
        up_again = PlaneSubpixelConv(c // 4, c // 8, dtype=self.dtype, name="output_upscaling_3")
        upscaling = Upscaling(*up.matrices(), norm.scale, norm.bias, *up_again.matrices())
        heads, kernels = self.config.num_heads, self.config.kernels

        def of_prompts(hypernetworks: jax.Array, pixels: jax.Array) -> jax.Array:
            if details is None:
                return upscale(upscaling, hypernetworks, pixels, heads, norm.epsilon, kernels)
            first, second, masks = details
            own, shared = jnp.split(hypernetworks, [c // 8], axis=-1)
            planes = upscale(upscaling, own, pixels, heads, norm.epsilon, kernels, (first, second))
            return planes + weighted(shared, masks).astype(jnp.float32)

        if wanted is None:
            return of_prompts(hypernetworks, pixels)
        return of_wanted(of_prompts, wanted, hypernetworks, pixels)


def stability(planes: jax.Array) -> jax.Array:
    """Stability score of masks (..., 16, S) -> (...) float32: pixels with logits above 0.5, of those above -0.5."""
    surely, maybe = ((planes > logit).sum(axis=(-2, -1)) for logit in (0.5, -0.5))
    return surely / jnp.maximum(maybe, 1).astype(jnp.float32)


def of_wanted(of_prompts: Callable[..., jax.Array], wanted: jax.Array, *operands: jax.Array) -> jax.Array:
    """Applies `of_prompts` to operands (B, N, ...) prompt by prompt, only where `wanted` (B, N); zeros elsewhere."""

    def of_one(wanted: jax.Array, *one: jax.Array) -> jax.Array:
        alone = [x[:, None] for x in one]
        nothing = jnp.zeros(jax.eval_shape(of_prompts, *alone).shape, jnp.float32)
        planes: jax.Array = jax.lax.cond(wanted.any(), of_prompts, lambda *_: nothing, *alone)
        return planes[:, 0]

    by_prompt = [x.swapaxes(0, 1) for x in (wanted, *operands)]
    planes: jax.Array = jax.lax.map(lambda one: of_one(*one), by_prompt)
    return planes.swapaxes(0, 1)


def join_tokens(output_tokens: jax.Array, prompts: PromptEmbeddings) -> tuple[jax.Array, jax.Array]:
    """Puts output tokens (n, C) before each prompt's tokens: (B, N, n + T, C) and their validity (B, N, n + T)."""
    batch = prompts.sparse.shape[:2]
    output_tokens = jnp.broadcast_to(output_tokens, (*batch, *output_tokens.shape))
    always = jnp.ones(output_tokens.shape[:3], bool)
    tokens = jnp.concatenate([output_tokens, prompts.sparse], axis=2)
    return tokens, jnp.concatenate([always, prompts.sparse_valid], axis=2)
