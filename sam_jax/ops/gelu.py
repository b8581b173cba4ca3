"""GELU: exact, and as a fit that TPUs compute fast."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def gelu(x: jax.Array) -> jax.Array:
    """The exact (erf) GELU; for bfloat16 the fit below."""
    return gelu_fit(x.astype(jnp.float32)).astype(x.dtype) if x.dtype == jnp.bfloat16 else _exact(x)


def _exact(x: jax.Array) -> jax.Array:
    # Not by erfc, as JAX's own: TPU kernels lack it, and CPUs take longer. Torch adds 1 to erf, too.
    return 0.5 * x * (1.0 + jax.lax.erf(x * 0.5**0.5))


def gelu_fit(x: jax.Array) -> jax.Array:
    """A fit to GELU with one hardware tanh, for float32 that is rounded to bfloat16 next.

    On TPU erf takes longer than the matrix product before it. The fit is off by 2.5e-5 at most, the usual tanh form by
    4.7e-4, bfloat16 itself by 2e-3 near one.
    """
    square = jnp.minimum(x * x, 25.0)
    inner = x * (0.797507884 + square * (0.0370056463 - 0.000351516846 * square))
    return 0.5 * x * (1.0 + jnp.tanh(inner))


def gelu_in_kernel(x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """`gelu` of float32 that becomes `dtype` next, in operations that TPU kernels know."""
    return gelu_fit(x) if dtype == jnp.bfloat16 else _exact(x)
