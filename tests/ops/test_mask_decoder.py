"""The mask decoder's TPU kernels, interpreted, against the form that every platform compiles."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from sam_jax import sharding
from sam_jax.models.sam import Sam
from sam_jax.ops import mask_decoder
from sam_jax.ops.random_bits import Dropping
from sam_jax.structs import Prompts
from tests.tiny import TINY, random_embeddings, random_variables

B, N, C, S, HEADS, TOKENS = 2, 3, 128, 384, 8, 5  # three blocks of 128 pixels
ROWS = TOKENS * HEADS


def _random(seed, *shape, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def _update(dtype):
    rows, values = _random(1, B, N, ROWS, C, dtype=dtype) / 8, _random(2, B, N, ROWS, C, dtype=dtype)
    valid = np.random.default_rng(3).random((B, N, TOKENS)) < 0.7
    valid[..., 0] = True
    constants = np.where(valid[..., None], _random(4, B, N, TOKENS, HEADS), -np.inf).reshape(B, N, ROWS, 1)
    norm = _random(5, C), _random(6, C), _random(7, C)
    return mask_decoder.PixelUpdate(rows, jnp.asarray(constants, jnp.float32), values, *norm)


def _upscaling(dtype):
    first, bias = _random(1, 4, C // 4, C, dtype=dtype) / 8, _random(2, C // 4, dtype=dtype)
    first, bias = first - first.mean(1, keepdims=True), bias - bias.mean()
    norm = _random(3, C // 4), _random(4, C // 4)
    second = _random(5, 4, C // 8, C // 4, dtype=dtype) / 4, _random(6, C // 8, dtype=dtype)
    return mask_decoder.Upscaling(first.astype(dtype), bias.astype(dtype), *norm, *second)


def _operation(name, owners, dtype):
    """A function of an implementation and of arrays that it may be differentiated by, and these arrays."""
    pixels, image_pe = _random(8, B, owners, C, S, dtype=dtype), _random(9, 1, 1, C, S, dtype=dtype)
    if name == "read":
        rows, kernel = _random(1, B, N, ROWS, C, dtype=dtype) / 8, _random(2, HEADS, C, 16, dtype=dtype) / 8
        return _read_and_use, (rows, kernel, _random(3, HEADS * 16), pixels, image_pe)
    if name.startswith("update"):
        words = jax.random.bits(jax.random.key(10), (2, B, N, 1, 1))
        options = {"drop": Dropping(words, 0.7)} if name == "update with dropout" else {}
        return lambda how, *args: mask_decoder.update_pixels(*args, HEADS, 1e-5, how, **options), (
            _update(dtype),
            pixels,
            image_pe,
        )
    pixels = _random(8, B, N, C, S, dtype=dtype)
    arguments = _upscaling(dtype), _random(9, B, N, 3, C // 8, dtype=dtype), pixels
    return lambda how, *args: mask_decoder.upscale(*args, HEADS, 1e-6, how), arguments


def _read_and_use(how, *args):
    """What is read, beside the pixels that are returned, as the decoder uses them next."""
    read, pixels = mask_decoder.read_pixels(*args, how)
    return jnp.concatenate([read.ravel(), (pixels * pixels).ravel()])


# Pixels of each prompt's own, or shared by all prompts of an image.
CASES = pytest.mark.parametrize(
    ("name", "owners"),
    [("read", N), ("read", 1), ("update", N), ("update", 1), ("update with dropout", N), ("upscale", N)],
)


@CASES
def test_kernels_are_the_xla_form(name, owners):
    run, arguments = _operation(name, owners, jnp.float32)
    expected = jax.jit(partial(run, "xla"))(*arguments)
    found = jax.jit(partial(run, "pallas"))(*arguments)
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found / scale, expected / scale, atol=1e-5)


@CASES
def test_kernels_of_bfloat16_are_no_further_from_float32(name, owners):
    """The XLA form op by op: compiled for CPUs it leaves out the roundings that it has on TPUs."""
    run, arguments = _operation(name, owners, jnp.bfloat16)
    exact = run("xla", *jax.tree.map(lambda x: x.astype(jnp.float32), arguments))
    errors = [np.abs(run(how, *arguments).astype(jnp.float32) - exact).mean() for how in ("pallas", "xla")]
    assert 0 < errors[0] <= errors[1]


@CASES
def test_gradients_are_those_of_the_xla_form(name, owners):
    run, arguments = _operation(name, owners, jnp.float32)

    def slopes(how):
        return jax.jit(jax.grad(lambda args: jnp.sum(jnp.sin(run(how, *args)))))(arguments)

    for found, expected in zip(jax.tree.leaves(slopes("pallas")), jax.tree.leaves(slopes("xla")), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.long
@pytest.mark.parametrize("name", ["read", "update with dropout", "upscale"])
def test_a_mesh_splits_the_batch_and_sums_gradients(name):
    """Two devices, an image each: values and gradients of one device that has both."""
    run, arguments = _operation(name, N, jnp.float32)
    mesh = sharding.make_mesh(data=B, devices=jax.devices()[:B])
    leaves, tree = jax.tree.flatten(arguments)
    of_images = {(B, N, *x.shape[2:]) for x in leaves if x.ndim == 4 and x.shape[:2] == (B, N)}
    placed = [
        jax.device_put(x, NamedSharding(mesh, PartitionSpec("data" if x.shape in of_images else None))) for x in leaves
    ]

    @jax.jit
    def slopes(arguments):
        return jax.value_and_grad(lambda args: jnp.sum(jnp.sin(run("pallas", *args))))(arguments)

    alone, divided = slopes(arguments), slopes(jax.tree.unflatten(tree, placed))
    for found, expected in zip(jax.tree.leaves(divided), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5 * max(np.abs(expected).max(), 1.0))


def _config(kernels):
    decoder = dataclasses.replace(TINY.mask_decoder, num_heads=HEADS, kernels=kernels)
    encoder = dataclasses.replace(TINY.image_encoder, image_size=256)
    return dataclasses.replace(TINY, image_encoder=encoder, mask_decoder=decoder, prompt_embed_dim=C)


@pytest.mark.parametrize("fed_back", [False, True])
@pytest.mark.parametrize("grid", [(16, 16), pytest.param((8, 16), marks=pytest.mark.slow)])
def test_the_whole_decoder_with_kernels(grid, fed_back):
    """A point, points with one missing, with and without masks that are fed back; 8 tokens, which fold."""
    variables = random_variables(_config("xla"))
    embeddings = random_embeddings(1, 2, grid, _config("xla"))
    prompts = Prompts(
        point_coords=16 * _random(2, 2, 3, 2, 2) + 100,
        point_labels=jnp.asarray(np.tile([[1, 0], [1, -1], [0, 1]], (2, 1, 1))),
        mask_inputs=_random(3, 2, 3, 4 * grid[0], 4 * grid[1]) if fed_back else None,
    )
    xla, kernels = (
        jax.jit(partial(Sam(_config(how)).apply, method="predict_masks"))(variables, embeddings, prompts)
        for how in ("xla", "pallas")
    )
    for found, expected in zip(jax.tree.leaves(kernels), jax.tree.leaves(xla), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.long
def test_the_whole_decoder_is_trained_by_kernels():
    """Gradients of a step with dropout and a mask that is fed back, by kernels and by XLA."""
    variables = random_variables(_config("xla"))
    embeddings = random_embeddings(1, 2, (16, 16), _config("xla"))
    prompts = Prompts(
        point_coords=16 * _random(2, 2, 3, 2, 2) + 100,
        point_labels=jnp.asarray(np.tile([[1, 0], [1, -1], [0, 1]], (2, 1, 1))),
        mask_inputs=_random(3, 2, 3, 64, 64),
    )

    def loss(config, learned):
        params, embeddings = learned
        found = Sam(config).apply(
            {"params": params, "constants": variables["constants"]},
            embeddings,
            prompts,
            method="predict_planes",
            deterministic=False,
            rngs={"dropout": jax.random.key(4)},
        )
        return sum(jnp.square(jnp.sin(x)).mean() for x in found)

    learned = {k: v for k, v in variables["params"].items() if k != "image_encoder"}, embeddings
    slopes = []
    for how in ("xla", "pallas"):
        config = _config(how)
        config = dataclasses.replace(config, mask_decoder=dataclasses.replace(config.mask_decoder, dropout_rate=0.2))
        slopes.append(jax.jit(jax.grad(partial(loss, config)))(learned))
    for expected, found in zip(*map(jax.tree.leaves, slopes), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4 * max(np.abs(expected).max(), 1e-3))


@pytest.mark.parametrize(
    ("channels", "size", "heads", "words"),
    [
        (32, 256, 8, "32 channels and 256 pixels are not both multiples of 128"),
        (128, 25, 8, "128 channels and 25 pixels"),
        (128, 256, 4, "4 heads are not a multiple of 8"),
        (128, 65536, 8, "take more than 8 MiB"),
    ],
)
def test_other_shapes_fall_back_or_are_an_error(channels, size, heads, words):
    rows, kernel, bias = _random(0, 1, 1, heads, channels), _random(1, heads, channels, 4), jnp.zeros(4 * heads)
    arguments = rows, kernel, bias, _random(2, 1, 1, channels, size), _random(3, 1, 1, channels, size)
    expected, _ = mask_decoder.read_pixels(*arguments, "xla")
    np.testing.assert_array_equal(mask_decoder.read_pixels(*arguments, "auto")[0], expected)
    with pytest.raises(ValueError, match=words):
        mask_decoder.read_pixels(*arguments, "pallas")
