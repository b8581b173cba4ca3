"""The small layers against plain statements."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam_jax.models import layers
from sam_jax.ops.attention import relative_positions


def _random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_patch_conv_is_a_strided_convolution():
    x, kernel, bias = _random(2, 6, 8, 3), _random(2, 2, 3, 5), _random(5)
    out = layers.PatchConv(5, 2).apply({"params": {"kernel": kernel, "bias": bias}}, x)
    dims = ("NHWC", "HWIO", "NHWC")
    expected = jax.lax.conv_general_dilated(x, kernel, (2, 2), "VALID", dimension_numbers=dims) + bias
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_layer_norm_keeps_digits_far_from_zero():
    """A variance from E[x^2] - E[x]^2 would be off by tens of percent here."""
    x = (_random(4, 64) + 3000).astype(np.float32)
    exact = (x - x.mean(-1, keepdims=True, dtype=np.float64)) / x.std(-1, keepdims=True, dtype=np.float64)
    norm = layers.LayerNorm(epsilon=1e-6)
    np.testing.assert_allclose(norm.apply(norm.init(jax.random.key(0), x), x), exact, atol=2e-3)


def test_dropout_drops_elements_and_keeps_the_mean():
    x = np.full((2, 50, 40), 3.0, np.float32)
    drop = layers.Dropout(0.25, deterministic=False)
    out = np.asarray(drop.apply({}, x, rngs={"dropout": jax.random.key(0)}))
    np.testing.assert_allclose(out, np.where(out > 0, x / 0.75, 0), rtol=1e-6)
    assert abs((out > 0).mean() - 0.75) < 0.03
    assert (drop.apply({}, x, rngs={"dropout": jax.random.key(1)}) != out).any()
    low = drop.apply({}, x.astype(jnp.bfloat16), rngs={"dropout": jax.random.key(0)})
    assert low.dtype == jnp.bfloat16
    np.testing.assert_array_equal(low > 0, out > 0)
    np.testing.assert_array_equal(layers.Dropout(0.25).apply({}, x), x)
    np.testing.assert_array_equal(layers.Dropout(0.0, deterministic=False).apply({}, x), x)


def test_drop_path_drops_whole_images_and_keeps_the_mean():
    x = np.ones((4000, 2, 3), np.float32)
    drop = layers.DropPath()
    out = np.asarray(drop.apply({}, x, 0.25, False, rngs={"drop_path": jax.random.key(0)}))
    kept = out[:, 0, 0] > 0
    np.testing.assert_allclose(out, np.where(kept[:, None, None], x / 0.75, 0) * np.ones_like(x), rtol=1e-6)
    assert abs(kept.mean() - 0.75) < 0.03
    np.testing.assert_array_equal(drop.apply({}, x, 0.25, True), x)


def test_rel_pos_is_indexed_by_query_minus_key():
    table = np.arange(7, dtype=np.float32)[:, None]  # offsets -3 .. 3
    out = np.asarray(relative_positions(layers.resize_rel_pos(table, 4)))[..., 0]
    for q, k in np.ndindex(4, 4):
        assert out[q, k] == q - k + 3


def test_rel_pos_of_another_size_is_interpolated():
    table = np.linspace(0, 1, 9, dtype=np.float32)[:, None]
    out = np.asarray(relative_positions(layers.resize_rel_pos(table, 9)))[..., 0]
    assert out.shape == (9, 9)
    # Doubling a linear table keeps its slope in the middle and repeats its ends.
    np.testing.assert_allclose(out[4, 3] - out[4, 4], (1 / 8) * 9 / 17, rtol=1e-4)
    np.testing.assert_allclose([out[8, 0], out[0, 8]], [1, 0], atol=1e-6)


def test_pos_embed_is_untouched_at_its_own_size():
    table = jnp.asarray(_random(1, 5, 5, 4))
    assert layers.resize_pos_embed(table, (5, 5)) is table


@pytest.mark.parametrize("grid", [(5, 9), (3, 4), (10, 2)])
def test_resizing_pos_embed_keeps_a_plain_table_plain(grid):
    out = layers.resize_pos_embed(jnp.full((1, 5, 5, 2), 3.0), grid)
    assert out.shape == (1, *grid, 2)
    np.testing.assert_allclose(out, 3.0, rtol=1e-6)


def test_resizing_pos_embed_treats_rows_as_rows():
    rows = np.tile(np.arange(5, dtype=np.float32)[None, :, None, None], (1, 1, 5, 1))
    out = np.asarray(layers.resize_pos_embed(jnp.asarray(rows), (10, 7)))[0, :, :, 0]
    assert (np.ptp(out, axis=1) < 1e-5).all()
    assert (np.diff(out[:, 0]) > 0).all()
