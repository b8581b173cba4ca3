"""TinyViT against plain statements of its parts, on frames of any size. Parity with its code is in test_oracle.py."""

import dataclasses

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from sam_jax.config import TinyVitConfig
from sam_jax.models.image_encoder import Windows
from sam_jax.models.sam import Sam, inference_variables
from sam_jax.models.tiny_vit import Attention, DepthwiseKernel, FrozenBatchNorm, _distances
from sam_jax.structs import Prompts
from tests.tiny import TINY, jitted, random_images, random_variables

CONFIG = dataclasses.replace(
    TINY,
    image_encoder=TinyVitConfig(
        image_size=80, widths=(8, 12, 16, 20), depths=(1, 1, 1, 1), num_heads=(2, 4, 5), window_sizes=(7, 4, 3)
    ),
)


@pytest.fixture(scope="module")
def variables():
    return random_variables(CONFIG)


@pytest.mark.parametrize("size", [(80, 80), (48, 112), (16, 16)])
def test_any_frame_of_whole_cells(variables, size):
    out = jitted(CONFIG, "encode_image")(variables, random_images(0, 2, *size))
    assert out.shape == (2, size[0] // 16, size[1] // 16, CONFIG.prompt_embed_dim)
    assert out.dtype == np.float32
    assert np.isfinite(out).all()
    with pytest.raises(ValueError, match=r"images have shape \(1, 80, 81, 3\); expected .* multiples of 16"):
        Sam(CONFIG).apply(variables, random_images(0, 1, 80, 81), method="encode_image")


def test_images_of_a_batch_are_apart(variables):
    images = random_images(1, 2, 48, 48)
    encode = jitted(CONFIG, "encode_image")
    np.testing.assert_allclose(encode(variables, images)[1:], encode(variables, images[1:]), atol=1e-5)


@pytest.mark.long
def test_bfloat16_is_near_and_keeps_small_kernels(variables):
    config = dataclasses.replace(CONFIG, dtype="bfloat16")
    few = inference_variables(config, variables)
    kinds = {path: leaf.dtype for path, leaf in flatten_dict(few, sep="/").items() if "image_encoder" in path}
    assert {str(kind) for path, kind in kinds.items() if path.endswith("kernel")} == {"bfloat16"}
    assert {str(kind) for path, kind in kinds.items() if not path.endswith("kernel")} == {"float32"}
    images = random_images(2, 1, 80, 80)
    exact, near = jitted(CONFIG, "encode_image")(variables, images), jitted(config, "encode_image")(few, images)
    assert np.abs(exact - near).mean() < 0.05
    np.testing.assert_array_equal(near, jitted(config, "encode_image")(variables, images))


def test_masks_of_prompts(variables):
    prompts = Prompts(point_coords=np.full((1, 2, 1, 2), 40.0, np.float32), point_labels=np.ones((1, 2, 1), int))
    out = jax.jit(Sam(CONFIG).apply)(variables, random_images(3, 1, 80, 80), prompts)
    assert out.low_res_masks.shape == (1, 2, 3, 20, 20)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(6, 8), (5, 7)])
def test_depthwise_convolution(stride, size):
    x = np.random.default_rng(0).standard_normal((2, *size, 3)).astype(np.float32)
    kernel = np.random.default_rng(1).standard_normal((3, 3, 1, 3)).astype(np.float32)
    expected = jax.lax.conv_general_dilated(
        x, kernel, (stride,) * 2, [(1, 1)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=3
    )
    found = DepthwiseKernel(stride).apply({"params": {"kernel": kernel}}, x)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_batch_normalisation_is_by_its_constants():
    rng = np.random.default_rng(0)
    x, scale, bias, mean = rng.standard_normal((4, 6)).astype(np.float32)
    variance = np.abs(x) + 0.5
    variables = {
        "params": {"scale": scale, "bias": bias},
        "constants": {"running_mean": mean, "running_var": variance},
    }
    expected = (x - mean) / np.sqrt(variance + 1e-5) * scale + bias
    np.testing.assert_allclose(FrozenBatchNorm(np.float32).apply(variables, x), expected, atol=1e-5)


@pytest.mark.parametrize("side", [3, 4])
def test_a_bias_belongs_to_each_distance(side):
    cells = [divmod(i, side) for i in range(side**2)]
    np.testing.assert_array_equal(
        _distances(side), [[abs(a - c) * side + abs(b - d) for c, d in cells] for a, b in cells]
    )


def test_padding_is_attended_to():
    """As in the published code: what fills up windows is zero before the normalisation, and takes a share."""
    attention, windows = Attention(2, 3, np.float32), Windows(3, 2, 2)
    x = np.random.default_rng(0).standard_normal((1, 2, 2, 8)).astype(np.float32)
    variables = attention.init(jax.random.key(0), windows.split(x))
    biases = np.where(np.arange(9) % 3 < 2, 0, -np.inf).astype(np.float32)  # no cell sees two columns further
    apart = {"params": dict(variables["params"]) | {"attention_biases": np.stack([biases] * 2)}}
    found, other = (windows.join(attention.apply(v, windows.split(x))) for v in (variables, apart))
    assert np.abs(found - other).max() > 1e-3
