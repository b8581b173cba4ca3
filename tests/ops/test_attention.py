"""Both forms of attention with relative positions against a plain statement, on grids that are not square."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam_jax.ops import attention
from tests.statements import attention_with_rel_pos as stated

FORMS = (attention._folded, attention._chunked)
H, W, HEADS, D = 4, 6, 2, 8


@pytest.fixture(autouse=True)
def small_strips(monkeypatch):
    """Makes the chunked form go in strips at this size: 24 * 24 logits over 100 gives 5, and 6 divides 24."""
    monkeypatch.setattr(attention, "CPU_CHUNK_LOGITS", 100)


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    shapes = [(3, HEADS, H * W, D)] * 3 + [(H, H, D), (W, W, D)]
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def _run(form, q, k, v, rel_h, rel_w):
    return form(q, k, v, *attention._decomposed_bias(q, rel_h, rel_w))


@pytest.mark.parametrize("form", FORMS)
def test_forms_equal_the_statement(form, inputs):
    np.testing.assert_allclose(jax.jit(_run, static_argnums=0)(form, *inputs), stated(*inputs), atol=1e-5)


def test_the_public_function_equals_the_statement(inputs):
    out = jax.jit(attention.attention_with_rel_pos)(*inputs)
    np.testing.assert_allclose(out, stated(*inputs), atol=1e-5)


def test_rows_and_columns_have_tables_of_their_own(inputs):
    q, k, v, rel_h, rel_w = inputs
    other = stated(q, k, v, rel_h, np.zeros_like(rel_w))
    assert np.abs(other - stated(*inputs)).max() > 0.1


def test_gradients_of_both_forms_agree(inputs):
    def loss(form):
        return lambda *args: (_run(form, *args) * jnp.arange(D)).sum()

    folded, chunked = (jax.jit(jax.grad(loss(form), argnums=(0, 1, 2, 3, 4)))(*inputs) for form in FORMS)
    for one, other in zip(folded, chunked, strict=True):
        assert np.abs(one).max() > 0.1
        np.testing.assert_allclose(one, other, atol=2e-5, rtol=1e-5)


def test_a_gradient_equals_a_finite_difference(inputs):
    q, k, v, rel_h, rel_w = inputs
    step = np.zeros_like(rel_h)
    step[1, 2, 3] = 1e-3
    difference = (stated(q, k, v, rel_h + step, rel_w) - stated(q, k, v, rel_h - step, rel_w)).sum() / 2e-3
    grad = jax.grad(lambda table: _run(attention._folded, q, k, v, table, rel_w).sum())(rel_h)
    np.testing.assert_allclose(grad[1, 2, 3], difference, rtol=1e-3)


@pytest.mark.parametrize("form", FORMS)
def test_large_logits_do_not_overflow(form, inputs):
    q, *rest = inputs
    out = _run(form, 100 * q, *rest)
    np.testing.assert_allclose(out, stated(100 * q, *rest), atol=1e-3)


@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_stays_bfloat16_and_close(form, inputs):
    out = _run(form, *(jnp.asarray(x, jnp.bfloat16) for x in inputs))
    assert out.dtype == jnp.bfloat16
    assert np.abs(np.asarray(out, np.float32) - stated(*inputs)).mean() < 0.02
