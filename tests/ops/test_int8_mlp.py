"""The MLP in 8-bit integers: against float32, and as a TPU kernel with norm and residual, interpreted."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sam_jax
from sam_jax.config import for_inference, vit_b
from sam_jax.config.training import TrainConfig
from sam_jax.models.image_encoder import Windows
from sam_jax.models.layers import KERNEL_SCALE
from sam_jax.models.sam import Sam, inference_variables
from sam_jax.ops.block_dense import Layer, Norm, residual_mlp
from sam_jax.ops.gelu import gelu
from sam_jax.ops.int8_mlp import Int8Dense, int8_mlp, quantize
from tests.tiny import TINY, random_images, random_variables

C, HIDDEN = 128, 512


def _random(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _layers():
    kernels = _random(1, C, HIDDEN) / np.sqrt(C), _random(2, HIDDEN, C) / np.sqrt(HIDDEN)
    biases = _random(3, HIDDEN), _random(4, C)
    return kernels, biases


def _int8(kernels, biases):
    found = []
    for kernel, bias in zip(kernels, biases, strict=True):
        values, scale = quantize(jnp.asarray(kernel), 0)
        found.append(Int8Dense(values, scale[0], jnp.asarray(bias)))
    return found


@pytest.mark.parametrize("axis", [0, 1])
def test_values_and_scales_are_the_matrix_up_to_half_a_scale(axis):
    x = jnp.asarray(_random(0, 40, 30)).at[:, 3].set(0.0).at[5].set(0.0)
    values, scale = quantize(x, axis)
    assert values.dtype == jnp.int8
    assert np.abs(values).max() == 127
    assert (np.abs(values * scale - x) <= scale / 2 + 1e-7).all()


def test_it_is_near_float32():
    x = _random(0, 300, C)
    x[7] = 0
    kernels, biases = _layers()
    exact = gelu(x @ kernels[0] + biases[0]) @ kernels[1] + biases[1]
    found = int8_mlp(jnp.asarray(x), *_int8(kernels, biases))
    assert 0 < np.abs(found - exact).mean() < 0.01 * np.abs(exact).mean()


# Windows of 6 x 6 tokens, of which five of six are padded; a grid in two blocks.
WINDOWS = Windows(6, 10, 16)


@pytest.mark.parametrize("windows", [WINDOWS, None])
def test_the_kernel_is_no_further_from_float32_than_the_xla_form(windows):
    real = None if windows is None else windows.real()[0, :, :, 0]
    x = jnp.asarray(_random(0, 2, *((1, 512) if real is None else real.shape), C), jnp.bfloat16)
    norm = Norm(jnp.ones(C), jnp.zeros(C), 1e-6)
    kernels, biases = _layers()
    layers = [Layer(*layer) for layer in zip(kernels, biases, strict=True)]
    exact = residual_mlp(x.astype(jnp.float32), norm, *layers, "xla", real)
    xla, kernel = (
        np.asarray(residual_mlp(x, norm, *_int8(kernels, biases), how, real), np.float32) for how in ("xla", "pallas")
    )
    here = np.ones(x.shape[1:3], bool) if real is None else real
    np.testing.assert_array_equal(kernel[:, ~here], np.asarray(x, np.float32)[:, ~here])
    xla_error, error = (np.abs(found - exact)[:, here].mean() for found in (xla, kernel))
    assert 0 < error <= 1.02 * xla_error < 0.02


def test_kernels_are_quantised_once_and_give_the_same_embeddings():
    config = for_inference(TINY, "int8")
    assert (config.dtype, config.image_encoder.int8_mlp) == ("bfloat16", True)
    variables, images = random_variables(TINY), random_images(0, 2, 80, 48)
    ready = inference_variables(config, variables)
    mlp = ready["params"]["image_encoder"]["blocks_0"]["mlp"]["lin1"]
    assert (mlp["kernel"].dtype, mlp[KERNEL_SCALE].shape) == (jnp.int8, (1, 128))
    assert ready["params"]["image_encoder"]["blocks_0"]["attn"]["qkv"]["kernel"].dtype == jnp.bfloat16
    again = inference_variables(config, ready)
    jax.tree.map(np.testing.assert_array_equal, again, ready)
    encode = jax.jit(partial(Sam(config).apply, method="encode_image"))
    np.testing.assert_array_equal(encode(ready, images), encode(variables, images))


@pytest.mark.slow
def test_masks_of_the_bundled_model_stay():
    """int8 against float32, as everybody will use it; bfloat16 alone is held to 0.99."""
    image = np.random.default_rng(0).integers(0, 60, (240, 320, 3), np.uint8)
    image[60:180, 90:250] += 120
    masks = []
    for dtype in ("float32", "int8"):
        predictor = sam_jax.SamPredictor(*sam_jax.load_model(dtype=dtype))
        predictor.set_image(image)
        masks.append(predictor.predict(box=np.array([90, 60, 250, 180]), multimask_output=False).masks[0])
    assert (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum() > 0.97


def test_wrong_uses_are_refused():
    with pytest.raises(ValueError, match="dtype 'int4' is not one of float32, bfloat16, int8"):
        for_inference(vit_b(), "int4")
    encoder = dataclasses.replace(TINY.image_encoder, int8_mlp=True)
    with pytest.raises(ValueError, match="int8_mlp is for inference"):
        TrainConfig(sam=dataclasses.replace(TINY, image_encoder=encoder))
