"""The model against the live official PyTorch code: `pytest -m oracle`; ViT-L and ViT-H with `-m "oracle or slow"`.

Needs the `oracle` extra. The weights are random, so that no download is needed and every parameter matters.
"""

import dataclasses
import functools
import gc
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from PIL import Image

from sam_jax.config import (
    ImageEncoderConfig,
    MaskDecoderConfig,
    SamConfig,
    TinyVitConfig,
    mobile_sam,
    vit_b,
    vit_h,
    vit_l,
)
from sam_jax.convert.torch_to_flax import from_state_dict, to_variables
from sam_jax.models.layers import resize_pos_embed, resize_rel_pos
from sam_jax.models.sam import Sam
from sam_jax.ops import transforms
from sam_jax.ops.attention import relative_positions
from sam_jax.ops.masks import postprocess_masks
from sam_jax.structs import Prompts
from tests.tiny import TINY, as_hq

pytestmark = [pytest.mark.oracle, pytest.mark.usefixtures("all_optimisations")]

# Three heads of 16, windows of 5 on a grid of 14, decoder heads of another number.
ODD = SamConfig(
    image_encoder=ImageEncoderConfig(
        image_size=224, embed_dim=48, depth=3, num_heads=3, window_size=5, global_attn_indexes=(1,)
    ),
    mask_decoder=MaskDecoderConfig(num_heads=4, mlp_dim=64),
    prompt_embed_dim=64,
)
# Windows that do not divide the grids of 40, 20 and 10 cells, and as large as one of them.
ODD_MOBILE = SamConfig(
    image_encoder=TinyVitConfig(
        image_size=160,
        widths=(16, 24, 36, 320),
        depths=(1, 2, 2, 1),
        num_heads=(2, 3, 5),
        window_sizes=(7, 4, 10),
        mlp_ratio=3.0,
        expand_ratio=2.0,
    ),
    mask_decoder=MaskDecoderConfig(mlp_dim=64),
)
FAMILIES = {
    "odd_mobile": ODD_MOBILE,
    "mobile_sam": mobile_sam(),
    "hq": as_hq(ODD),
    "hq_token_only": as_hq(ODD, hq_token_only=True),
    "hq_mobile": as_hq(ODD_MOBILE),
}
CONFIGS = FAMILIES | {"tiny": TINY, "odd": ODD, "vit_b": vit_b(), "vit_l": vit_l(), "vit_h": vit_h()}
# (h, w) of the images at a native size of 1024: square, wide, tall, smaller than the frame. Others scale with theirs.
IMAGES = {"square": (1200, 1200), "wide": (700, 1500), "tall": (1500, 1001), "small": (333, 480)}
KINDS = ("one_point", "three_points", "box", "box_negative", "refined_point")


def make_image(name, side):
    """Something like an image (h, w, 3) uint8: smooth colours, hard edges and grain."""
    rng, (h, w) = np.random.default_rng(len(name)), (length * side // 1024 for length in IMAGES[name])
    smooth = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize((w, h), Image.Resampling.BICUBIC)
    hard = Image.fromarray(rng.integers(0, 80, (5, 7, 3), np.uint8)).resize((w, h), Image.Resampling.NEAREST)
    image = np.asarray(smooth) * 0.6 + np.asarray(hard) + rng.integers(0, 20, (h, w, 3))
    return np.clip(image, 0, 255).astype(np.uint8)


class Encoded(NamedTuple):
    """An image's sizes, and its image embeddings from both sides: (1, h, w, C), and `encode_official`'s."""

    original_size: tuple[int, int]
    input_size: tuple[int, int]
    ours: np.ndarray
    official: Any


class Pair:
    """An official model and its conversion."""

    def __init__(self, config):
        from tests.oracle import build_official, encode_official

        self.config = config
        self.official = build_official(config)
        self.variables = from_state_dict(dict(self.official.state_dict()), config.mask_decoder.num_heads)[1]
        self._encode_official = encode_official
        self.encoded = functools.cache(lambda name: self._encode(make_image(name, config.image_size)))

    @functools.cached_property
    def apply(self):
        model = Sam(self.config)
        return jax.jit(lambda *args: model.apply(*args, method="predict_masks"))

    def _encode(self, image):
        import torch

        side = self.config.image_size
        resized = transforms.resize_longest_side(image, side)
        size = resized.shape[:2]
        padded = transforms.pad_to_square(resized, side)[None]
        images = transforms.normalize_batch(padded, np.array([size]), self.config.pixel_mean, self.config.pixel_std)
        ours = self._encoder(self.variables, images)
        with torch.no_grad():
            planes = torch.from_numpy(resized.copy()).permute(2, 0, 1)[None]
            official = self._encode_official(self.official.image_encoder, self.official.preprocess(planes))
        return Encoded(image.shape[:2], size, np.asarray(ours), official)

    def decode_official(self, encoded, prompts, multimask):
        return official_decode(
            self.official,
            encoded.official,
            prompts,
            multimask,
            getattr(self.config.mask_decoder, "hq_token_only", False),
        )

    @functools.cached_property
    def _encoder(self):
        model = Sam(self.config)
        return jax.jit(lambda variables, images: model.apply(variables, images, method="encode_image"))


def slow(name):
    return pytest.param(name, marks=pytest.mark.slow)


PUBLISHED = ["vit_b", slow("vit_l"), slow("vit_h")]
SLOW = ("odd_mobile", "hq_mobile", "vit_l", "vit_h")
LARGE = ("mobile_sam", "vit_b")  # an image takes seconds on both sides
CASES = [
    pytest.param(
        config, name, marks=[pytest.mark.slow] * (config in SLOW or (config in LARGE and name in ("tall", "small")))
    )
    for config in ("tiny", "odd", *FAMILIES, "vit_b", "vit_l", "vit_h")
    for name in IMAGES
]


@pytest.fixture(scope="module")
def pair(request):
    yield Pair(CONFIGS[request.param])
    gc.collect()
    jax.clear_caches()


def official_decode(official, encoded, prompts, multimask, hq_token_only=False):
    """low_res_masks (N, M, 4h, 4w) and iou_predictions (N, M) of the official code; prompts without the image axis."""
    import torch

    given = {name: torch.from_numpy(value) for name, value in prompts.items()}
    points = (given["point_coords"], given["point_labels"]) if "point_coords" in given else None
    masks = given["mask_inputs"][:, None] if "mask_inputs" in given else None
    with torch.no_grad():
        sparse, dense = official.prompt_encoder(points, given.get("boxes"), masks)
        pe = official.prompt_encoder.get_dense_pe()
        embeddings, early = encoded
        rest = (hq_token_only, early[None]) if hasattr(official.mask_decoder, "hf_token") else ()
        outputs = official.mask_decoder(embeddings, pe, sparse, dense, multimask, *rest)
    return tuple(output.numpy() for output in outputs)


def make_prompts(pair, encoded, kind):
    """Two prompts of a kind inside an image, in the input frame, without the image axis."""
    h, w = encoded.input_size
    rng = np.random.default_rng(0)
    points = (rng.random((2, 3, 2)) * (w, h)).astype(np.float32)
    boxes = np.sort(rng.random((2, 2, 2)) * (w, h), axis=1).reshape(2, 4).astype(np.float32)
    one_point = {"point_coords": points[:, :1], "point_labels": np.ones((2, 1), int)}
    if kind == "one_point":
        return one_point
    if kind == "three_points":
        return {"point_coords": points, "point_labels": np.array([[1, 0, 1], [0, 1, 1]])}
    if kind == "box":
        return {"boxes": boxes}
    if kind == "box_negative":
        return {"boxes": boxes, "point_coords": points[:, 1:2], "point_labels": np.zeros((2, 1), int)}
    masks, ious = pair.decode_official(encoded, one_point, True)
    return one_point | {"mask_inputs": masks[np.arange(2), ious.argmax(axis=1)]}


@pytest.mark.parametrize(("pair", "name"), CASES, indirect=["pair"], scope="module")
def test_image_embeddings(pair, name):
    encoded = pair.encoded(name)
    ours = encoded.ours[..., : pair.config.prompt_embed_dim]  # HQ-SAM's carry more
    np.testing.assert_allclose(ours, encoded.official[0].permute(0, 2, 3, 1).numpy(), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("pair", "name"), CASES, indirect=["pair"], scope="module")
@pytest.mark.parametrize("kind", KINDS)
def test_masks_and_scores(pair, name, kind):
    """End to end: each side decodes its own embeddings. The masks are compared as logits and at the image's size."""
    import torch

    encoded = pair.encoded(name)
    prompts = make_prompts(pair, encoded, kind)
    ours = pair.apply(pair.variables, encoded.ours, Prompts(**{key: value[None] for key, value in prompts.items()}))
    frame = (pair.config.image_size,) * 2
    for multimask, wanted in ((True, slice(1, None)), (False, slice(0, 1))):
        masks, ious = pair.decode_official(encoded, prompts, multimask)
        low_res, iou_predictions = (np.asarray(x)[0][:, wanted] for x in (ours.low_res_masks, ours.iou_predictions))
        np.testing.assert_allclose(low_res, masks, rtol=0, atol=1e-3)
        np.testing.assert_allclose(iou_predictions, ious, rtol=0, atol=1e-4)
        logits = pair.official.postprocess_masks(torch.from_numpy(masks), encoded.input_size, encoded.original_size)
        binary = np.asarray(postprocess_masks(low_res, encoded.input_size, encoded.original_size, frame)) > 0
        clear = np.abs(logits.numpy()) > 1e-3
        np.testing.assert_array_equal(binary[clear], (logits.numpy() > 0)[clear])
        assert clear.mean() > 0.9


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pair", PUBLISHED, indirect=True, scope="module")  # the kernels do not take smaller decoders
def test_masks_with_the_decoders_kernels(pair, kind):
    """The TPU kernels, interpreted, on the wide image."""
    encoded = pair.encoded("wide")
    prompts = make_prompts(pair, encoded, kind)
    decoder = dataclasses.replace(pair.config.mask_decoder, kernels="pallas")
    model = Sam(dataclasses.replace(pair.config, mask_decoder=decoder))
    given = Prompts(**{key: value[None] for key, value in prompts.items()})
    run = jax.jit(functools.partial(model.apply, method="predict_masks"))
    ours = run(pair.variables, encoded.ours, given)
    masks, ious = pair.decode_official(encoded, prompts, True)
    np.testing.assert_allclose(ours.low_res_masks[0, :, 1:], masks, rtol=0, atol=1e-3)
    np.testing.assert_allclose(ours.iou_predictions[0, :, 1:], ious, rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def wide():
    """The tiny pair on a frame of 64x112, for which the official code wants a position table of that size."""
    import torch

    from tests.golden.make_goldens import resize_pos_embed as resize_official
    from tests.oracle import build_official

    official = build_official(TINY)
    variables = to_variables(TINY, dict(official.state_dict()))
    resize_official(official, (4, 7))
    encoder = official.prompt_encoder
    encoder.image_embedding_size, encoder.input_image_size = (4, 7), (64, 112)
    images = np.random.default_rng(0).standard_normal((1, 64, 112, 3)).astype(np.float32)
    with torch.no_grad():
        embeddings = official.image_encoder(torch.from_numpy(images).permute(0, 3, 1, 2))
    return official, variables, images, (embeddings, None)


@pytest.mark.parametrize("kind", ["point", "box", "mask"])
def test_frames_that_are_not_square(wide, kind):
    official, variables, images, embeddings = wide
    rng = np.random.default_rng(1)
    prompts = {
        "point": {"point_coords": np.array([[[100, 20]]], np.float32), "point_labels": np.ones((1, 1), int)},
        "box": {"boxes": np.array([[5, 10, 110, 60]], np.float32)},
        "mask": {"mask_inputs": 3 * rng.standard_normal((1, 16, 28)).astype(np.float32)},
    }[kind]
    ours = Sam(TINY).apply(variables, images, Prompts(**{key: value[None] for key, value in prompts.items()}))

    masks, ious = official_decode(official, embeddings, prompts, True)
    np.testing.assert_allclose(ours.low_res_masks[0], masks, rtol=0, atol=1e-4)
    np.testing.assert_allclose(ours.iou_predictions[0], ious, rtol=0, atol=1e-5)


@pytest.mark.parametrize("grid", [(5, 9), (3, 4), (14, 14), (9, 2)])
def test_position_tables_of_other_sizes(grid):
    import torch
    from segment_anything.modeling.image_encoder import get_rel_pos

    rng = np.random.default_rng(0)
    table = rng.standard_normal((1, 5, 5, 8)).astype(np.float32)
    planes = torch.from_numpy(table).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(planes, grid, mode="bicubic", align_corners=False)
    np.testing.assert_allclose(resize_pos_embed(table, grid), expected.permute(0, 2, 3, 1), atol=1e-5)
    rel_pos = rng.standard_normal((9, 8)).astype(np.float32)
    for side in grid:
        expected = get_rel_pos(side, side, torch.from_numpy(rel_pos))
        np.testing.assert_allclose(relative_positions(resize_rel_pos(rel_pos, side)), expected, atol=1e-5)
