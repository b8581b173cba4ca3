"""Matrix products in the full precision of their dtype. The whole library multiplies with these functions.

By default JAX multiplies float32 in TF32 on GPUs and in one bfloat16 pass on TPUs, which leaves three digits of an
embedding. Here products of float32 are float32 on every platform; products of bfloat16 take one pass.

Only the dtypes of the operands decide, so this also holds in gradients, inside kernels and in programs of callers.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp


def precision_of(*operands: Any) -> jax.lax.Precision | None:
    """The precision for a product: HIGHEST if all operands are float32, else None."""
    exact = all(jnp.result_type(x) == jnp.float32 for x in operands)
    return jax.lax.Precision.HIGHEST if exact else None


def tpu_passes(dtype: Any) -> int:
    """Passes of a TPU's matrix unit for a dtype: float32 is split into three bfloat16s, and six of the nine products
    are computed."""
    return 6 if dtype == jnp.float32 else 1


def matmul(a: Any, b: Any) -> jax.Array:
    """`a @ b`, in the precision of its operands."""
    return jnp.matmul(a, b, precision=precision_of(a, b))


def einsum(subscripts: str, *operands: Any, preferred_element_type: Any = None) -> jax.Array:
    """`jnp.einsum`, in the precision of its operands."""
    precision = precision_of(*operands)
    out: jax.Array = jnp.einsum(
        subscripts, *operands, precision=precision, preferred_element_type=preferred_element_type
    )
    return out


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def einsum_float32(subscripts: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """`einsum` of two arrays of one dtype with a float32 result. Gradients are products in the operands' dtype."""
    return einsum(subscripts, a, b, preferred_element_type=jnp.float32)


def _forward(subscripts: str, a: jax.Array, b: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return einsum_float32(subscripts, a, b), (a, b)


def _backward(subscripts: str, operands: tuple[jax.Array, jax.Array], cotangent: jax.Array) -> tuple[jax.Array, ...]:
    _, gradients = jax.vjp(partial(einsum, subscripts), *operands)
    found: tuple[jax.Array, ...] = gradients(cotangent.astype(operands[0].dtype))
    return found


einsum_float32.defvjp(_forward, _backward)


def dot_general(a: Any, b: Any, dimension_numbers: Any, preferred_element_type: Any = None) -> jax.Array:
    """`jax.lax.dot_general`, in the precision of its operands."""
    return jax.lax.dot_general(
        a, b, dimension_numbers, precision=precision_of(a, b), preferred_element_type=preferred_element_type
    )


def conv_general_dilated(x: jax.Array, kernel: jax.Array, *args: Any, **options: Any) -> jax.Array:
    """`jax.lax.conv_general_dilated`, for `nn.Conv`."""
    return jax.lax.conv_general_dilated(x, kernel, *args, **options | {"precision": precision_of(x, kernel)})


def exact_products() -> Any:
    """A context for tracing other libraries' code (optax's Muon) with full-precision float32 products."""
    return jax.default_matmul_precision("highest")
