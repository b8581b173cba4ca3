"""The prompt encoder: points, boxes and texts become tokens, masks become an image-shaped embedding.

Source: official `modeling/prompt_encoder.py`; SAM paper, section 3 and appendix A; for texts appendix D.6.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from sam_jax.config import PromptEncoderConfig
from sam_jax.models.layers import Linear
from sam_jax.models.planes import PlaneNorm, PlanePatchConv
from sam_jax.ops.gelu import gelu
from sam_jax.ops.planes import split_subpixels
from sam_jax.ops.products import matmul
from sam_jax.structs import Prompts

# Rows of the point table; box corners are points with labels of their own.
TOP_LEFT, BOTTOM_RIGHT = 2, 3
_normal = nn.initializers.normal(stddev=1.0)


class PromptEmbeddings(NamedTuple):
    """sparse: (B, N, T, C); sparse_valid: (B, N, T) bool; dense: (B, N or 1, C, h*w), 1 if all prompts share it."""

    sparse: jax.Array
    sparse_valid: jax.Array
    dense: jax.Array


class PositionEmbeddingRandom(nn.Module):
    """Random Fourier features (Tancik et al. 2020). The matrix is a constant, never trained or decayed."""

    num_pos_feats: int

    def setup(self) -> None:
        self.matrix = self.variable("constants", "positional_encoding_gaussian_matrix", self._sample_matrix)

    def _sample_matrix(self) -> jax.Array:
        return jax.random.normal(self.make_rng("params"), (2, self.num_pos_feats))

    def __call__(self, coords: jax.Array) -> jax.Array:
        """(..., 2) float32 (x, y) in [0, 1] -> (..., 2 * num_pos_feats) float32."""
        angles = 2 * jnp.pi * matmul(2 * coords - 1, self.matrix.value)
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)

    def grid(self, size: tuple[int, int]) -> jax.Array:
        """Encoding of the centres of an h x w grid: (h, w, 2 * num_pos_feats) float32."""
        h, w = size
        y, x = (jnp.arange(h) + 0.5) / h, (jnp.arange(w) + 0.5) / w
        return self(jnp.stack(jnp.broadcast_arrays(x[None, :], y[:, None]), axis=-1))


class PromptEncoder(nn.Module):
    """Embeds points, boxes, masks and any combination of them; with `text_embed_dim`, texts as well."""

    config: PromptEncoderConfig
    embed_dim: int
    dtype: jnp.dtype = jnp.float32
    text_embed_dim: int = 0

    def setup(self) -> None:
        row = (1, self.embed_dim)
        self.pe_layer = PositionEmbeddingRandom(self.embed_dim // 2)
        self.point_embeddings = [self.param(f"point_embeddings_{i}", _normal, row) for i in range(4)]
        self.not_a_point_embed = self.param("not_a_point_embed", _normal, row)
        self.no_mask_embed = self.param("no_mask_embed", _normal, row)
        chans = self.config.mask_in_chans
        self.mask_downscaling_0 = PlanePatchConv(1, chans // 4, 2, groups=4, centred=True, dtype=self.dtype)
        self.mask_downscaling_1 = PlaneNorm(chans // 4, 1e-6, centred=True, dtype=self.dtype)
        self.mask_downscaling_3 = PlanePatchConv(chans // 4, chans, 2, centred=True, dtype=self.dtype)
        self.mask_downscaling_4 = PlaneNorm(chans, 1e-6, centred=True, dtype=self.dtype)
        self.mask_downscaling_6 = PlanePatchConv(chans, self.embed_dim, 1, dtype=self.dtype)
        if self.text_embed_dim:
            self.text_projection = Linear(self.text_embed_dim, self.embed_dim)

    def dense_pe(self, grid: tuple[int, int]) -> jax.Array:
        """(h, w, C) float32 positional encoding of the image embedding: `image_pe` of the mask decoder."""
        return self.pe_layer.grid(grid)

    def __call__(
        self,
        prompts: Prompts,
        grid: tuple[int, int],
        input_size: tuple[int, int],
        mask_planes: jax.Array | None = None,
    ) -> PromptEmbeddings:
        """Embeds prompts.

        Args:
          prompts: in pixels of the input frame.
          grid: (h, w) of the image embedding.
          input_size: (H, W) of the input frame, pixels.
          mask_planes: (B, N, 16, h*w), mask inputs already split into planes, instead of `prompts.mask_inputs`.

        Raises:
          ValueError: prompts are empty, have only one of point_coords and point_labels, or mask_inputs of another size.
        """
        if prompts.mask_inputs is not None:
            mask_planes = split_subpixels(_checked_masks(prompts.mask_inputs, grid))
        batch = prompt_shape(prompts)
        parts = [*self._points(prompts, input_size), *self._boxes(prompts, batch, input_size)]
        if len(parts) == 3:
            parts = [parts[0], *_in_two_slots(*parts[1:])]
        parts += self._texts(prompts, batch)
        sparse = [tokens for tokens, _ in parts] or [jnp.zeros((*batch, 0, self.embed_dim))]
        valid = [flags for _, flags in parts] or [jnp.zeros((*batch, 0), bool)]
        return PromptEmbeddings(
            jnp.concatenate(sparse, axis=2),
            jnp.concatenate(valid, axis=2),
            self._dense(mask_planes, prompts.mask_valid, batch, grid),
        )

    def embed_points(self, coords: jax.Array, labels: jax.Array, input_size: tuple[int, int]) -> jax.Array:
        """Positional encoding of pixel centres plus the embedding of the label (0..3)."""
        height, width = input_size
        unit = (coords.astype(jnp.float32) + 0.5) / jnp.asarray([width, height], jnp.float32)
        table = jnp.concatenate(self.point_embeddings)
        return self.pe_layer(unit) + table[jnp.maximum(labels, 0)]

    def _points(self, prompts: Prompts, input_size: tuple[int, int]) -> list[tuple[jax.Array, jax.Array]]:
        if prompts.point_coords is None and prompts.point_labels is None:
            return []
        if prompts.point_coords is None or prompts.point_labels is None:
            raise ValueError("point_coords and point_labels belong together; one of them is None")
        tokens = self.embed_points(prompts.point_coords, prompts.point_labels, input_size)
        present = prompts.point_labels >= 0
        # SAM adds one "not a point" token to points without a box, as padding in place of the box.
        alone = present.any(axis=-1, keepdims=True)
        if prompts.boxes is not None:
            has_box = jnp.ones_like(alone) if prompts.box_valid is None else prompts.box_valid[..., None]
            alone = alone & ~has_box
        padding = jnp.broadcast_to(self.not_a_point_embed, (*alone.shape, self.embed_dim))
        if prompts.boxes is not None and prompts.box_valid is None:
            return [(tokens, present)]
        return [(tokens, present), (padding, alone)]

    def _boxes(
        self, prompts: Prompts, batch: tuple[int, int], input_size: tuple[int, int]
    ) -> list[tuple[jax.Array, jax.Array]]:
        if prompts.boxes is None:
            return []
        corners = prompts.boxes.reshape(*batch, 2, 2)
        tokens = self.embed_points(corners, jnp.asarray([TOP_LEFT, BOTTOM_RIGHT]), input_size)
        present = jnp.ones(batch, bool) if prompts.box_valid is None else prompts.box_valid
        return [(tokens, jnp.broadcast_to(present[..., None], (*batch, 2)))]

    def _texts(self, prompts: Prompts, batch: tuple[int, int]) -> list[tuple[jax.Array, jax.Array]]:
        """One token of each text. Embeddings have length one; enlarged, their entries are of order one as others'."""
        texts, width = prompts.text_embeddings, self.text_embed_dim
        if texts is None and not (width and self.is_initializing()):
            return []
        if not width:
            raise ValueError(
                "this model has no text prompts (SamConfig.text_embed_dim is 0); take one trained with them"
            )
        texts = jnp.zeros((*batch, width)) if texts is None else texts
        if texts.shape[-1] != width:
            raise ValueError(f"text_embeddings are {texts.shape[-1]} wide; this model was trained with {width}")
        tokens = self.text_projection(texts.astype(jnp.float32) * width**0.5)
        valid = jnp.ones(batch, bool) if prompts.text_valid is None else prompts.text_valid
        return [(tokens[:, :, None], valid[..., None])]

    def _dense(
        self, planes: jax.Array | None, valid: jax.Array | None, batch: tuple[int, int], grid: tuple[int, int]
    ) -> jax.Array:
        h, w = grid
        absent = self.no_mask_embed.reshape(1, 1, -1, 1).astype(self.dtype)
        if planes is None:
            # All prompts share this embedding, so the decoder's first layers run once per image, not once per prompt.
            dense = jnp.broadcast_to(absent, (batch[0], 1, self.embed_dim, h * w))
            return dense if not self.is_initializing() else dense + 0 * self._downscale(jnp.zeros((1, 1, 16, h * w)))
        dense = self._downscale(planes)
        return dense if valid is None else jnp.where(valid[..., None, None], dense, absent)

    def _downscale(self, planes: jax.Array) -> jax.Array:
        """(B, N, 16, S) -> (B, N, C, S)."""
        x = rearrange(self.mask_downscaling_0(planes), "b n (u c) s -> b n u c s", u=4)
        x = rearrange(gelu(self.mask_downscaling_1(x)), "b n u c s -> b n (u c) s")
        x = gelu(self.mask_downscaling_4(self.mask_downscaling_3(x)))
        return self.mask_downscaling_6(x)


def _in_two_slots(
    missing: tuple[jax.Array, jax.Array], box: tuple[jax.Array, jax.Array]
) -> list[tuple[jax.Array, jax.Array]]:
    """Lets the "not a point" token and the first box corner share a slot: they are never both present.

    This saves a token, and brings the 17 of training down to 16, which fills a TPU's tiles.
    """
    (padding, alone), (corners, has_box) = missing, box
    first = jnp.where(has_box[..., :1, None], corners[:, :, :1], padding)
    return [(first, has_box[..., :1] | alone), (corners[:, :, 1:], has_box[..., 1:])]


def _checked_masks(masks: jax.Array, grid: tuple[int, int]) -> jax.Array:
    h, w = grid
    if masks.shape[2:] != (4 * h, 4 * w):
        raise ValueError(
            f"mask_inputs are {masks.shape[2]}x{masks.shape[3]}; this image embedding needs {4 * h}x{4 * w} logits "
            f"(four times its {h}x{w} grid)"
        )
    return masks


def prompt_shape(prompts: Prompts) -> tuple[int, int]:
    """(B, N), from any part that is given. Raises ValueError if all are None."""
    for part in (prompts.point_labels, prompts.boxes, prompts.mask_inputs, prompts.text_embeddings, prompts.valid):
        if part is not None:
            return part.shape[0], part.shape[1]
    raise ValueError("Prompts is empty; give points, boxes, masks or texts, or at least `valid` (B, N) for the counts")
