"""Chooses between a kernel for TPUs or for NVIDIA GPUs and its XLA form, which compiles on every platform."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax


def run_kernel(
    name: str,
    implementation: str,
    problem: str | None,
    kernel: Callable[..., Any],
    xla: Callable[..., Any],
    *operands: jax.Array,
) -> Any:
    """The result, an array or several, of the kernel or of its XLA form.

    Args:
      name: of the option, for errors.
      implementation: "xla" runs the XLA form. "pallas" runs the TPU kernel; on other platforms it is interpreted, which
        is slow. "auto" runs the kernel on TPU for the shapes that it supports, and the XLA form otherwise; so does
        "triton", which says something about GPUs alone.
      problem: why the kernel does not support the shape, or None.
      kernel: takes the operands and `interpret`; xla: takes the operands.

    Raises:
      ValueError: implementation is "pallas" and there is a problem.
    """
    if implementation == "pallas" and problem:
        raise ValueError(f'{name} "pallas" does not take this shape: {problem}; use "auto" or "xla"')
    if implementation == "xla" or problem:
        return xla(*operands)
    default = partial(kernel, interpret=True) if implementation == "pallas" else xla
    return jax.lax.platform_dependent(*operands, tpu=partial(kernel, interpret=False), default=default)


def run_gpu_kernel(
    name: str,
    problem: str | None,
    kernel: Callable[..., jax.Array],
    *operands: jax.Array,
) -> jax.Array:
    """The result of a Triton kernel ("triton"), which is interpreted on platforms other than CUDA: that is slow.

    Arguments are those of `run_kernel`. "auto" never comes here: on GPUs it is the XLA form, which has been measured
    there, while the kernels have been compiled for GPUs but not yet run on one.

    Raises:
      ValueError: there is a problem.
    """
    if problem:
        raise ValueError(f'{name} "triton" does not take this shape: {problem}; use "auto" or "xla"')
    interpreted = partial(kernel, interpret=True)
    out: jax.Array = jax.lax.platform_dependent(*operands, cuda=partial(kernel, interpret=False), default=interpreted)
    return out
