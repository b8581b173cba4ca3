"""Where a TPU kernel runs, and where the form that every platform compiles."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax


def run_kernel(
    name: str,
    implementation: str,
    problem: str | None,
    kernel: Callable[..., jax.Array],
    xla: Callable[..., jax.Array],
    *operands: jax.Array,
) -> jax.Array:
    """A result from the kernel or from its XLA form.

    Args:
      name: of the option, for errors.
      implementation: "xla" is the form that every platform compiles. "pallas" is the TPU kernel, which is interpreted,
        slowly, on other platforms. "auto" is the kernel on TPU for the shapes that it takes, the XLA form otherwise.
      problem: why the kernel does not take the shape, or None.
      kernel: takes the operands and `interpret`; xla: takes the operands.

    Raises:
      ValueError: "pallas" was asked for, and there is a problem.
    """
    if implementation == "pallas" and problem:
        raise ValueError(f'{name} "pallas" does not take this shape: {problem}; use "auto" or "xla"')
    if implementation == "xla" or problem:
        return xla(*operands)
    default = partial(kernel, interpret=True) if implementation == "pallas" else xla
    out: jax.Array = jax.lax.platform_dependent(*operands, tpu=partial(kernel, interpret=False), default=default)
    return out
