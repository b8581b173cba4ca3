"""Sub-pixel planes against plain statements with channels last and pixels side by side."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam_jax.models.planes import PlaneNorm, PlanePatchConv, PlaneSubpixelConv
from sam_jax.ops import planes

GRID = (3, 5)
S = GRID[0] * GRID[1]


def _random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _as_image(x):
    """(..., C, S) -> (..., h, w, C)."""
    return np.moveaxis(np.asarray(x), -2, -1).reshape(*x.shape[:-2], *GRID, x.shape[-2])


def _agree(one, other, *args):
    """Two functions have the same values, and the same gradients by every argument."""
    expected = other(*args)
    np.testing.assert_allclose(one(*args), expected, atol=1e-5)
    cotangent = _random(*expected.shape, seed=9)
    pairs = (jax.grad(lambda *a, f=f: (f(*a) * cotangent).sum(), tuple(range(len(args))))(*args) for f in (one, other))
    for a, b in zip(*pairs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)


def test_planes_are_sub_pixels_of_sub_pixels():
    masks = _random(2, 4 * GRID[0], 4 * GRID[1])
    split = np.asarray(planes.split_subpixels(masks))
    assert split.shape == (2, 16, S)
    for i, j, a, b, c, d in np.ndindex(*GRID, 2, 2, 2, 2):
        plane, pixel = ((a * 2 + b) * 2 + c) * 2 + d, i * GRID[1] + j
        np.testing.assert_array_equal(split[:, plane, pixel], masks[:, 4 * i + 2 * a + c, 4 * j + 2 * b + d])
    np.testing.assert_array_equal(planes.join_subpixels(split, GRID), masks)


def test_positions_in_planes_are_those_in_the_mask():
    width = 4 * GRID[1]
    masks = np.arange(16 * S).reshape(4 * GRID[0], width)
    split = np.asarray(planes.split_subpixels(masks)).ravel()
    x, y = np.moveaxis(np.asarray(planes.subpixel_position(np.arange(16 * S), GRID[1], S)), -1, 0)
    np.testing.assert_array_equal(y * width + x, split)


def test_what_cpus_and_others_multiply_is_the_same():
    _agree(planes._each_at_once, planes._each, _random(4, 5, 6), _random(2, 3, 6, S, seed=1))


@pytest.mark.parametrize("shape", [(2, 3, 8, S), (2, 4, 6, S)])
def test_plane_norm_is_layer_norm_over_channels(shape):
    x, scale, bias = _random(*shape), _random(shape[-2], seed=1), _random(shape[-2], seed=2)

    def ours(x, scale, bias):
        return PlaneNorm(shape[-2], 1e-6).apply({"params": {"scale": scale, "bias": bias}}, x)

    def plain(x, scale, bias):
        norm = nn.LayerNorm(epsilon=1e-6, use_fast_variance=False)
        return norm.apply({"params": {"scale": scale, "bias": bias}}, x.swapaxes(-1, -2)).swapaxes(-1, -2)

    _agree(ours, plain, x, scale, bias)


@pytest.mark.parametrize("conv", ["patch", "subpixel"])
def test_a_centred_convolution_and_norm_are_a_plain_pair(conv):
    x, bias, scale, shift = _random(2, 6, S), _random(4, seed=2), _random(4, seed=3), _random(4, seed=4)
    kernel = _random(1, 1, 6, 4, seed=1) if conv == "patch" else _random(2, 2, 6, 4, seed=1)

    def pair(centred):
        def run(x, kernel, bias, scale, shift):
            variables = {"params": {"kernel": kernel, "bias": bias}}
            if conv == "patch":
                y = PlanePatchConv(6, 4, 1, centred=centred).apply(variables, x)
            else:
                layer = PlaneSubpixelConv(6, 4, centred=centred)
                y = planes.split(*layer.apply(variables, method="matrices"), x)
            return PlaneNorm(4, 1e-6, centred=centred).apply({"params": {"scale": scale, "bias": shift}}, y)

        return run

    _agree(pair(True), pair(False), x, kernel, bias, scale, shift)


def test_plane_norm_keeps_digits_far_from_zero():
    x = (_random(64, 4) + 3000).astype(np.float32)
    exact = (x - x.mean(0, dtype=np.float64)) / x.std(0, dtype=np.float64)
    norm = PlaneNorm(64, 1e-6)
    np.testing.assert_allclose(norm.apply(norm.init(jax.random.key(0), x), x), exact, atol=2e-3)


def test_two_patch_convs_are_two_strided_convolutions():
    """Of masks of one channel, split once: neither convolution moves a pixel."""
    masks = _random(2, 4 * GRID[0], 4 * GRID[1])
    kernels = _random(2, 2, 1, 3), _random(3, seed=1), _random(2, 2, 3, 5, seed=2), _random(5, seed=3)

    def ours(k0, b0, k1, b1):
        x = PlanePatchConv(1, 3, 2, groups=4).apply(
            {"params": {"kernel": k0, "bias": b0}}, planes.split_subpixels(masks)
        )
        x = PlanePatchConv(3, 5, 2).apply({"params": {"kernel": k1, "bias": b1}}, x)
        return x.swapaxes(-1, -2).reshape(2, *GRID, 5)

    def plain(k0, b0, k1, b1):
        dims = ("NHWC", "HWIO", "NHWC")
        x = jnp.asarray(masks)[..., None]
        for kernel, bias in ((k0, b0), (k1, b1)):
            x = jax.lax.conv_general_dilated(x, kernel, (2, 2), "VALID", dimension_numbers=dims) + bias
        return x

    _agree(ours, plain, *kernels)


def test_subpixel_conv_is_a_transposed_convolution():
    x, kernel, bias = _random(6, S), _random(2, 2, 6, 5), _random(5)
    conv, variables = PlaneSubpixelConv(6, 5), {"params": {"kernel": kernel, "bias": bias}}
    matrices = conv.apply(variables, method="matrices")
    out = planes.split(*matrices, x)
    np.testing.assert_allclose(planes.stack(*matrices, x), out.reshape(20, S), atol=1e-5)
    assert out.shape == (4, 5, S)
    expected = np.zeros((2 * GRID[0], 2 * GRID[1], 5))
    for i, j, a, b in np.ndindex(*GRID, 2, 2):  # each input pixel paints a 2x2 patch
        expected[2 * i + a, 2 * j + b] = _as_image(x)[i, j] @ kernel[a, b] + bias
    for a, b in np.ndindex(2, 2):
        np.testing.assert_allclose(_as_image(out)[2 * a + b], expected[a::2, b::2], atol=1e-5)
