"""Products of arrays, as exact as their dtype promises. All of the library's products are taken here.

Left to itself, JAX multiplies float32 in TF32 on GPUs and in one bfloat16 pass on TPUs, which keeps three digits of an
embedding. Who asks for float32 gets float32 here, on every platform. Products of bfloat16 take one pass: that is what
bfloat16 is chosen for.

The operands decide, and nothing around them, so that it holds in whatever program a product ends up, in gradients of
any kind and inside kernels as well.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp


def precision_of(*operands: Any) -> jax.lax.Precision | None:
    """The precision that a product of some arrays needs."""
    exact = all(jnp.result_type(x) == jnp.float32 for x in operands)
    return jax.lax.Precision.HIGHEST if exact else None


def tpu_passes(dtype: Any) -> int:
    """How often a TPU's matrix unit goes over operands of a dtype: float32 is three bfloat16s, and six of their nine
    products count."""
    return 6 if dtype == jnp.float32 else 1


def matmul(a: Any, b: Any) -> jax.Array:
    """`a @ b`."""
    return jnp.matmul(a, b, precision=precision_of(a, b))


def einsum(subscripts: str, *operands: Any, preferred_element_type: Any = None) -> jax.Array:
    """`jnp.einsum`."""
    precision = precision_of(*operands)
    out: jax.Array = jnp.einsum(
        subscripts, *operands, precision=precision, preferred_element_type=preferred_element_type
    )
    return out


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def einsum_float32(subscripts: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """`einsum` of two arrays of one dtype, added up and given in float32. Gradients are products in their dtype too."""
    return einsum(subscripts, a, b, preferred_element_type=jnp.float32)


def _forward(subscripts: str, a: jax.Array, b: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return einsum_float32(subscripts, a, b), (a, b)


def _backward(subscripts: str, operands: tuple[jax.Array, jax.Array], cotangent: jax.Array) -> tuple[jax.Array, ...]:
    _, gradients = jax.vjp(partial(einsum, subscripts), *operands)
    found: tuple[jax.Array, ...] = gradients(cotangent.astype(operands[0].dtype))
    return found


einsum_float32.defvjp(_forward, _backward)


def dot_general(a: Any, b: Any, dimension_numbers: Any, preferred_element_type: Any = None) -> jax.Array:
    """`jax.lax.dot_general`."""
    return jax.lax.dot_general(
        a, b, dimension_numbers, precision=precision_of(a, b), preferred_element_type=preferred_element_type
    )


def conv_general_dilated(x: jax.Array, kernel: jax.Array, *args: Any, **options: Any) -> jax.Array:
    """`jax.lax.conv_general_dilated`, for `nn.Conv`."""
    return jax.lax.conv_general_dilated(x, kernel, *args, **options | {"precision": precision_of(x, kernel)})


def exact_products() -> Any:
    """A context in which the products of others (optax's Muon) are traced: those of float32 are as exact as ours."""
    return jax.default_matmul_precision("highest")
