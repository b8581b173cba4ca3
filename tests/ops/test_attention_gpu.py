"""The Triton kernels, interpreted on the CPU, against the XLA form; and what is lowered for CUDA, where no GPU is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from sam_jax import sharding
from sam_jax.ops import attention_gpu
from sam_jax.ops.attention import packed_attention
from tests.ops.attending import assert_equals_the_statement, attention_inputs, form

# (h, w, heads, D): fewer tokens than a block has; two blocks, the second not full; heads in two pieces, and rows that
# are padded to 32 keys.
SHAPES = [(4, 6, 3, 16), (7, 5, 2, 48), (3, 18, 1, 80)]
CALL = "__gpu$xla.gpu.triton"


@functools.cache
def _with_gradients(implementation, heads):
    """The result, then the gradients of all three arguments for some outer gradient."""

    def run(*args):
        out, back = jax.vjp(functools.partial(packed_attention, num_heads=heads, implementation=implementation), *args)
        outer = jnp.sin(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)
        return out, *back(outer.astype(out.dtype))

    return jax.jit(run)


@pytest.mark.parametrize("shape", [SHAPES[0], *(pytest.param(shape, marks=pytest.mark.long) for shape in SHAPES[1:])])
def test_results_and_gradients_equal_those_of_the_xla_form(shape):
    args = attention_inputs(*shape)
    ours, theirs = (_with_gradients(name, shape[2])(*args) for name in ("triton", "xla"))
    for one, other in zip(ours, theirs, strict=True):
        scale = np.abs(other).max()
        assert scale > 0.05
        np.testing.assert_allclose(one, other, atol=1e-5 * max(1.0, scale))


def test_the_kernel_equals_the_statement():
    assert_equals_the_statement("triton", *SHAPES[0])


def test_large_logits_do_not_overflow():
    heads, dim = SHAPES[0][2:]
    qkv, *tables = attention_inputs(*SHAPES[0])
    qkv = qkv.at[..., : heads * dim].multiply(100)  # queries: logits are hundreds
    np.testing.assert_allclose(form("triton", heads)(qkv, *tables), form("xla", heads)(qkv, *tables), atol=5e-3)


@pytest.mark.long
def test_bfloat16_is_as_close_to_float32_as_the_xla_form():
    """Both round the gradient of the logits to bfloat16, the kernel other intermediate results as well."""
    heads = SHAPES[1][2]
    rounded = attention_inputs(*SHAPES[1], dtype=jnp.bfloat16)
    exact = _with_gradients("xla", heads)(rounded[0].astype(jnp.float32), *rounded[1:])
    ours, theirs = (_with_gradients(name, heads)(*rounded) for name in ("triton", "xla"))
    for one, other, truth, slack in zip(ours, theirs, exact, (1.02, 1.4, 1.4, 1.4), strict=True):
        assert one.dtype == other.dtype
        errors = [np.abs(np.asarray(x, np.float32) - np.asarray(truth)).mean() for x in (one, other)]
        assert 0 < errors[0] <= slack * errors[1]


def test_a_mesh_splits_the_batch_and_nothing_else():
    args = attention_inputs(4, 6, 3, 16, batch=8)
    mesh = sharding.make_mesh(data=2, fsdp=4)
    placed = [
        jax.device_put(x, NamedSharding(mesh, PartitionSpec(sharding.AXES if x.ndim == 3 else None))) for x in args
    ]
    run = form("triton", 3).lower(*placed).compile()
    assert "all-gather" not in run.as_text()
    assert "f32[1,24,144]" in run.as_text()  # one image per device
    np.testing.assert_allclose(run(*placed), form("xla", 3)(*args), atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "dtype", "reason"),
    [
        ((4, 6, 8, 24), "float32", "24 channels; expected a multiple of 16 up to 128"),
        ((4, 6, 8, 144), "float32", "144 channels; expected a multiple of 16 up to 128"),
        ((4, 129, 1, 16), "float32", "grid is 4 x 129; its width is limited to 128"),
        ((4, 6, 1, 16), "float16", "the dtype is float16; expected float32 or bfloat16"),
    ],
)
def test_shapes_that_the_kernels_do_not_take(shape, dtype, reason):
    args = attention_inputs(*shape, batch=1, dtype=dtype)
    with pytest.raises(ValueError, match=f'attention "triton" does not take this shape: .*{reason}'):
        packed_attention(*args, num_heads=shape[2], implementation="triton")


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((14, 14, 12, 64), jnp.float32), ((64, 64, 12, 64), jnp.bfloat16), ((64, 64, 16, 80), jnp.float32)],
)
def test_sizes_of_sam_are_lowered_for_cuda_without_logits_in_memory(shape, dtype):
    args = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in attention_inputs(*shape, batch=1, dtype=dtype)]
    text = _with_gradients("triton", shape[2]).trace(*args).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count(CALL) == 3
    assert f"{shape[0] * shape[1]}x{shape[0] * shape[1]}x" not in text
    plain = form("xla", shape[2]).trace(*args).lower(lowering_platforms=("cuda",)).as_text()
    assert f"{shape[0] * shape[1]}x{shape[0] * shape[1]}x" in plain  # so the line above would see them


def test_only_triton_is_the_kernel_on_cuda_and_only_there():
    args = attention_inputs(14, 14, 2, 64)
    text = {
        (name, platform): form(name, 2).trace(*args).lower(lowering_platforms=(platform,)).as_text()
        for name in ("auto", "xla", "triton")
        for platform in ("cuda", "cpu")
    }
    assert [key for key, found in text.items() if CALL in found] == [("triton", "cuda")]


def test_pieces_of_a_head_are_powers_of_two_that_cover_it():
    for dim in range(16, 129, 16):
        pieces = attention_gpu.blocks_for(4, 4, 1, dim, jnp.float32).pieces
        assert [first for first, _ in pieces] == [0, *np.cumsum([size for _, size in pieces])[:-1]]
        assert sum(size for _, size in pieces) == dim
        assert all(size & (size - 1) == 0 and size >= 16 for _, size in pieces)
