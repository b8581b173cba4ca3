"""The mask decoder: image embedding and prompt embeddings -> masks and their predicted IoU.

Source: official `modeling/mask_decoder.py`; SAM paper, section 3 and appendix A.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from sam_jax.config import MaskDecoderConfig
from sam_jax.models.layers import LayerNorm, Mlp, SubpixelConv, gelu
from sam_jax.models.prompt_encoder import PromptEmbeddings
from sam_jax.models.two_way_transformer import TwoWayTransformer
from sam_jax.structs import MaskPredictions

_normal = nn.initializers.normal(stddev=1.0)


class MaskDecoder(nn.Module):
    """Predicts one mask per mask token: the single-mask token first, then those for ambiguous prompts."""

    config: MaskDecoderConfig
    dim: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image_embeddings: jax.Array, image_pe: jax.Array, prompts: PromptEmbeddings) -> MaskPredictions:
        """Args: image_embeddings (B, h, w, C); image_pe (h, w, C). Returns all 1 + num_multimask_outputs masks."""
        c = self.config
        h, w = image_embeddings.shape[1:3]
        iou_token = self.param("iou_token", _normal, (1, self.dim))
        mask_tokens = self.param("mask_tokens", _normal, (c.num_mask_tokens, self.dim))
        tokens, valid = _join(jnp.concatenate([iou_token, mask_tokens]), prompts)
        pixels = (image_embeddings[:, None] + prompts.dense).astype(self.dtype)
        tokens, pixels = TwoWayTransformer(c, self.dim, self.dtype, name="transformer")(
            tokens.astype(self.dtype),
            rearrange(pixels, "b n h w c -> b n (h w) c"),
            rearrange(image_pe, "h w c -> 1 1 (h w) c").astype(self.dtype),
            valid,
        )
        masks = self._masks(tokens[:, :, 1 : 1 + c.num_mask_tokens], pixels)
        head = Mlp(c.iou_head_hidden_dim, c.num_mask_tokens, c.iou_head_depth, self.dtype, name="iou_prediction_head")
        interleave = "b n (h w) (a b1) (c d) m -> b n m (h a c) (w b1 d)"
        masks = rearrange(masks, interleave, h=h, w=w, a=2, c=2)
        return MaskPredictions(masks.astype(jnp.float32), head(tokens[:, :, 0]).astype(jnp.float32))

    def _masks(self, tokens: jax.Array, pixels: jax.Array) -> jax.Array:
        """Mask tokens (B, N, M, C) and pixels (B, N, S, C) -> (B, N, S, 4, 4, M) logits, 4x4 sub-pixels per pixel.

        Sub-pixels are interleaved only after the product with the hypernetworks, when M channels are left of C / 8.
        """
        x = SubpixelConv(self.dim // 4, self.dtype, name="output_upscaling_0")(pixels)
        x = gelu(LayerNorm(epsilon=1e-6, dtype=self.dtype, name="output_upscaling_1")(x))
        x = gelu(SubpixelConv(self.dim // 8, self.dtype, name="output_upscaling_3")(x))
        hypernetworks = [
            Mlp(self.dim, self.dim // 8, 3, self.dtype, name=f"output_hypernetworks_mlps_{i}")(tokens[:, :, i])
            for i in range(self.config.num_mask_tokens)
        ]
        return jnp.einsum("bnsxyc,bnmc->bnsxym", x, jnp.stack(hypernetworks, axis=2))


def _join(output_tokens: jax.Array, prompts: PromptEmbeddings) -> tuple[jax.Array, jax.Array]:
    """Output tokens in front of the prompt tokens of every prompt, with flags for those that count."""
    batch = prompts.sparse.shape[:2]
    output_tokens = jnp.broadcast_to(output_tokens, (*batch, *output_tokens.shape))
    always = jnp.ones(output_tokens.shape[:3], bool)
    tokens = jnp.concatenate([output_tokens, prompts.sparse], axis=2)
    return tokens, jnp.concatenate([always, prompts.sparse_valid], axis=2)
