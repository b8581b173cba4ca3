"""Layer normalisation against Flax's, and its backward pass against autodiff of that."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from sam_jax.ops.layer_norm import CENTRED, ONE_PASS, TWO_PASSES, layer_norm

C = 24


def _case(axis, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    shape = (2, 3, 5, C) if axis == -1 else (2, 3, C, 5)
    x, cotangent = (jnp.asarray(rng.standard_normal(shape), dtype) for _ in range(2))
    return x + dtype(0.7), jnp.asarray(rng.uniform(0.5, 2, C)), jnp.asarray(rng.standard_normal(C)), cotangent


def _flax(x, scale, bias, axis, one_pass):
    norm = nn.LayerNorm(epsilon=1e-3, use_fast_variance=one_pass, reduction_axes=axis, feature_axes=axis, dtype=x.dtype)
    return norm.apply({"params": {"scale": scale, "bias": bias}}, x)


@pytest.mark.parametrize("axis", [-1, -2])
@pytest.mark.parametrize("statistics", [TWO_PASSES, ONE_PASS])
def test_values_and_gradients(axis, statistics):
    *arguments, cotangent = _case(axis)
    ours, back = jax.vjp(lambda *a: layer_norm(*a, 1e-3, axis, statistics), *arguments)
    plain, plain_back = jax.vjp(lambda *a: _flax(*a, axis, statistics == ONE_PASS), *arguments)
    np.testing.assert_allclose(ours, plain, atol=1e-5)
    for mine, theirs in zip(back(cotangent), plain_back(cotangent), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-5)


@pytest.mark.parametrize("axis", [-1, -2])
def test_centred_channels_need_no_mean(axis):
    x, scale, bias, cotangent = _case(axis)

    def run(statistics, x, *rest):
        return layer_norm(x - x.mean(axis=axis, keepdims=True), *rest, 1e-3, axis, statistics)

    ours, back = jax.vjp(lambda *a: run(CENTRED, *a), x, scale, bias)
    plain, plain_back = jax.vjp(lambda *a: run(TWO_PASSES, *a), x, scale, bias)
    np.testing.assert_allclose(ours, plain, atol=1e-5)
    for mine, theirs in zip(back(cotangent), plain_back(cotangent), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-5)


@pytest.mark.parametrize("axis", [-1, -2])
def test_bfloat16_keeps_float32_statistics_and_remembers_its_input_alone(axis):
    x, scale, bias, cotangent = _case(axis, jnp.bfloat16)
    ours, back = jax.vjp(lambda *a: layer_norm(*a, 1e-3, axis, ONE_PASS), x, scale, bias)
    exact = _flax(x.astype(jnp.float32), scale, bias, axis, False)
    assert ours.dtype == back(cotangent)[0].dtype == jnp.bfloat16
    assert {g.dtype for g in back(cotangent)[1:]} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(ours.astype(jnp.float32), exact, rtol=2**-8, atol=1e-5)
    wide = [leaf for leaf in jax.tree.leaves(back) if leaf.dtype == jnp.float32 and leaf.size >= x.size]
    assert not wide
