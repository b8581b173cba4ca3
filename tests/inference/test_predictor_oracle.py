"""Our predictor against the live official one, image in, masks out: `pytest -m oracle`; ViT-B `-m "oracle or slow"`."""

import gc
import inspect

import jax
import numpy as np
import pytest
from PIL import Image

from sam_jax.config import ImageEncoderConfig, MaskDecoderConfig, SamConfig, vit_b
from sam_jax.convert.torch_to_flax import to_variables
from sam_jax.inference.predictor import SamPredictor
from sam_jax.models.sam import Sam

pytestmark = pytest.mark.oracle

# A grid of 11 with windows of 4, three heads, decoder heads of another number.
ODD = SamConfig(
    image_encoder=ImageEncoderConfig(
        image_size=176, embed_dim=48, depth=3, num_heads=3, window_size=4, global_attn_indexes=(1,)
    ),
    mask_decoder=MaskDecoderConfig(num_heads=4, mlp_dim=64),
    prompt_embed_dim=64,
)
CONFIGS = {"odd": ODD, "vit_b": vit_b()}
# (h, w) for a frame of 1024; others scale with theirs. A sliver is one pixel wide, before and after resizing.
IMAGES = {"square": (1200, 1200), "wide": (700, 1500), "tall": (1500, 1001), "small": (333, 480), "sliver": (1500, 0)}
KINDS = ("nothing", "one_point", "three_points", "box", "box_negative", "refined_point", "mask_alone")


def make_image(name, side):
    """Something like an image (h, w, 3) uint8: smooth colours, hard edges and grain."""
    rng, (h, w) = np.random.default_rng(len(name)), (max(1, length * side // 1024) for length in IMAGES[name])
    smooth = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize((w, h), Image.Resampling.BICUBIC)
    hard = Image.fromarray(rng.integers(0, 80, (5, 7, 3), np.uint8)).resize((w, h), Image.Resampling.NEAREST)
    image = np.asarray(smooth) * 0.6 + np.asarray(hard) + rng.integers(0, 20, (h, w, 3))
    return np.clip(image, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module", params=["odd", pytest.param("vit_b", marks=pytest.mark.slow)])
def predictors(request):
    """Ours and the official one, of the same random weights."""
    from tests.oracle import build_official, build_predictor

    config = CONFIGS[request.param]
    official = build_official(config)
    ours = SamPredictor(Sam(config), to_variables(config, dict(official.state_dict())))
    yield ours, build_predictor(official)
    gc.collect()
    jax.clear_caches()


@pytest.fixture(scope="module", params=IMAGES)
def pair(request, predictors):
    """Both with the same image, and its (h, w)."""
    image = make_image(request.param, predictors[0].model.config.image_size)
    for predictor in predictors:
        predictor.set_image(image)
    return *predictors, image.shape[:2]


def make_prompt(ours, size, kind):
    """Arguments of `predict`, in the image's pixels and off the pixel grid."""
    h, w = size
    rng = np.random.default_rng(1)
    points = rng.random((3, 2)) * (w, h)
    box = np.array([0.2 * w, 0.1 * h, 0.7 * w, 0.9 * h])
    one_point = {"point_coords": points[:1], "point_labels": np.array([1])}
    if kind in ("refined_point", "mask_alone"):  # with one and the same mask for both
        first = ours.predict(**one_point)
        mask = {"mask_input": first.low_res_masks[[first.iou_predictions.argmax()]]}
        return mask if kind == "mask_alone" else one_point | mask
    return {
        "nothing": {},
        "one_point": one_point,
        "three_points": {"point_coords": points, "point_labels": np.array([1, 0, 1])},
        "box": {"box": box},
        "box_negative": {"box": box, "point_coords": points[1:2], "point_labels": np.array([0])},
    }[kind]


def test_the_image_embedding(pair):
    ours, official, _ = pair
    np.testing.assert_allclose(ours.get_image_embedding(), official.get_image_embedding().numpy(), rtol=0, atol=1e-4)
    assert ours.original_size == tuple(official.original_size)
    assert ours.input_size == official.input_size


@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_masks_scores_and_logits(pair, kind, multimask):
    ours, official, size = pair
    prompt = make_prompt(ours, size, kind) | {"multimask_output": multimask}
    masks, ious, low_res = ours.predict(**prompt)
    logits, their_ious, their_low_res = official.predict(**prompt, return_logits=True)
    np.testing.assert_allclose(low_res, their_low_res, rtol=0, atol=1e-3)
    np.testing.assert_allclose(ious, their_ious, rtol=0, atol=1e-4)
    np.testing.assert_allclose(ours.predict(**prompt, return_logits=True).masks, logits, rtol=0, atol=1e-3)
    clear = abs(logits) > 1e-3
    np.testing.assert_array_equal(masks[clear], (logits > 0)[clear])
    assert clear.mean() > 0.9


@pytest.mark.parametrize("options", [{}, {"multimask_output": False}, {"return_logits": True}])
def test_shapes_and_dtypes(pair, options):
    ours, official, size = pair
    prompt = make_prompt(ours, size, "one_point") | options
    for mine, theirs in zip(ours.predict(**prompt), official.predict(**prompt), strict=True):
        assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype)


def test_bgr(predictors):
    image = make_image("small", predictors[0].model.config.image_size)
    for predictor in predictors:
        predictor.set_image(image[..., ::-1], image_format="BGR")
    ours, official = predictors
    np.testing.assert_allclose(ours.get_image_embedding(), official.get_image_embedding().numpy(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["set_image", "predict", "get_image_embedding", "reset_image"])
def test_a_drop_in_takes_the_same_arguments(predictors, name):
    """In the same order; what is ours alone comes last, and need not be given."""
    ours, official = ([*inspect.signature(getattr(one, name)).parameters.values()] for one in predictors)
    assert [(p.name, p.default, p.kind) for p in ours][: len(official)] == [
        (p.name, p.default, p.kind) for p in official
    ]
    assert [p.name for p in ours[len(official) :]] == (["text_embedding"] if name == "predict" else [])
    assert all(p.default is None for p in ours[len(official) :])
