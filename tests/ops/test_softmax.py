"""The softmax of attention against autodiff of the plain one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam_jax.ops.softmax import low_precision_softmax


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    return (3 * rng.standard_normal((3, 7, 11))).astype(np.float32), rng.standard_normal((3, 7, 11)).astype(np.float32)


@pytest.mark.parametrize("axis", [-1, 1])
def test_values_and_gradients(case, axis):
    logits, cotangent = case
    logits = np.where(np.arange(11) == 4, -np.inf, logits) if axis == -1 else logits
    ours, back = jax.vjp(lambda x: low_precision_softmax(x, axis), logits)
    plain, plain_back = jax.vjp(lambda x: jax.nn.softmax(x, axis=axis), logits)
    np.testing.assert_allclose(ours, plain, atol=1e-6)
    np.testing.assert_allclose(*(f(cotangent)[0] for f in (back, plain_back)), atol=1e-6)


def test_bfloat16_is_remembered_and_rounds_once(case):
    logits, cotangent = case
    low = jnp.asarray(logits, jnp.bfloat16)
    ours, back = jax.vjp(lambda x: low_precision_softmax(x, -1), low)
    assert ours.dtype == back(ours)[0].dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(back)} == {jnp.dtype(jnp.bfloat16)}
    exact, exact_back = jax.vjp(jax.nn.softmax, np.asarray(low, np.float32))
    np.testing.assert_allclose(ours, exact, rtol=2**-8)
    slope = back(jnp.asarray(cotangent, jnp.bfloat16))[0]
    np.testing.assert_allclose(slope, exact_back(cotangent)[0], atol=0.01)
