"""The TPU kernels, interpreted on the CPU, against the XLA form and a plain statement; compiled where libtpu is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from sam_jax import sharding
from sam_jax.estimates import tpu as tpu_estimates
from sam_jax.ops import attention_tiles
from sam_jax.ops.attention import packed_attention
from tests.ops.attending import assert_equals_the_statement, attention_inputs, form

# (h, w, heads, D): windows of SAM at D = 64 and 80; small, not square, many heads in one block of lanes; grids whose
# queries go in strips, with the bias beside the head, with a block of its own, with heads that straddle blocks.
SHAPES = [
    (14, 14, 2, 64),
    (14, 14, 8, 80),
    (4, 6, 8, 16),
    (5, 3, 8, 80),
    (16, 32, 2, 64),
    (32, 48, 2, 64),
    (48, 16, 1, 80),
]
WITH_GRADIENTS = [
    pytest.param(shape, marks=() if shape in (SHAPES[2], SHAPES[4]) else pytest.mark.slow) for shape in SHAPES
]


@functools.cache
def _gradients(implementation, heads):
    def loss(*args):
        out = packed_attention(*args, num_heads=heads, implementation=implementation)
        return (out.astype(jnp.float32) * jnp.sin(jnp.arange(out.size, dtype=jnp.float32).reshape(out.shape))).sum()

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_kernel_equals_the_xla_form(shape):
    args = attention_inputs(*shape)
    np.testing.assert_allclose(form("pallas", shape[2])(*args), form("xla", shape[2])(*args), atol=1e-5)


@pytest.mark.parametrize("shape", [(4, 6, 8, 16), (5, 3, 8, 80)])
def test_the_kernel_equals_the_statement(shape):
    assert_equals_the_statement("pallas", *shape)


@pytest.mark.parametrize("shape", SHAPES[:5])
def test_bfloat16_is_as_close_to_float32_as_the_xla_form(shape):
    rounded = attention_inputs(*shape, dtype=jnp.bfloat16)
    exact = np.asarray(form("xla", shape[2])(rounded[0].astype(jnp.float32), *rounded[1:]))
    errors = {}
    for name in ("pallas", "xla"):
        out = form(name, shape[2])(*rounded)
        assert out.dtype == jnp.bfloat16
        errors[name] = np.abs(np.asarray(out, np.float32) - exact).mean()
    assert 0 < errors["pallas"] <= 1.02 * errors["xla"]


@pytest.mark.parametrize("shape", WITH_GRADIENTS)
def test_gradients_equal_those_of_the_xla_form(shape):
    args = attention_inputs(*shape)
    ours, theirs = (_gradients(name, shape[2])(*args) for name in ("pallas", "xla"))
    for one, other in zip(ours, theirs, strict=True):
        scale = np.abs(other).max()
        assert scale > 0.05
        np.testing.assert_allclose(one, other, atol=1e-5 * max(1.0, scale))


@pytest.mark.parametrize("shape", [SHAPES[0], pytest.param(SHAPES[1], marks=pytest.mark.slow), SHAPES[2]])
def test_bfloat16_gradients_are_nearly_as_close_as_those_of_the_xla_form(shape):
    """Both round the gradient of the logits to bfloat16, the kernel other intermediate results as well."""
    rounded = attention_inputs(*shape, dtype=jnp.bfloat16)
    exact = _gradients("xla", shape[2])(rounded[0].astype(jnp.float32), *rounded[1:])
    ours, theirs = (_gradients(name, shape[2])(*rounded) for name in ("pallas", "xla"))
    for one, other, truth in zip(ours, theirs, exact, strict=True):
        assert one.dtype == other.dtype
        errors = [np.abs(np.asarray(x, np.float32) - np.asarray(truth)).mean() for x in (one, other)]
        assert 0 < errors[0] <= 1.4 * errors[1]


def test_large_logits_do_not_overflow():
    qkv, *tables = attention_inputs(16, 32, 2, 64)
    qkv = qkv.at[..., : 2 * 64].multiply(100)  # queries: logits are hundreds
    np.testing.assert_allclose(form("pallas", 2)(qkv, *tables), form("xla", 2)(qkv, *tables), atol=5e-3)


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((4, 6, 8, 12), "12 channels; expected a multiple of 8"),
        ((65, 4, 2, 64), "grid is 65 x 4; its sides are limited to 64"),
        ((17, 17, 2, 64), "17 x 17 tokens are not a multiple of 256"),
        ((4, 6, 3, 64), "3 heads of 64 channels do not fill whole blocks of 128 lanes"),
    ],
)
def test_shapes_that_the_kernel_does_not_take(shape, reason):
    args = attention_inputs(*shape, batch=1)
    with pytest.raises(ValueError, match=f'attention "pallas" does not take this shape: .*{reason}'):
        packed_attention(*args, num_heads=shape[2], implementation="pallas")
    np.testing.assert_array_equal(form("auto", shape[2])(*args), form("xla", shape[2])(*args))


def test_auto_is_the_kernel_on_tpu_and_the_xla_form_elsewhere():
    args = attention_inputs(14, 14, 2, 64)
    traced = form("auto", 2).trace(*args)
    assert "tpu_custom_call" in traced.lower(lowering_platforms=("tpu",)).as_text()
    assert "custom_call" not in traced.lower(lowering_platforms=("cpu",)).as_text()
    assert "tpu_custom_call" not in form("xla", 2).trace(*args).lower(lowering_platforms=("tpu",)).as_text()


def test_columns_and_lanes_are_inverse():
    for shape in SHAPES:
        t = attention_tiles.tiling_for(*shape)
        columns, lanes = attention_tiles.bias_columns(t), attention_tiles.column_lanes(t)
        for slot in range(len(columns)):
            bias = t.bias_lanes(slot)
            assert len(set(bias)) == t.h + t.w
            for part, table in ((bias[: t.h], 0), (bias[t.h :], lanes.shape[1] - 1)):
                there = np.take_along_axis(lanes[slot, table], columns[slot][:, part], axis=1)
                np.testing.assert_array_equal(there, np.broadcast_to(part, there.shape))
        assert (lanes >= 0).sum() == len(columns) * t.tokens * (t.h + t.w)


@pytest.mark.long
def test_a_mesh_splits_the_batch_and_nothing_else():
    args = attention_inputs(4, 6, 8, 16, batch=8)
    mesh = sharding.make_mesh(data=2, fsdp=4)
    placed = [
        jax.device_put(x, NamedSharding(mesh, PartitionSpec(sharding.AXES if x.ndim == 3 else None))) for x in args
    ]
    run, gradients = form("pallas", 8), _gradients("pallas", 8)
    text = run.lower(*placed).compile().as_text()
    assert "all-gather" not in text
    assert "f32[1,24,384]" in text  # one image per device
    np.testing.assert_allclose(run(*placed), form("xla", 8)(*args), atol=1e-5)
    for one, other in zip(gradients(*placed), _gradients("xla", 8)(*args), strict=True):
        np.testing.assert_allclose(one, other, atol=3e-5)


@pytest.mark.libtpu
@pytest.mark.parametrize(
    "shape", [(14, 14, 12, 64), (14, 14, 16, 64), (14, 14, 16, 80), (64, 64, 12, 64), (64, 64, 16, 80)]
)
def test_the_kernels_compile_for_tpu(shape):
    """Widths of ViT-B, L and H: forward and backward, one layer, with no tensor of tokens^2 in memory."""
    chip, devices = tpu_estimates.topology_devices("v5e:1")
    where = jax.sharding.SingleDeviceSharding(devices[0])
    args = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where) for x in attention_inputs(*shape, 1, jnp.bfloat16)]
    for run in (form("auto", shape[2]), _gradients("auto", shape[2])):
        found = tpu_estimates.compile_for(chip, run, *args)
        assert found.kernels == (1 if run is form("auto", shape[2]) else 2)
        assert found.temporaries < 0.15


@pytest.mark.libtpu
def test_the_kernels_compile_for_a_mesh_of_tpus():
    """Each chip takes its images; only the gradients of the tables are added up."""
    chip, devices = tpu_estimates.topology_devices("v5e:2x2")
    mesh = sharding.make_mesh(data=2, fsdp=2, devices=devices)
    args = [
        jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=NamedSharding(mesh, PartitionSpec(sharding.AXES if x.ndim == 3 else None))
        )
        for x in attention_inputs(14, 14, 2, 64, 8, jnp.bfloat16)
    ]
    forward = tpu_estimates.compile_for(chip, form("auto", 2), *args)
    assert (forward.kernels, forward.collectives) == (1, {})
    both = tpu_estimates.compile_for(chip, _gradients("auto", 2), *args)
    assert both.kernels == 2
    assert both.collectives.keys() == {"all-reduce"}
