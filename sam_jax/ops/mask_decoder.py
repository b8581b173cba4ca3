"""The mask decoder's operations on pixels: prompt tokens attend to them, update them, and turn them into masks.

Each function has an XLA form, written here, and a TPU kernel (mask_decoder_tpu.py, mask_decoder_tpu_backward.py);
`implementation` chooses, see `kernel_choice.run_kernel`. `image_pe` is a constant: no gradient flows to it.

F and G are the channels after the first and the second upscaling step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from sam_jax.ops import mask_decoder_tpu, mask_decoder_tpu_backward
from sam_jax.ops.batch_partition import split_over_batch
from sam_jax.ops.gelu import gelu
from sam_jax.ops.kernel_choice import run_kernel
from sam_jax.ops.layer_norm import CENTRED, layer_norm
from sam_jax.ops.planes import split, stack
from sam_jax.ops.products import einsum, matmul
from sam_jax.ops.random_bits import Dropping
from sam_jax.ops.softmax import low_precision_softmax

Kernel = Callable[..., Any]


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
) -> tuple[jax.Array, jax.Array]:
    """Token-to-image attention: softmax(rows (pixels + image_pe)) pixels^T, per head times its kernel, plus bias.

    Args:
      rows: (B, N, T * heads, C), queries folded with the key projection, heads innermost.
      kernel: (heads, C, D) and bias: (heads * D,), of the value projection.
      pixels: (B, N or 1, C, S); image_pe: (1, 1, C, S).
      cheaper: computes the result on other platforms than TPU, if there is a cheaper way than with rows.

    Returns:
      (B, N, T, heads * D), and the pixels. What comes next should use these: the kernel's backward pass then adds the
      gradient from there to its own, for which XLA would need another pass over both.
    """
    num_heads, image_pe = len(kernel), jax.lax.stop_gradient(image_pe)

    def project(read: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
        read = rearrange(read, "b n (t h) c -> b n t h c", h=num_heads)
        out = rearrange(einsum("bnthc,hcd->bnthd", read, kernel), "b n t h d -> b n t (h d)")
        return out + bias.astype(pixels.dtype)

    def tpu(
        rows: jax.Array, kernel: jax.Array, bias: jax.Array, *seen: jax.Array, interpret: bool
    ) -> tuple[jax.Array, ...]:
        kernels = mask_decoder_tpu.read_pixels, mask_decoder_tpu_backward.read_pixels
        run = _differentiable(kernels, {"interpret": interpret}, (True, True, False), fixed=(2,), results=2)
        read, pixels = run(rows, *seen)
        return project(read, kernel, bias), pixels

    def xla(
        rows: jax.Array, kernel: jax.Array, bias: jax.Array, pixels: jax.Array, image_pe: jax.Array
    ) -> tuple[jax.Array, ...]:
        weights = low_precision_softmax(matmul(rows, pixels + image_pe), -1)
        values = jnp.broadcast_to(pixels, (*weights.shape[:2], *pixels.shape[2:]))
        return project(einsum("bnas,bncs->bnac", weights, values), kernel, bias), pixels

    elsewhere = None if cheaper is None else lambda: (cheaper(), pixels)
    operands = rows, kernel, bias, pixels, image_pe
    read: tuple[jax.Array, jax.Array] = _run(tpu, xla, implementation, _problem(pixels, num_heads), operands, elsewhere)
    return read


def update_pixels(
    update: PixelUpdate,
    pixels: jax.Array,
    image_pe: jax.Array,
    num_heads: int,
    epsilon: float,
    implementation: str,
    cheaper: Callable[[], jax.Array] | None = None,
    drop: Dropping | None = None,
) -> jax.Array:
    """Image-to-token attention, its residual and the LayerNorm that follows:

    norm(pixels + values^T softmax over tokens(rows (pixels + image_pe) + constants) + bias).

    Args:
      pixels: (B, N or 1, C, S); image_pe: (1, 1, C, S).
      cheaper: computes the logits (B, N, T, heads, S) on other platforms than TPU, if there is a cheaper way.
      drop: dropout of the attention's output (B, N, C, S), before the residual.

    Returns:
      (B, N, C, S).
    """
    image_pe = jax.lax.stop_gradient(image_pe)
    if drop is None:
        words, keep = jnp.zeros((2, *update.rows.shape[:2], 1, 1), jnp.uint32), 1.0
    else:
        words, keep = drop

    def tpu(pixels: jax.Array, image_pe: jax.Array, words: jax.Array, *parts: jax.Array, interpret: bool) -> jax.Array:
        rows, constants, values, *norm = parts
        columns = jnp.stack([x.astype(jnp.float32) for x in norm])[..., None]
        kernels = mask_decoder_tpu.update_pixels, mask_decoder_tpu_backward.update_pixels
        options = {"num_heads": num_heads, "epsilon": epsilon, "keep": keep, "interpret": interpret}
        run = _differentiable(kernels, options, (True, False, True, True, True, False, True), fixed=(1, 6))
        seen = rearrange(words, "t b n 1 1 -> b n t 1")
        return run(pixels, image_pe, rows, constants, values, columns, seen)[0]

    def xla(pixels: jax.Array, image_pe: jax.Array, words: jax.Array, *parts: jax.Array) -> jax.Array:
        known = PixelUpdate(*parts)
        logits = kept(matmul(known.rows, pixels + image_pe) + known.constants.astype(pixels.dtype))
        return _mix(known, pixels, rearrange(logits, "b n (t h) s -> b n t h s", h=num_heads), epsilon, drop)

    elsewhere = None if cheaper is None else lambda: _mix(update, pixels, cheaper(), epsilon, drop)
    operands = pixels, image_pe, words, *update
    out: jax.Array = _run(tpu, xla, implementation, _problem(pixels, num_heads), operands, elsewhere)
    return out


def _mix(
    update: PixelUpdate,
    pixels: jax.Array,
    logits: jax.Array,
    epsilon: float,
    drop: Dropping | None,
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

    def tpu(pixels: jax.Array, rows: jax.Array, *parts: jax.Array, interpret: bool) -> jax.Array:
        known = Upscaling(*parts)
        columns = [jnp.tile(x.astype(jnp.float32), 4) for x in (known.first_bias, known.scale, known.shift)]
        kernels = mask_decoder_tpu.upscale, mask_decoder_tpu_backward.upscale
        options = {"epsilon": epsilon, "interpret": interpret}
        run = _differentiable(kernels, options, (True, False, False, False, False, True))
        first, second = (rearrange(x, "x o i -> (x o) i") for x in (known.first, known.second))
        second_bias = jnp.tile(known.second_bias.astype(jnp.float32), 4)[:, None]
        return run(pixels, first, jnp.stack(columns)[..., None], second, second_bias, rows)[0]

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
    problem = _problem(pixels, num_heads) if details is None else "it lacks details"
    planes: jax.Array = _run(tpu, xla, implementation, problem, (pixels, rows, *upscaling))
    return planes


def _problem(pixels: jax.Array, num_heads: int) -> str | None:
    channels, size = pixels.shape[2:]
    return mask_decoder_tpu.shape_problem(channels, size, num_heads, pixels.dtype.itemsize)


def _differentiable(
    kernels: tuple[Kernel, Kernel],
    options: dict[str, Any],
    batched: Sequence[bool],
    fixed: Sequence[int] = (),
    results: int = 1,
) -> Kernel:
    """A kernel that is differentiable; under a mesh each device computes its own images.

    Args:
      kernels: forward takes the operands; backward takes them and the results' gradients, and returns theirs.
      batched: for each operand, whether its first axis is the batch, see `split_over_batch`.
      fixed: the operands for which backward returns no gradient.
      results: their number.
    """
    learned = [batch for number, batch in enumerate(batched) if number not in fixed]
    forward = split_over_batch(partial(kernels[0], **options), batched, (True,) * results)
    backward = split_over_batch(partial(kernels[1], **options), (*batched, *(True,) * results), learned)

    @jax.custom_vjp
    def run(*operands: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(forward(*operands))

    def slopes(operands: tuple[jax.Array, ...], outer: tuple[jax.Array, ...]) -> tuple[jax.Array | None, ...]:
        found = iter(backward(*operands, *outer))
        return tuple(None if number in fixed else next(found) for number in range(len(operands)))

    run.defvjp(lambda *operands: (run(*operands), operands), slopes)
    return run


def _run(
    kernel: Kernel,
    xla: Callable[..., Any],
    implementation: str,
    problem: str | None,
    operands: tuple[jax.Array, ...],
    cheaper: Callable[[], Any] | None = None,
) -> Any:
    """Runs the kernel or the XLA form; `cheaper`, if given, replaces the XLA form with a faster equivalent."""

    def elsewhere(*operands: jax.Array) -> Any:
        return cheaper() if cheaper else xla(*operands)

    return run_kernel("mask decoder kernels", implementation, problem, kernel, elsewhere, *operands)
