"""The whole model: encode an image once, decode any number of prompts."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from sam_jax.config import HqMaskDecoderConfig, MaskDecoderConfig, SamConfig, TinyVitConfig
from sam_jax.models.hq_mask_decoder import HqFeatures, HqMaskDecoder
from sam_jax.models.image_encoder import HqImageEncoder, ImageEncoder
from sam_jax.models.layers import KERNEL_SCALE
from sam_jax.models.mask_decoder import MaskDecoder, PreparedEmbeddings
from sam_jax.models.prompt_encoder import PromptEncoder
from sam_jax.models.tiny_vit import HqTinyVit, TinyVit
from sam_jax.ops.int8_mlp import quantize
from sam_jax.ops.planes import join_subpixels
from sam_jax.structs import MaskPredictions, Prompts


class Sam(nn.Module):
    """Segment Anything (Kirillov et al. 2023).

    Methods are pure functions of `variables`, with the collections `params` (trained) and `constants` (the random
    matrix of the positional encoding; batch statistics of a TinyViT). Call as
    `model.apply(variables, ..., method="encode_image")`.
    """

    config: SamConfig

    def setup(self) -> None:
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        self.image_encoder = _image_encoder(c, dtype)
        self.prompt_encoder = PromptEncoder(c.prompt_encoder, c.prompt_embed_dim, dtype, c.text_embed_dim)
        self.mask_decoder = _mask_decoder(c.mask_decoder, c.prompt_embed_dim, dtype)
        if c.is_hq:
            self.hq_features = HqFeatures(c.prompt_embed_dim, dtype)

    def encode_image(self, images: jax.Array, deterministic: bool = True) -> jax.Array:
        """Preprocessed images -> image embeddings.

        Args:
          images: (B, H, W, 3) float, from `ops.transforms.normalize_batch`: normalised, then zero-padded.
          deterministic: False in training: drop path, drawn from the rng stream "drop_path".

        Returns:
          (B, h, w, C) float32, with C = `config.embedding_channels`.
        """
        encoded = self.image_encoder(images, deterministic)
        return self.hq_features(encoded) if self.config.is_hq else encoded

    def prepare_embeddings(self, image_embeddings: jax.Array) -> PreparedEmbeddings:
        """What the mask decoder makes of image embeddings (B, h, w, C) whatever the prompts are.

        The methods below take either. Prepared once, an image's prompts are decoded faster: by a third of a single
        prompt's time on CPUs.
        """
        _, h, w, _ = image_embeddings.shape
        planes = rearrange(image_embeddings, "b h w c -> b 1 c (h w)")
        c = self.config.prompt_embed_dim
        rest = planes[:, :, c:] if planes.shape[2] > c else None
        image_pe = rearrange(self.prompt_encoder.dense_pe((h, w)), "h w c -> 1 1 c (h w)")
        return self.mask_decoder.prepare(planes[:, :, :c], rest, image_pe, (h, w))

    def predict_masks(
        self, image_embeddings: jax.Array | PreparedEmbeddings, prompts: Prompts, masks: slice = slice(None)
    ) -> MaskPredictions:
        """Masks of N prompts per image: the single mask first, then the num_multimask_outputs for ambiguous prompts.

        HQ-SAM has two masks (`HqMaskDecoderConfig.num_masks`).

        Args:
          image_embeddings: (B, h, w, C) from `encode_image`.
          prompts: in pixels of the input frame (H, W) = patch_size * (h, w).
          masks: selects M of the masks.
        """
        embeddings = self._prepared(image_embeddings)
        planes, iou_predictions = self.predict_planes(embeddings, prompts, masks=masks)
        return MaskPredictions(join_subpixels(planes, embeddings.grid), iou_predictions)

    def predict_planes(
        self,
        image_embeddings: jax.Array | PreparedEmbeddings,
        prompts: Prompts,
        mask_planes: jax.Array | None = None,
        masks: slice = slice(None),
        deterministic: bool = True,
        least_iou: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """`predict_masks` with masks as planes, the decoder's own layout, so that training never transposes pixels.

        Args:
          mask_planes: (B, N, 16, h*w) mask inputs as planes (`planes.split_subpixels`), instead of `mask_inputs`.
          deterministic: False in training: dropout in the decoder, drawn from the rng stream "dropout".
          least_iou: () float32; prompts without a predicted IoU above it get zeros, which is cheap; see `MaskDecoder`.

        Returns:
          Logits (B, N, M, 16, h*w) float32 and IoU predictions (B, N, M) float32.
        """
        embeddings = self._prepared(image_embeddings)
        (h, w), patch = embeddings.grid, self.config.image_encoder.patch_size
        embedded = self.prompt_encoder(prompts, (h, w), (h * patch, w * patch), mask_planes)
        return self.mask_decoder(embeddings, embedded, masks, deterministic, least_iou)

    def _prepared(self, image_embeddings: jax.Array | PreparedEmbeddings) -> PreparedEmbeddings:
        if isinstance(image_embeddings, PreparedEmbeddings):
            return image_embeddings
        return self.prepare_embeddings(image_embeddings)

    def decode_masks(
        self, image_embeddings: jax.Array | PreparedEmbeddings, prompts: Prompts, multimask_output: bool
    ) -> MaskPredictions:
        """Masks for N prompts of each image.

        Args:
          image_embeddings: (B, h, w, C) from `encode_image`.
          prompts: N prompts per image, in pixels of the input frame (H, W) = patch_size * (h, w).
          multimask_output: True returns the masks for ambiguous prompts (M = 3; with HQ-SAM the best, M = 1), False the
            single mask (M = 1), which is better for prompts with several points or a box.
        """
        return self.predict_masks(image_embeddings, prompts, slice(1, None) if multimask_output else slice(0, 1))

    def __call__(self, images: jax.Array, prompts: Prompts, multimask_output: bool = True) -> MaskPredictions:
        """`encode_image`, then `decode_masks`."""
        return self.decode_masks(self.encode_image(images), prompts, multimask_output)


def _image_encoder(config: SamConfig, dtype: jnp.dtype) -> ImageEncoder | TinyVit:
    encoder, channels = config.image_encoder, config.prompt_embed_dim
    if isinstance(encoder, TinyVitConfig):
        return (HqTinyVit if config.is_hq else TinyVit)(encoder, channels, dtype)
    return (HqImageEncoder if config.is_hq else ImageEncoder)(encoder, channels, dtype, config.details)


def _mask_decoder(config: MaskDecoderConfig, dim: int, dtype: jnp.dtype) -> MaskDecoder | HqMaskDecoder:
    if isinstance(config, HqMaskDecoderConfig):
        return HqMaskDecoder(config, dim, dtype)
    return MaskDecoder(config, dim, dtype)


def init_variables(model: Sam, rng: jax.Array) -> dict[str, Any]:
    """Newly initialised float32 variables of `model`, from the smallest input that creates every parameter."""
    patch = model.config.image_encoder.patch_size
    prompts = Prompts(boxes=jnp.zeros((1, 1, 4)))
    variables: Any = jax.jit(model.init)(rng, jnp.zeros((1, patch, patch, 3)), prompts)
    return variables


def inference_variables(config: SamConfig, variables: dict[str, Any]) -> dict[str, Any]:
    """Variables that take less memory and give the same results: image encoder kernels in the compute dtype.

    Each layer casts its kernel to the compute dtype before multiplying, so with bfloat16 kernels can be stored that
    way; normalisation, biases and tables stay float32. With `int8_mlp` the kernels of MLPs are stored as 8-bit integers
    and scales. With float32 the variables are returned unchanged, as are kernels that are already converted.
    """
    dtype, int8 = jnp.dtype(config.dtype), not config.is_mobile and config.vit.int8_mlp
    if dtype == jnp.float32 and not int8:
        return variables
    leaves = {}
    for path, leaf in flatten_dict(variables).items():
        if path[:2] != ("params", "image_encoder") or path[-1] != "kernel" or leaf.dtype == jnp.int8:
            leaves[path] = leaf
        elif int8 and path[3] == "mlp":
            leaves[path], leaves[(*path[:-1], KERNEL_SCALE)] = quantize(leaf, 0)
        else:
            leaves[path] = leaf.astype(dtype)
    return unflatten_dict(leaves)
