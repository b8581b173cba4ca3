"""Sums as CPUs and as other platforms take them, against plain ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam_jax.ops import sums


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).standard_normal((3, 5, 7)).astype(np.float32)


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2])
def test_both_ways_to_sum_are_the_weighted_sum(x, axis):
    weights = np.linspace(-1, 2, x.shape[axis], dtype=np.float32)
    expected = np.expand_dims(np.tensordot(x, weights, (axis, 0)), axis)
    np.testing.assert_allclose(sums.weighted_sum(x, weights, axis), expected, atol=1e-5)
    np.testing.assert_allclose(sums.plain_sum(x, axis), x.sum(axis=axis, keepdims=True), atol=1e-5)
    for way in (sums._sum, sums._product):
        np.testing.assert_allclose(way(x, weights, axis % 3), expected, atol=1e-5)


def test_repeat_is_repeat_and_its_gradient_the_sum(x):
    ours, back = jax.vjp(lambda x: sums.repeat(x, 4, 1), x[:, None])
    np.testing.assert_array_equal(ours, np.repeat(x[:, None], 4, 1))
    cotangent = np.arange(ours.size, dtype=np.float32).reshape(ours.shape) / ours.size
    np.testing.assert_allclose(back(cotangent)[0], cotangent.sum(1, keepdims=True), rtol=1e-6)
    low = jnp.asarray(cotangent, jnp.bfloat16)
    _, back = jax.vjp(lambda x: sums.repeat(x, 4, 1), jnp.asarray(x[:, None], jnp.bfloat16))
    assert back(low)[0].dtype == jnp.bfloat16
