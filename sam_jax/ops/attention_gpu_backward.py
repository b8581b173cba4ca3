"""The backward pass of attention_gpu.py as two Triton kernels: logits are recomputed and never stored.

One kernel goes like the forward pass, a block of queries against all rows of keys: it gives the gradients of queries
and of both biases. The other takes a row of keys against all blocks of queries: it gives those of keys and values.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from sam_jax.ops.attention_gpu import (
    Blocks,
    bias_spec,
    dot,
    forward,
    head_spec,
    keys_of,
    load_bias_h,
    load_bias_w,
    load_head,
    product,
    queries_of,
    query_spec,
    store_head,
)
from sam_jax.ops.batch_partition import split_over_batch


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def attend(s: Blocks, interpret: bool, qkv: jax.Array, bias_h: jax.Array, bias_w: jax.Array) -> jax.Array:
    """The result (B, tokens, C) of `forward`, split over the batch under a mesh, and with gradients."""
    return _forward(s, interpret, qkv, bias_h, bias_w)[0]


def _attend_forward(s: Blocks, interpret: bool, *arguments: jax.Array) -> tuple[jax.Array, Any]:
    out, lse = _forward(s, interpret, *arguments)
    return out, (*arguments, out, lse)


def _attend_backward(s: Blocks, interpret: bool, kept: Any, outer: jax.Array) -> Any:
    run = functools.partial(backward, s, interpret=interpret)
    return tuple(split_over_batch(run, (True,) * 6, (True,) * 3)(*kept, outer))


attend.defvjp(_attend_forward, _attend_backward)


def _forward(s: Blocks, interpret: bool, *arguments: jax.Array) -> tuple[jax.Array, jax.Array]:
    run = functools.partial(forward, s, interpret=interpret)
    out, lse = split_over_batch(run, (True,) * 3, (True,) * 2)(*arguments)
    return out, lse


def backward(
    s: Blocks,
    qkv: jax.Array,
    bias_h: jax.Array,
    bias_w: jax.Array,
    out: jax.Array,
    lse: jax.Array,
    outer: jax.Array,
    interpret: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients of qkv and both biases, each in the shape and dtype of what it belongs to.

    Args:
      qkv, bias_h, bias_w: the arguments of `forward`.
      out, lse: the results of `forward`.
      outer: gradient of `out`.
    """
    heads = (*out.shape[:2], s.heads, s.dim)
    # What each query's gradient of the logits has too much of: the softmax's sum of one takes it away.
    delta = (outer.astype(jnp.float32) * out.astype(jnp.float32)).reshape(heads).sum(axis=-1).swapaxes(1, 2)
    call = functools.partial(
        pl.pallas_call,
        in_specs=[
            *(head_spec(s, part) for part in range(3)),
            bias_spec(s, s.h),
            bias_spec(s, s.w),
            head_spec(s),
            query_spec(s),
            query_spec(s),
        ],
        compiler_params=plgpu.CompilerParams(num_warps=s.warps, num_stages=2),
        interpret=interpret,
    )
    arguments = (qkv, qkv, qkv, bias_h, bias_w, outer, lse, delta)
    channels = jax.ShapeDtypeStruct(out.shape, qkv.dtype)
    name = f"attention_{s.h}x{s.w}_{s.heads}x{s.dim}"
    dq, *dbias = call(
        functools.partial(_queries_kernel, s),
        name=f"{name}_queries",
        grid=(s.query_blocks, s.heads, len(qkv)),
        out_specs=[head_spec(s), bias_spec(s, s.h), bias_spec(s, s.w)],
        out_shape=[channels, *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (bias_h, bias_w))],
    )(*arguments)
    dk, dv = call(
        functools.partial(_keys_kernel, s),
        name=f"{name}_keys",
        grid=(s.h, s.heads, len(qkv)),
        out_specs=[head_spec(s)] * 2,
        out_shape=[channels] * 2,
    )(*arguments)
    return jnp.concatenate([dq, dk, dv], axis=-1), dbias[0], dbias[1]


def _queries_kernel(s: Blocks, *refs: Any) -> None:
    q_ref, k_ref, v_ref, bias_h_ref, bias_w_ref, outer_ref, lse_ref, delta_ref, dq_ref, dbias_h_ref, dbias_w_ref = refs
    own = queries_of(s, pl.program_id(0))
    real = own < s.tokens
    queries, outer = (load_head(s, ref, own, s.tokens) for ref in (q_ref, outer_ref))
    bias_w = load_bias_w(s, bias_w_ref, own).T
    lse, delta = (plgpu.load(ref.at[own], mask=real, other=0.0) for ref in (lse_ref, delta_ref))

    def step(row: Any, carry: Any) -> Any:
        dq, dbias_w = carry
        keys, values = (load_head(s, ref, keys_of(s, row), (row + 1) * s.w) for ref in (k_ref, v_ref))
        logits = s.exponent_scale * product(queries, keys)
        logits = logits + load_bias_h(s, bias_h_ref, row, own)[:, None] + bias_w
        weights = jnp.exp2(logits - lse[:, None])
        inner = weights * (product(outer, values) - delta[:, None])
        plgpu.store(dbias_h_ref.at[row, own], inner.sum(axis=1).astype(dbias_h_ref.dtype), mask=real)
        dq = [old + dot(inner.astype(x.dtype), x) for old, x in zip(dq, keys, strict=True)]
        return dq, dbias_w + inner

    nothing = [jnp.zeros((s.block, size), jnp.float32) for _, size in s.pieces]
    start = nothing, jnp.zeros((s.block, s.columns), jnp.float32)
    dq, dbias_w = jax.lax.fori_loop(0, s.h, step, start)
    store_head(s, dq_ref, own, s.tokens, [s.dim**-0.5 * x for x in dq])
    columns = jnp.arange(s.columns, dtype=jnp.int32)[None, :]
    plgpu.store(
        dbias_w_ref.at[columns, own[:, None]], dbias_w.astype(dbias_w_ref.dtype), mask=(columns < s.w) & real[:, None]
    )


def _keys_kernel(s: Blocks, *refs: Any) -> None:
    q_ref, k_ref, v_ref, bias_h_ref, bias_w_ref, outer_ref, lse_ref, delta_ref, dk_ref, dv_ref = refs
    row = pl.program_id(0)
    own, end = keys_of(s, row), (row + 1) * s.w
    keys, values = (load_head(s, ref, own, end) for ref in (k_ref, v_ref))

    def step(block: Any, carry: Any) -> Any:
        dk, dv = carry
        there = queries_of(s, block)
        real = there < s.tokens
        queries, outer = (load_head(s, ref, there, s.tokens) for ref in (q_ref, outer_ref))
        # Queries that do not exist get an infinite sum of exponentials: their weights are zero.
        lse = plgpu.load(lse_ref.at[there], mask=real, other=jnp.inf)
        delta = plgpu.load(delta_ref.at[there], mask=real, other=0.0)
        logits = s.exponent_scale * product(keys, queries)
        logits = logits + load_bias_h(s, bias_h_ref, row, there)[None, :] + load_bias_w(s, bias_w_ref, there)
        weights = jnp.exp2(logits - lse[None, :])
        inner = weights * (product(values, outer) - delta[None, :])
        dk = [old + dot(inner.astype(x.dtype), x) for old, x in zip(dk, queries, strict=True)]
        dv = [old + dot(weights.astype(x.dtype), x) for old, x in zip(dv, outer, strict=True)]
        return dk, dv

    nothing = [jnp.zeros((s.columns, size), jnp.float32) for _, size in s.pieces]
    dk, dv = jax.lax.fori_loop(0, s.query_blocks, step, (nothing, nothing))
    store_head(s, dk_ref, own, end, [s.dim**-0.5 * x for x in dk])
    store_head(s, dv_ref, own, end, dv)
