"""GELU against its definition."""

import jax.numpy as jnp
import numpy as np
from scipy.special import erf

from sam_jax.ops.gelu import gelu, gelu_fit


def test_gelu_is_the_exact_one():
    x = np.linspace(-5, 5, 101, dtype=np.float32)
    np.testing.assert_allclose(gelu(x), x * (1 + erf(x / np.sqrt(2))) / 2, atol=1e-6)


def test_gelu_of_bfloat16_is_as_exact_as_its_rounding():
    x = np.linspace(-9, 9, 4001, dtype=np.float32)
    exact = x * (1 + erf(x / np.sqrt(2))) / 2
    rounded = gelu(jnp.asarray(x, jnp.bfloat16))
    assert rounded.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(rounded, np.float32), exact, atol=2e-3, rtol=1.2e-2)
    assert 0 < np.abs(gelu_fit(jnp.asarray(x)) - exact).max() < 3e-5
