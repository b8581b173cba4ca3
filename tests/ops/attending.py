"""Random arguments of `packed_attention`, and its forms: what the tests of the kernels share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from sam_jax.ops.attention import packed_attention, relative_positions
from tests.statements import attention_with_rel_pos as stated


def attention_inputs(h, w, heads, dim, batch=2, dtype=jnp.float32):
    """qkv (B, h * w, 3 * heads * D), and the tables of relative positions (2 * h - 1, D) and (2 * w - 1, D)."""
    rng = np.random.default_rng(h * w)
    qkv = rng.standard_normal((batch, h * w, 3 * heads * dim)).astype(np.float32)
    tables = [0.3 * rng.standard_normal((2 * side - 1, dim)).astype(np.float32) for side in (h, w)]
    return [jnp.asarray(qkv, dtype), *map(jnp.asarray, tables)]


@functools.cache
def form(implementation, heads):
    """An implementation, compiled once."""
    return jax.jit(functools.partial(packed_attention, num_heads=heads, implementation=implementation))


def assert_equals_the_statement(implementation, h, w, heads, dim):
    qkv, *tables = attention_inputs(h, w, heads, dim)
    q, k, v = np.asarray(qkv).reshape(2, h * w, 3, heads, dim).transpose(2, 0, 3, 1, 4)
    expected = stated(q, k, v, *(np.asarray(relative_positions(table)) for table in tables))
    out = form(implementation, heads)(qkv, *tables)
    np.testing.assert_allclose(out, expected.transpose(0, 2, 1, 3).reshape(out.shape), atol=1e-5)
