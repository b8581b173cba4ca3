"""Norms and dense layers of a block: XLA's form against a plain statement, the TPU kernels, interpreted, against it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam_jax.models.image_encoder import Windows
from sam_jax.ops import block_dense_tpu
from sam_jax.ops.block_dense import Layer, Norm, norm_dense, residual_mlp

B, C, F = 2, 128, 256
WINDOWS = Windows(6, 10, 16)  # 2 x 3 windows of 36 tokens: at the right 4 of 6 columns are real, at the bottom 4 rows
REAL = WINDOWS.real()[0, :, :, 0]


def _random(seed, *shape, scale=1.0):
    return jnp.asarray(scale * np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def _case(name, dtype, real=REAL):
    """An operation as a function of an implementation and of arrays, and these arrays."""
    x = _random(0, B, *REAL.shape, C).astype(dtype)
    norm = Norm(1 + _random(1, C, scale=0.1), _random(2, C, scale=0.1), 1e-6)
    first = Layer(_random(3, C, F, scale=C**-0.5), _random(4, F))
    second = Layer(_random(5, F, C, scale=F**-0.5), _random(6, C))
    if name == "norm_dense":
        return lambda how, x, *parts: norm_dense(x, Norm(*parts[:2], 1e-6), Layer(*parts[2:]), how, real), (
            x,
            *norm[:2],
            *first,
        )
    return lambda how, x, *parts: residual_mlp(
        x, Norm(*parts[:2], 1e-6), Layer(*parts[2:4]), Layer(*parts[4:]), how, real
    ), (x, *norm[:2], *first, *second)


def _plain(name, x, scale, shift, kernel, bias, *second):
    y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * scale + shift
    if name == "norm_dense":
        return np.where(REAL[:, :, None], y, 0) @ kernel + bias
    return x + jax.nn.gelu(y @ kernel + bias, approximate=False) @ second[0] + second[1]


NAMES = pytest.mark.parametrize("name", ["norm_dense", "residual_mlp"])


@NAMES
def test_the_xla_form(name):
    run, arguments = _case(name, jnp.float32)
    expected = _plain(name, *map(np.asarray, arguments))
    np.testing.assert_allclose(run("auto", *arguments), expected, atol=2e-5)


@NAMES
@pytest.mark.parametrize("real", [REAL, None], ids=["padded", "whole"])
def test_kernels_of_bfloat16_are_no_further_from_float32(name, real):
    run, arguments = _case(name, jnp.bfloat16, real)
    exact = run("xla", arguments[0].astype(jnp.float32), *arguments[1:])
    compared = np.broadcast_to(REAL[:, :, None] | (name == "norm_dense") | (real is None), exact.shape)
    errors = {}
    for how in ("pallas", "xla"):
        found = run(how, *arguments)
        assert (found.shape, found.dtype) == (exact.shape, jnp.bfloat16)
        errors[how] = np.abs(np.asarray(found, np.float32) - exact)[compared].mean()
    assert 0 < errors["pallas"] <= 1.02 * errors["xla"]


@NAMES
def test_padding_is_left_alone(name):
    """It projects to the bias, and stays what it was in the residual."""
    run, arguments = _case(name, jnp.bfloat16)
    found = np.asarray(run("pallas", *arguments), np.float32)[:, ~REAL]
    expected = arguments[4].astype(jnp.bfloat16) if name == "norm_dense" else arguments[0][:, ~REAL]
    np.testing.assert_array_equal(found, np.broadcast_to(np.asarray(expected, np.float32), found.shape))


@NAMES
def test_gradients_are_those_of_the_xla_form(name):
    run, arguments = _case(name, jnp.bfloat16, None)

    def slopes(how):
        loss = lambda *args: jnp.sum(jnp.sin(run(how, *args).astype(jnp.float32)))  # noqa: E731
        return jax.grad(loss, argnums=tuple(range(len(arguments))))(*arguments)

    for found, expected in zip(slopes("pallas"), slopes("xla"), strict=True):
        found, expected = np.asarray(found, np.float32), np.asarray(expected, np.float32)
        assert np.abs(found - expected).mean() < 0.02 * np.abs(expected).mean()


def test_a_grid_is_split_into_steps():
    run, arguments = _case("residual_mlp", jnp.bfloat16, None)
    x = _random(7, 1, 1, 512, C).astype(jnp.bfloat16)
    one, other = (run(how, x, *arguments[1:]).astype(jnp.float32) for how in ("pallas", "xla"))
    np.testing.assert_allclose(one, other, atol=0.1)


@pytest.mark.parametrize(("length", "all_real"), [(36, True), (512, False)])
def test_padding_in_large_windows_counts_as_zero_too(length, all_real):
    """Of windows that take several steps, and where there is none after all."""
    real = np.arange(length)[None] < (length if all_real else 300)
    run, arguments = _case("norm_dense", jnp.bfloat16, real)
    x = _random(8, 1, 1, length, C).astype(jnp.bfloat16)
    one, other = (np.asarray(run(how, x, *arguments[1:]), np.float32) for how in ("pallas", "xla"))
    np.testing.assert_allclose(one, other, atol=0.1)
    bias = np.asarray(arguments[4].astype(jnp.bfloat16), np.float32)
    assert (one[0, 0, 300:] == bias).all()


def test_windows_bring_their_real_tokens_together():
    chosen = block_dense_tpu.choices(REAL)
    assert chosen.shape == (6, 32, 36)  # 24 real tokens at most, in whole tiles
    for window, real in zip(chosen, REAL, strict=True):
        tokens = np.flatnonzero(real) if not real.all() else []
        np.testing.assert_array_equal(
            np.argwhere(window), [(row, token) for row, token in enumerate(tokens)] or np.empty((0, 2))
        )


@pytest.mark.parametrize(
    ("length", "channels", "features", "dtype"),
    [
        (196, 128, 256, "float32"),
        (196, 96, 256, "bfloat16"),
        (300, 128, 256, "bfloat16"),
        (196, 2048, 8192, "bfloat16"),
    ],
)
def test_what_the_kernels_do_not_take_is_computed_by_xla(length, channels, features, dtype):
    assert not block_dense_tpu.supports(length, channels, features, jnp.dtype(dtype))
    assert block_dense_tpu.supports(196, 128, 256, jnp.bfloat16)
    x = jnp.zeros((1, 1, length, channels), dtype)
    norm, layer = (
        Norm(jnp.ones(channels), jnp.zeros(channels), 1e-6),
        Layer(jnp.ones((channels, features)), jnp.ones(features)),
    )
    program = str(jax.make_jaxpr(lambda x: norm_dense(x, norm, layer, "pallas"))(x))
    assert "dot_general" in program
    assert "pallas_call" not in program
