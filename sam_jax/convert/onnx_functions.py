"""What an exported encoder and decoder compute, as functions of arrays, with the inputs of SAM's official ONNX export.

Source of names and meaning: official `segment_anything/utils/onnx.py` and `scripts/export_onnx_model.py`. What our
models have beyond the official ones are further inputs: `image_details` and `input_image`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp

from sam_jax.config import SamConfig
from sam_jax.models.prompt_encoder import BOTTOM_RIGHT, TOP_LEFT
from sam_jax.models.sam import Sam
from sam_jax.ops.crf import box_limits, crf_pixels, refine_masks
from sam_jax.ops.planes import join_subpixels
from sam_jax.ops.transforms import normalize_batch
from sam_jax.structs import Prompts

# Official: a single mask is the first where there are three points or more, and the best of the others for fewer. A
# point that only fills a slot (label -1) counts, as it does there.
_FEW_POINTS, _MUCH = 2.5, 1000.0


class GraphFunction(NamedTuple):
    """A function of arrays, what its arrays are called, and which they are.

    Attributes:
      call: takes the arrays of `inputs`, returns those of `outputs`.
      inputs: name -> shape and dtype. outputs: names.
    """

    call: Callable[..., tuple[jax.Array, ...]]
    inputs: dict[str, jax.ShapeDtypeStruct]
    outputs: tuple[str, ...]


def encoder_function(model: Sam, variables: Any) -> GraphFunction:
    """An image in the input frame -> its embedding.

    Inputs: input_image (1, S, S, 3) uint8, input_size (2,) int32. Outputs: image_embeddings (1, C, h, w) and, of models
    that have them, image_details (1, D, h, w).
    """
    config = model.config

    def call(input_image: jax.Array, input_size: jax.Array) -> tuple[jax.Array, ...]:
        images = normalize_batch(input_image, input_size[None], config.pixel_mean, config.pixel_std)
        encoded: Any = model.apply(variables, images, method="encode_image")
        encoded = encoded.transpose(0, 3, 1, 2)
        c = config.prompt_embed_dim
        return (encoded[:, :c], encoded[:, c:]) if has_details(config) else (encoded,)

    outputs = ("image_embeddings", *["image_details"] * has_details(config))
    return GraphFunction(call, _image_inputs(config), outputs)


def decoder_function(model: Sam, variables: Any, points: int, return_single_mask: bool) -> GraphFunction:
    """Prompts -> masks on the decoder's grid.

    Inputs: as the official decoder's but for orig_im_size; then image_details (1, D, h, w) of models that have them,
    and input_image and input_size, as the encoder's, of models with edge refinement. Outputs: iou_predictions (1, M),
    low_res_masks (1, M, l, l) and, refined at edges, refined_masks (1, M, 2l, 2l).
    """
    config = model.config
    grid = config.image_encoder.grid_size
    c, low = config.prompt_embed_dim, 4 * config.image_encoder.grid_size
    shapes = {
        "image_embeddings": (1, c, grid, grid),
        "point_coords": (1, points, 2),
        "point_labels": (1, points),
        "mask_input": (1, 1, low, low),
        "has_mask_input": (1,),
    }
    if has_details(config):
        shapes["image_details"] = (1, config.embedding_channels - c, grid, grid)
    inputs = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    inputs |= _image_inputs(config) if config.crf else {}

    def call(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        given = dict(zip(inputs, arrays, strict=True))
        predicted: Any = model.apply(variables, given, method=partial(_predict, (grid, grid)))
        low_res, iou = predicted
        if return_single_mask:
            low_res, iou = _chosen(low_res, iou, given["point_labels"])
        if not config.crf:
            return iou, low_res
        size, patch = given["input_size"], config.image_encoder.patch_size
        images = normalize_batch(given["input_image"], size[None], config.pixel_mean, config.pixel_std)
        refined = refine_masks(low_res, crf_pixels(images[0], size, patch), _limits(given), patch)
        return iou, low_res, refined

    return GraphFunction(call, inputs, ("iou_predictions", "low_res_masks", *["refined_masks"] * config.crf))


def has_details(config: SamConfig) -> bool:
    """Whether an image's embedding carries more than the official model's: details, or HQ-SAM's fine features."""
    return config.embedding_channels > config.prompt_embed_dim


@contextlib.contextmanager
def portable_forms() -> Iterator[None]:
    """While tracing for another runtime: of operations with a form for each platform that for any, and no loops.

    Programs for XLA must not be traced meanwhile, in no thread of the process: they would be slower.
    """

    def any_platform(*operands: Any, default: Callable[..., Any], **_: Any) -> Any:
        return default(*operands)

    def unrolled(lower: int, upper: int, body: Callable[[int, Any], Any], state: Any) -> Any:
        for number in range(lower, upper):
            state = body(number, state)
        return state

    with mock.patch.multiple(jax.lax, platform_dependent=any_platform, fori_loop=unrolled):
        yield


def _image_inputs(config: SamConfig) -> dict[str, jax.ShapeDtypeStruct]:
    image = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.uint8)
    return {"input_image": image, "input_size": jax.ShapeDtypeStruct((2,), jnp.int32)}


def _predict(grid: tuple[int, int], sam: Sam, given: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """All masks of the one prompt: (1, M, l, l) and (1, M).

    A point with label -1 is the token "not a point", each of them, as in the official export; `Prompts` would have it
    that such a point is absent, and add the token itself.
    """
    side = sam.config.image_size
    labels = given["point_labels"][:, None].astype(jnp.int32)
    prompts = Prompts(mask_inputs=given["mask_input"], mask_valid=given["has_mask_input"][None] > 0)
    embedded = sam.prompt_encoder(prompts, grid, (side, side))
    tokens = sam.prompt_encoder.embed_points(given["point_coords"][:, None], labels, (side, side))
    tokens = jnp.where((labels < 0)[..., None], sam.prompt_encoder.not_a_point_embed, tokens)
    embedded = embedded._replace(sparse=tokens, sparse_valid=labels >= -1)
    # Channels come first, as the decoder has them.
    cells = grid[0] * grid[1]
    pixels, rest = given["image_embeddings"].reshape(1, 1, -1, cells), given.get("image_details")
    rest = None if rest is None else rest.reshape(1, 1, -1, cells)
    image_pe = sam.prompt_encoder.dense_pe(grid).reshape(1, 1, cells, -1).swapaxes(2, 3)
    planes, iou = sam.mask_decoder(sam.mask_decoder.prepare(pixels, rest, image_pe, grid), embedded)
    return join_subpixels(planes, grid)[:, 0], iou[:, 0]


def _chosen(low_res: jax.Array, iou: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The one mask of (1, M, l, l), and its predicted IoU of (1, M), that the official export chooses."""
    count = (labels * 0 + 1).sum(axis=1, keepdims=True)
    first = jnp.arange(iou.shape[1]) == 0
    best = jnp.argmax(iou + jnp.where(first, (count - _FEW_POINTS) * _MUCH, 0.0), axis=1)
    picked = (jnp.arange(iou.shape[1]) == best[:, None])[..., None, None]
    low_res = jnp.where(picked, low_res, 0.0).sum(axis=1, keepdims=True)
    return low_res, jnp.where(picked[..., 0, 0], iou, 0.0).sum(axis=1, keepdims=True)


def _limits(given: dict[str, jax.Array]) -> jax.Array:
    """Where the masks may reach, see `box_limits`: (1, 4)."""
    coords, labels = given["point_coords"], given["point_labels"]

    def corner(label: int) -> jax.Array:
        return jnp.where((labels == label)[..., None], coords, 0.0).sum(axis=1)

    boxes = jnp.concatenate([corner(TOP_LEFT), corner(BOTTOM_RIGHT)], axis=-1)
    has_box = (labels >= TOP_LEFT).sum(axis=1) > 0
    return box_limits(Prompts(point_coords=coords, point_labels=labels, boxes=boxes, box_valid=has_box))
