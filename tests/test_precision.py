"""How exact products are, read from the programs that TPUs and GPUs would compile.

Both multiply float32 in fewer bits than it has, unless the program says "highest". No such machine is needed to see it.
"""

import ast
import dataclasses
import re
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import jaxprs_in_params

from sam_jax.config import FinetuneConfig, InteractionConfig, OptimConfig, TrainConfig
from sam_jax.evaluation import programs
from sam_jax.inference.encoding import encode_images
from sam_jax.inference.mask_candidates import examine
from sam_jax.inference.point_decoding import decode_points
from sam_jax.models.sam import Sam, init_variables
from sam_jax.ops import mask_decoder_tpu, mask_decoder_tpu_backward
from sam_jax.ops.attention import packed_attention
from sam_jax.ops.crf import refine_masks
from sam_jax.ops.mask_bits import Enlarging
from sam_jax.ops.masks import postprocess_masks
from sam_jax.structs import Prompts
from sam_jax.training.finetune import assemble, split_params
from sam_jax.training.optimizer import make_optimizer
from sam_jax.training.step import create_state, evaluation_step, train_step
from tests.tiny import SMALLEST, TINY

PLATFORMS = ("tpu", "cuda")
SIDE, GRID = TINY.image_size, TINY.image_encoder.grid_size
LOW = 4 * GRID
WITH_DETAILS = dataclasses.replace(TINY, details=8, crf=True)
PRODUCT = re.compile(
    r'(?:stablehlo\.dot_general|"?stablehlo\.convolution"?\().*?: \((tensor<.*?>), (tensor<.*?>)\)', re.S
)
ROOT = Path(__file__).parents[1]


def shape(*sides, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sides, dtype)


def model_of(config, dtype):
    """The model, and its variables as shapes: nothing here ever runs."""
    model = Sam(dataclasses.replace(config, dtype=dtype))
    return model, jax.eval_shape(lambda: init_variables(model, jax.random.key(0)))


def encoder(dtype):
    """An input that is not the native one: tables are resized as well; and everything else that is done to images."""
    model, variables = model_of(WITH_DETAILS, dtype)
    users_own = jax.jit(lambda variables, x: model.apply(variables, x, method="encode_image"))
    yield users_own.trace(variables, shape(1, SIDE + 16, SIDE, 3))
    yield encode_images.trace(model, variables, shape(1, SIDE, SIDE, 3, dtype=jnp.uint8), shape(1, 2, dtype=jnp.int32))


def scanned_encoder(dtype):
    scan = dataclasses.replace(TINY.image_encoder, scan=True, depth=2, global_attn_indexes=(0, 1))
    model, variables = model_of(dataclasses.replace(TINY, image_encoder=scan), dtype)
    yield jax.jit(partial(model.apply, method="encode_image")).trace(variables, shape(1, SIDE, SIDE, 3))


def decoder(dtype):
    """Few and many tokens, which take two ways through the transformer."""
    for config, points in ((TINY, 2), (WITH_DETAILS, 12)):
        model, variables = model_of(config, dtype)
        labels = shape(1, 2, points, dtype=jnp.int32)
        prompts = Prompts(shape(1, 2, points, 2), labels, mask_inputs=shape(1, 2, LOW, LOW))
        embeddings = shape(1, GRID, GRID, config.embedding_channels)
        yield jax.jit(partial(model.apply, method="predict_masks")).trace(variables, embeddings, prompts)


def everything_mode(dtype):
    model, variables = model_of(TINY, dtype)
    yield decode_points.trace(model, variables, shape(1, GRID, GRID, TINY.prompt_embed_dim), shape(4, 2), shape())
    pixels = pixels_of_an_image()
    for own, side in ((None, LOW), (pixels, 2 * LOW)):
        starts, parts = shape(1, dtype=jnp.int32), shape(1, 64, 8)
        known = Enlarging(shape(64, side), starts, parts, starts, parts), shape(2, dtype=jnp.int32), shape(3)
        yield examine.trace(shape(12, 16, GRID * GRID), shape(4, dtype=jnp.int32), *known, own)


def pixels_of_an_image():
    """What edge refinement needs of an image."""
    model, variables = model_of(dataclasses.replace(TINY, crf=True), "float32")
    images, sizes = shape(1, SIDE, SIDE, 3, dtype=jnp.uint8), shape(1, 2, dtype=jnp.int32)
    encoded = jax.eval_shape(partial(encode_images, model), variables, images, sizes)
    return jax.eval_shape(lambda encoded: encoded.one(0).pixels, encoded)


def masks_to_images(dtype):
    """From the decoder's grid to the original image, whatever the model's dtype."""
    sizes = (SIDE, SIDE - 9), (50, 41), (SIDE, SIDE)
    yield jax.jit(lambda x: postprocess_masks(x, *sizes)).trace(shape(2, LOW, LOW))
    yield jax.jit(refine_masks).trace(shape(1, 2, LOW, LOW), pixels_of_an_image(), shape(1, 4))
    yield programs.enlarge.trace(shape(1, 2, 3, LOW, LOW), shape(1, 56, LOW), shape(1, 64, LOW), 0.0)


@cache
def training_config(dtype):
    """A model of `dtype` that learns with Muon from masks finer than the decoder's, with all losses."""
    config = TrainConfig(
        sam=dataclasses.replace(SMALLEST, dtype=dtype),
        interaction=InteractionConfig(num_points=1, num_mask_only_steps=0),
        optim=OptimConfig(optimizer="muon"),
    )
    return dataclasses.replace(config, loss=dataclasses.replace(config.loss, affinity_weight=1.0))


def training(dtype):
    config = training_config(dtype)
    model, variables = model_of(config.sam, dtype)
    optimizer = make_optimizer(config.optim, config.sam, 9)
    state = jax.eval_shape(lambda v: create_state(v, optimizer), variables)
    batch = {
        "image": shape(1, SIDE, SIDE, 3, dtype=jnp.uint8),
        "input_size": shape(1, 2, dtype=jnp.int32),
        "masks": shape(1, 2, 2 * LOW, 2 * LOW, dtype=bool),
        "mask_valid": shape(1, 2, dtype=bool),
    }
    key = jax.eval_shape(lambda: jax.random.key(0))
    yield jax.jit(partial(train_step, model, config, optimizer)).trace(state, batch, key)
    yield jax.jit(partial(evaluation_step, model, config)).trace(state, batch, key)


def low_rank_training(dtype):
    config = FinetuneConfig(lora_rank=2)
    _, variables = model_of(SMALLEST, dtype)
    parts = jax.eval_shape(lambda v: split_params(config, v["params"], jax.random.key(0)), variables)
    yield jax.jit(partial(assemble, config)).trace(*parts)


PROGRAMS = (encoder, scanned_encoder, decoder, everything_mode, masks_to_images, training, low_rank_training)


def products(text):
    """(dtype of the left side, of the right side, whether it says "highest") of each product in a program."""
    found = [
        (*(re.search(r"x?(\w+)>", side.split("x")[-1]).group(1) for side in match.groups()), "HIGHEST" in match.group())
        for match in PRODUCT.finditer(text)
    ]
    assert len(found) == len(re.findall(r"stablehlo\.(?:dot_general|convolution)", text))
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_float32_is_multiplied_as_float32(program, dtype):
    seen = set()
    for traced in program(dtype):
        for platform in PLATFORMS:
            seen |= set(products(traced.lower(lowering_platforms=(platform,)).as_text()))
    assert seen
    wrong = {(a, b, highest) for a, b, highest in seen if highest != (a == b == "f32")}
    assert not wrong
    if program in (encoder, scanned_encoder, decoder, training):
        assert (("bf16", "bf16", False) in seen) == (dtype == "bfloat16")


def inner_products(jaxpr):
    """All dot_generals of a program as (dtypes, precision), those inside kernels included."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield tuple(str(x.aval.dtype) for x in equation.invars), equation.params["precision"]
        for inner in jaxprs_in_params(equation.params):
            yield from inner_products(inner)


def kernels(dtype):
    """The TPU kernels of global and windowed attention and of the decoder, with their gradients; those for GPUs."""
    qkv, table = shape(1, 256, 3 * 128, dtype=dtype), shape(31, 64)
    yield (
        jax.grad(lambda *x: packed_attention(*x, 2, "pallas").astype(jnp.float32).sum(), (0, 1, 2)),
        (qkv, table, table),
    )
    qkv, table = shape(2, 196, 3 * 640, dtype=dtype), shape(27, 80)  # heads that lanes have to be moved for
    yield (
        jax.grad(lambda *x: packed_attention(*x, 8, "pallas").astype(jnp.float32).sum(), (0, 1, 2)),
        (qkv, table, table),
    )
    qkv, table = shape(1, 24, 3 * 96, dtype=dtype), shape(7, 48)
    yield (
        jax.grad(lambda *x: packed_attention(*x, 2, "triton").astype(jnp.float32).sum(), (0, 1, 2)),
        (qkv, table, shape(11, 48)),
    )
    pixels, rows = shape(1, 2, 128, 256, dtype=dtype), shape(1, 2, 24, 128, dtype=dtype)
    pe, constants = shape(1, 1, 128, 256, dtype=dtype), shape(1, 2, 24, 1)
    words = jax.ShapeDtypeStruct((1, 2, 2, 1), jnp.uint32)
    weights = shape(128, 128, dtype=dtype), shape(3, 128, 1), shape(64, 32, dtype=dtype), shape(64, 1)
    for module, of_rows, of_pixels, of_masks in (
        (mask_decoder_tpu, (), (), ()),
        (mask_decoder_tpu_backward, (rows, pixels), (pixels,), (shape(1, 2, 4, 16, 256),)),
    ):
        yield partial(module.read_pixels, interpret=False), (rows, pixels, pe, *of_rows)
        update = partial(module.update_pixels, num_heads=8, epsilon=1e-5, keep=0.9, interpret=False)
        yield update, (pixels, pe, rows, constants, rows, shape(3, 128, 1), words, *of_pixels)
        upscale = partial(module.upscale, epsilon=1e-6, interpret=False)
        yield upscale, (pixels, *weights, shape(1, 2, 16, 64, dtype=dtype), *of_masks)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kernels_multiply_as_their_operands_promise(dtype):
    highest = (jax.lax.Precision.HIGHEST,) * 2
    for function, arguments in kernels(dtype):
        found = list(inner_products(jax.make_jaxpr(function)(*arguments).jaxpr))
        assert any(dtypes == (dtype, dtype) for dtypes, _ in found)
        for dtypes, precision in found:
            assert (precision == highest) == (dtypes == ("float32",) * 2), (dtypes, precision)


def test_all_products_are_taken_in_one_module():
    """Elsewhere a new product would forget how exact it has to be. Files without JAX may multiply as they like."""
    names = {"einsum", "matmul", "dot", "vdot", "inner", "tensordot", "dot_general", "conv_general_dilated", "conv"}
    layers = {"Dense", "DenseGeneral", "Conv", "ConvTranspose", "ConvLocal", "Einsum", "MultiHeadDotProductAttention"}
    owners = {"sam_jax/ops/products.py", "sam_jax/models/layers.py"}
    found = []
    for path in ROOT.glob("sam_jax/**/*.py"):
        file, text = path.relative_to(ROOT).as_posix(), path.read_text()
        if file in owners or not re.search(r"^(import|from) jax", text, re.M):
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
                found.append(f"{file}:{node.lineno}: @")
            known = isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("jnp", "lax", "jax.lax", "nn")
            if known and node.attr in names | layers:
                found.append(f"{file}:{node.lineno}: {ast.unparse(node)}")
    assert found == []
