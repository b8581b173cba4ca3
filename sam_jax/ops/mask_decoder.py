"""The mask decoder's operations on pixels: prompt tokens attend to them, update them, and turn them into masks.

Each function has an XLA form, written here, and a TPU kernel (mask_decoder_tpu.py); `implementation` chooses, see
`kernel_choice.run_kernel`. Gradients are those of the XLA form.

F and G are the channels after the first and the second upscaling step.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from sam_jax.ops import mask_decoder_tpu
from sam_jax.ops.batch_partition import split_over_batch
from sam_jax.ops.gelu import gelu
from sam_jax.ops.kernel_choice import run_kernel
from sam_jax.ops.layer_norm import CENTRED, layer_norm
from sam_jax.ops.planes import split, stack
from sam_jax.ops.products import einsum, matmul
from sam_jax.ops.softmax import low_precision_softmax

Kernel = Callable[..., jax.Array]


class PixelUpdate(NamedTuple):
    """The image-to-token attention as matrices per prompt; rows are (B, N, T * heads, C), heads innermost.

    Attributes:
      rows: keys, folded with the query projection; constants: (B, N, T * heads, 1) float32, added to the logits, -inf
        for absent tokens.
      values: values, folded with the output projection, (B, N, T * heads, C); bias: (C,), of the output projection.
      scale, shift: (C,) float32, of the LayerNorm that follows.
    """

    rows: jax.Array
    constants: jax.Array
    values: jax.Array
    bias: jax.Array
    scale: jax.Array
    shift: jax.Array


class Upscaling(NamedTuple):
    """Both upscaling steps: the first (4, F, C) and (F,), the LayerNorm (F,), the second (4, G, F) and (G,).

    The outputs of the first sum to zero over F. Matrices and biases have the compute dtype.
    """

    first: jax.Array
    first_bias: jax.Array
    scale: jax.Array
    shift: jax.Array
    second: jax.Array
    second_bias: jax.Array


def read_pixels(
    rows: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    pixels: jax.Array,
    image_pe: jax.Array,
    implementation: str,
    cheaper: Callable[[], jax.Array] | None = None,
) -> jax.Array:
    """Token-to-image attention: softmax(rows (pixels + image_pe)) pixels^T, per head times its kernel, plus bias.

    Args:
      rows: (B, N, T * heads, C), queries folded with the key projection, heads innermost.
      kernel: (heads, C, D) and bias: (heads * D,), of the value projection.
      pixels: (B, N or 1, C, S); image_pe: (1, 1, C, S).
      cheaper: computes the result on other platforms than TPU, if there is a cheaper way than with rows.

    Returns:
      (B, N, T, heads * D).
    """
    num_heads = len(kernel)

    def project(read: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
        read = rearrange(read, "b n (t h) c -> b n t h c", h=num_heads)
        out = rearrange(einsum("bnthc,hcd->bnthd", read, kernel), "b n t h d -> b n t (h d)")
        return out + bias.astype(pixels.dtype)

    def tpu(rows: jax.Array, kernel: jax.Array, bias: jax.Array, *seen: jax.Array, interpret: bool) -> jax.Array:
        read = _split_over_batch(mask_decoder_tpu.read_pixels, (True, True, False))(rows, *seen, interpret=interpret)
        return project(read, kernel, bias)

    def xla(rows: jax.Array, kernel: jax.Array, bias: jax.Array, pixels: jax.Array, image_pe: jax.Array) -> jax.Array:
        weights = low_precision_softmax(matmul(rows, pixels + image_pe), -1)
        values = jnp.broadcast_to(pixels, (*weights.shape[:2], *pixels.shape[2:]))
        return project(einsum("bnas,bncs->bnac", weights, values), kernel, bias)

    operands = rows, kernel, bias, pixels, image_pe
    return _run(tpu, xla, implementation, _problem(pixels, num_heads), operands, cheaper)


def update_pixels(
    update: PixelUpdate,
    pixels: jax.Array,
    image_pe: jax.Array,
    num_heads: int,
    epsilon: float,
    implementation: str,
    cheaper: Callable[[], jax.Array] | None = None,
    drop: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """Image-to-token attention, its residual and the LayerNorm that follows:

    norm(pixels + values^T softmax over tokens(rows (pixels + image_pe) + constants) + bias).

    Args:
      pixels: (B, N or 1, C, S); image_pe: (1, 1, C, S).
      cheaper: computes the logits (B, N, T, heads, S) on other platforms than TPU, if there is a cheaper way.
      drop: dropout on the attention's output; the kernel does not support it.

    Returns:
      (B, N, C, S).
    """

    def tpu(*operands: jax.Array, interpret: bool) -> tuple[jax.Array]:
        pixels, image_pe, rows, constants, values, *norm = operands
        columns = jnp.stack([x.astype(jnp.float32) for x in norm])[..., None]
        return mask_decoder_tpu.update_pixels(
            pixels, image_pe, rows, constants, values, columns, num_heads, epsilon, interpret
        )

    def xla(pixels: jax.Array, image_pe: jax.Array, *parts: jax.Array) -> jax.Array:
        known = PixelUpdate(*parts)
        logits = kept(matmul(known.rows, pixels + image_pe) + known.constants.astype(pixels.dtype))
        return _mix(known, pixels, rearrange(logits, "b n (t h) s -> b n t h s", h=num_heads), epsilon, drop)

    kernel = _split_over_batch(tpu, (True, False, True, True, True, False, False, False))
    elsewhere = None if cheaper is None else lambda: _mix(update, pixels, cheaper(), epsilon, drop)
    problem = "it lacks dropout" if drop else _problem(pixels, num_heads)
    return _run(kernel, xla, implementation, problem, (pixels, image_pe, *update), elsewhere)


def _mix(
    update: PixelUpdate,
    pixels: jax.Array,
    logits: jax.Array,
    epsilon: float,
    drop: Callable[[jax.Array], jax.Array] | None,
) -> jax.Array:
    """The updated pixels (B, N, C, S), from logits (B, N, T, heads, S)."""
    weights = low_precision_softmax(logits, 2)
    weights = rearrange(weights, "b n t h s -> b n (t h) s")
    out = jax.lax.platform_dependent(update.values, weights, cpu=_mixed_apart, default=_mixed)
    out = out + update.bias.astype(pixels.dtype)[:, None]
    return layer_norm(pixels + (drop(out) if drop else out), update.scale, update.shift, epsilon, -2)


def _mixed(values: jax.Array, weights: jax.Array) -> jax.Array:
    """(B, N, a, C) and (B, N, a, S) -> (B, N, C, S)."""
    return einsum("bnac,bnas->bncs", values, weights)


def _mixed_apart(values: jax.Array, weights: jax.Array) -> jax.Array:
    """`_mixed` for CPUs: faster with rows already transposed, and with the softmax not fused into the product."""
    return matmul(*jax.lax.optimization_barrier((values.swapaxes(-1, -2), weights)))


def kept(x: jax.Array) -> jax.Array:
    """x, computed once on CPUs: otherwise XLA recomputes it in each operation that uses it."""
    once: jax.Array = jax.lax.platform_dependent(x, cpu=jax.lax.optimization_barrier, default=lambda x: x)
    return once


def upscale(
    upscaling: Upscaling,
    hypernetworks: jax.Array,
    pixels: jax.Array,
    num_heads: int,
    epsilon: float,
    implementation: str,
    details: tuple[jax.Array, jax.Array] | None = None,
) -> jax.Array:
    """Pixels (B, N, C, S), upscaled fourfold, times a vector per mask (B, N, M, G): planes (B, N, M, 16, S) float32.

    `details`, (B, 1, 4, F, S) with zero sums over F and (B, 1, 4, 4 G, S), are added after the first and the second
    upscaling step; the kernel does not support them.
    """

    def tpu(pixels: jax.Array, rows: jax.Array, *parts: jax.Array, interpret: bool) -> tuple[jax.Array]:
        known = Upscaling(*parts)
        columns = [jnp.tile(x.astype(jnp.float32), 4) for x in (known.first_bias, known.scale, known.shift)]
        return mask_decoder_tpu.upscale(
            pixels,
            rearrange(known.first, "x o i -> (x o) i"),
            jnp.stack(columns)[..., None],
            rearrange(known.second, "x o i -> (x o) i"),
            jnp.tile(known.second_bias.astype(jnp.float32), 4)[:, None],
            rows,
            epsilon,
            interpret,
        )

    def xla(pixels: jax.Array, rows: jax.Array, *parts: jax.Array) -> jax.Array:
        known = Upscaling(*parts)
        x = split(known.first, known.first_bias, pixels)
        if details is not None:
            x = x + details[0]
        x = gelu(layer_norm(x, known.scale, known.shift, epsilon, -2, CENTRED))
        x = stack(known.second, known.second_bias, x)
        x = gelu(x if details is None else x + details[1])
        planes = matmul(jnp.broadcast_to(rows[:, :, None], (*x.shape[:3], *rows.shape[2:])), x)
        return rearrange(planes, "b n u (m t) s -> b n m (u t) s", t=4).astype(jnp.float32)

    # One row per mask and sub-pixel, nonzero only in the channels of its own sub-pixel.
    own = jnp.eye(4, dtype=pixels.dtype)
    rows = rearrange(einsum("tu,bnmc->bnmtuc", own, hypernetworks), "b n m t u c -> b n (m t) (u c)")
    kernel = _split_over_batch(tpu, (True, True, *(False,) * len(upscaling)))
    problem = _problem(pixels, num_heads) if details is None else "it lacks details"
    return _run(kernel, xla, implementation, problem, (pixels, rows, *upscaling))


def _problem(pixels: jax.Array, num_heads: int) -> str | None:
    channels, size = pixels.shape[2:]
    return mask_decoder_tpu.shape_problem(channels, size, num_heads, pixels.dtype.itemsize)


def _split_over_batch(kernel: Callable[..., tuple[jax.Array]], batched: tuple[bool, ...]) -> Kernel:
    """The kernel's only result; under a mesh each device computes its own images. `batched`: see `split_over_batch`."""

    def run(*operands: jax.Array, interpret: bool) -> jax.Array:
        return split_over_batch(partial(kernel, interpret=interpret), batched, (True,))(*operands)[0]

    return run


def _run(
    kernel: Kernel,
    xla: Callable[..., jax.Array],
    implementation: str,
    problem: str | None,
    operands: tuple[jax.Array, ...],
    cheaper: Callable[[], jax.Array] | None = None,
) -> jax.Array:
    """Runs the kernel or the XLA form; `cheaper`, if given, replaces the XLA form with a faster equivalent."""

    def elsewhere(*operands: jax.Array) -> jax.Array:
        return cheaper() if cheaper else xla(*operands)

    def differentiable(*operands: jax.Array, interpret: bool) -> jax.Array:
        run = jax.custom_vjp(partial(kernel, interpret=interpret))
        run.defvjp(lambda *args: (run(*args), args), lambda args, slope: jax.vjp(xla, *args)[1](slope))
        out: jax.Array = run(*operands)
        return out

    return run_kernel("mask decoder kernels", implementation, problem, differentiable, elsewhere, *operands)
