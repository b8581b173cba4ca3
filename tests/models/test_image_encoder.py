"""The image encoder: windows, sizes, drop path, rematerialisation, errors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam_jax.models.image_encoder import Attention, ImageEncoder, Windows
from sam_jax.models.layers import resize_rel_pos
from sam_jax.models.sam import Sam, inference_variables, init_variables
from sam_jax.ops.attention import relative_positions
from tests.statements import attention_with_rel_pos
from tests.tiny import TINY, jitted, random_images, random_variables

CONFIG = TINY.image_encoder


def _with_encoder(**changes):
    return dataclasses.replace(TINY, image_encoder=dataclasses.replace(CONFIG, **changes))


def _stated_window_attention(p, x, window):
    """The official order: pad with zeros, project, attend in each window without a mask, project, cut off."""
    b, h, w, c = x.shape
    x = np.pad(x, ((0, 0), (0, -h % window), (0, -w % window), (0, 0)))
    qkv = x @ p["qkv"]["kernel"] + p["qkv"]["bias"]
    out = np.zeros_like(x)
    tables = (resize_rel_pos(p[name], window) for name in ("rel_pos_h", "rel_pos_w"))
    rel_h, rel_w = (np.asarray(relative_positions(table)) for table in tables)
    for i in range(0, x.shape[1], window):
        for j in range(0, x.shape[2], window):
            here = np.s_[:, i : i + window, j : j + window]
            tokens = qkv[here].reshape(b, window**2, 3, CONFIG.num_heads, -1).transpose(2, 0, 3, 1, 4)
            mixed = attention_with_rel_pos(*tokens, rel_h, rel_w)
            out[here] = mixed.transpose(0, 2, 1, 3).reshape(b, window, window, c)
    return (out @ p["proj"]["kernel"] + p["proj"]["bias"])[:, :h, :w]


def assert_same_with_gradients(one, other, tree, images):
    """Two configs have the same embeddings of images, and gradients by the same tree of parameters."""

    def run(config):
        def loss(params):
            out = Sam(config).apply({**tree, "params": params}, images, method="encode_image")
            return (out * jnp.arange(out.shape[-1])).mean(), out

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(tree["params"])

    ((_, out), grads), ((_, same), same_grads) = run(one), run(other)
    np.testing.assert_allclose(out, same, atol=2e-5)
    assert jax.tree.structure(grads) == jax.tree.structure(same_grads)
    for found, expected in zip(jax.tree.leaves(grads), jax.tree.leaves(same_grads), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4 * max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize("grid", [(5, 5), (4, 7), (3, 6), (2, 1)])
def test_windows_equal_padding_first(variables, grid):
    p = variables["params"]["image_encoder"]["blocks_0"]["attn"]
    x = np.random.default_rng(0).standard_normal((2, *grid, CONFIG.embed_dim)).astype(np.float32)
    out = Attention(CONFIG, CONFIG.window_size, jnp.float32).apply({"params": p}, x)
    np.testing.assert_allclose(out, _stated_window_attention(p, x, CONFIG.window_size), atol=1e-5)


def test_padding_takes_part_in_windows(variables):
    """The statement above would not notice a mask over the padding if the padding had no weight."""
    p = jax.tree.map(np.array, variables["params"]["image_encoder"]["blocks_0"]["attn"])
    x = np.random.default_rng(0).standard_normal((1, 5, 5, CONFIG.embed_dim)).astype(np.float32)
    module = Attention(CONFIG, CONFIG.window_size, jnp.float32)
    before = module.apply({"params": p}, x)
    value_bias = slice(2 * CONFIG.embed_dim, None)
    p["qkv"]["bias"][value_bias] += 1
    moved = np.asarray(module.apply({"params": p}, x) - before)
    # Every output moves by proj(1), padded windows included: weights over real and padded tokens sum to one.
    np.testing.assert_allclose(moved, np.broadcast_to(p["proj"]["kernel"].sum(axis=0), moved.shape), atol=1e-5)


@pytest.mark.parametrize("grid", [(5, 5), (4, 7), (3, 6), (2, 1)])
def test_windows_split_and_join(grid):
    windows = Windows(3, *grid)
    x = np.random.default_rng(0).standard_normal((2, *grid, 4)).astype(np.float32)
    split = np.asarray(windows.split(x))
    assert split.shape == (2, np.prod(windows.counts), 9, 4)
    np.testing.assert_array_equal(split[:, 0, :2], x[:, 0, :2] if grid[1] > 1 else split[:, 0, :2])
    np.testing.assert_array_equal(windows.join(split), x)
    assert windows.is_padded == (not windows.real().all()) == (grid != (3, 6))
    # Padding is zero, and the mask says where it is.
    np.testing.assert_array_equal(np.where(windows.real(), split, 1) != 0, np.ones_like(split, bool))
    np.testing.assert_array_equal(np.where(windows.real(), 0, split), 0)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"remat": True, "token_order": "windows"}])
def test_a_loop_over_groups_of_blocks_equals_single_blocks(options):
    """Values and gradients, with the same tree of parameters."""
    groups = {"depth": 4, "global_attn_indexes": (1, 3)} | options
    tree, images = random_variables(_with_encoder(**groups)), random_images(9, 2, 80, 112)

    assert_same_with_gradients(*(_with_encoder(**groups, scan=scan) for scan in (True, False)), tree, images)
    shapes = jax.eval_shape(lambda: init_variables(Sam(_with_encoder(**groups, scan=True)), jax.random.key(0)))
    assert jax.tree.structure(shapes) == jax.tree.structure(tree)


def test_a_loop_needs_equal_groups():
    with pytest.raises(ValueError, match=r"there are 3 blocks with global_attn_indexes \(1,\)"):
        _with_encoder(scan=True)


@pytest.mark.parametrize("scan", [False, True])
def test_drop_path_of_a_loop_draws_anew_for_every_block(scan):
    """Of two blocks the first keeps both branches, the second drops each in half of the images."""
    config = _with_encoder(depth=2, global_attn_indexes=(0, 1), drop_path_rate=0.5, scan=scan)
    encode = jitted(config, "encode_image", deterministic=False)
    images = np.repeat(random_images(2, 1, 80, 80), 32, axis=0)
    out = encode(random_variables(config), images, rngs={"drop_path": jax.random.key(0)})
    kinds = np.unique(np.round(np.asarray(out).reshape(32, -1), 3), axis=0)
    assert len(kinds) == 4  # neither, one, the other, both of the second block's branches


@pytest.mark.parametrize("size", [(80, 80), (64, 112), (16, 16), (96, 48)])
@pytest.mark.parametrize("globals_", [(1,), (), (0, 2)])
def test_window_order_changes_nothing(variables, size, globals_):
    """Grids that the window of 3 divides and not, not square, smaller than a window; groups of one, two, three."""
    tree = jax.tree.map(np.array, variables)
    encoder = tree["params"]["image_encoder"]
    for i in range(CONFIG.depth):  # tables as long as each block needs them
        side = CONFIG.grid_size if i in globals_ else CONFIG.window_size
        for name in ("rel_pos_h", "rel_pos_w"):
            encoder[f"blocks_{i}"]["attn"][name] = np.resize(encoder["blocks_0"]["attn"][name], (2 * side - 1, 16))
    images = random_images(6, 2, *size)
    in_grid, in_windows = (
        jitted(_with_encoder(token_order=order, global_attn_indexes=globals_), "encode_image")(tree, images)
        for order in ("grid", "windows")
    )
    np.testing.assert_allclose(in_windows, in_grid, atol=2e-5)


def test_bfloat16_keeps_tokens_in_window_order(variables):
    images = random_images(7, 1, 80, 80)
    # The hidden layer of the MLP sees 4 windows x 9 tokens, or the 25 tokens of the grid.
    for order, seen in (("auto", 36), ("grid", 25), ("windows", 36)):
        config = dataclasses.replace(_with_encoder(token_order=order), dtype="bfloat16")
        program = jitted(config, "encode_image").lower(variables, images).as_text()
        assert [n in program for n in ("tensor<36x128xbf16>", "tensor<25x128xbf16>")] == [seen == 36, True]


def test_inference_variables_give_the_same_numbers_from_half_the_bytes(variables):
    config = dataclasses.replace(TINY, dtype="bfloat16")
    kept = inference_variables(config, variables)
    encode, images = jitted(config, "encode_image"), random_images(8, 1, 80, 80)
    np.testing.assert_array_equal(encode(kept, images), encode(variables, images))
    encoder = jax.tree.leaves(kept["params"]["image_encoder"])
    assert sum(x.nbytes for x in encoder) < 0.6 * sum(4 * x.size for x in encoder)
    assert inference_variables(TINY, variables) is variables


@pytest.mark.parametrize(
    "order", [pytest.param("grid", marks=pytest.mark.slow), pytest.param("windows", marks=pytest.mark.long)]
)
def test_the_encoder_with_tpu_kernels_equals_the_one_without(order):
    """Kernels interpreted in both kinds of blocks, on a grid of 5 x 7 and windows of 3; values and gradients."""
    wide = {"embed_dim": 128, "num_heads": 8, "depth": 2, "remat": True, "token_order": order}
    tree = random_variables(_with_encoder(**wide))
    images = random_images(9, 2, 80, 112)

    assert_same_with_gradients(
        *(_with_encoder(**wide, attention=attention) for attention in ("pallas", "xla")), tree, images
    )


@pytest.mark.long
@pytest.mark.parametrize("order", ["grid", "windows"])
def test_the_encoder_of_bfloat16_with_tpu_kernels_is_no_further_from_float32(order):
    """Here norms and dense layers are kernels as well; with windows, some of which are padded."""
    wide = {"embed_dim": 128, "num_heads": 8, "depth": 2, "token_order": order}
    exact, images = _with_encoder(**wide), random_images(9, 2, 80, 112)
    variables = random_variables(exact)
    expected, errors = jitted(exact, "encode_image")(variables, images), {}
    for how in ("pallas", "xla"):
        config = dataclasses.replace(_with_encoder(**wide, attention=how), dtype="bfloat16")
        program = jax.jit(lambda variables, config=config: Sam(config).apply(variables, images, method="encode_image"))
        assert ("name=norm_dense" in str(jax.make_jaxpr(program)(variables))) == (how == "pallas")
        errors[how] = np.abs(program(variables) - expected).mean()
    assert 0 < errors["pallas"] <= 1.1 * errors["xla"]


@pytest.mark.long
def test_the_encoder_with_gpu_kernels_equals_the_one_without():
    """Kernels interpreted in both kinds of blocks, on a grid of 5 x 7 and windows of 3."""
    wide = {"depth": 2}
    variables, images = random_variables(_with_encoder(**wide)), random_images(9, 2, 80, 112)
    ours, theirs = (
        jitted(_with_encoder(**wide, attention=attention), "encode_image")(variables, images)
        for attention in ("triton", "xla")
    )
    np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize("size", [(80, 80), (64, 112), (112, 64), (16, 16), (160, 160)])
def test_other_input_sizes(variables, size):
    out = jitted(TINY, "encode_image")(variables, random_images(0, 1, *size))
    assert out.shape == (1, size[0] // 16, size[1] // 16, TINY.prompt_embed_dim)
    assert out.dtype == jnp.float32
    assert np.isfinite(out).all()


def test_a_batch_equals_its_images_alone(variables):
    images = random_images(1, 3, 64, 80)
    encode = jitted(TINY, "encode_image")
    together = encode(variables, images)
    for i in range(3):
        np.testing.assert_allclose(together[i : i + 1], encode(variables, images[i : i + 1]), atol=1e-5)


def test_drop_path_is_off_unless_training(variables):
    config, images = _with_encoder(drop_path_rate=0.5), random_images(2, 1, 80, 80)
    plain = jitted(TINY, "encode_image")(variables, images)
    np.testing.assert_array_equal(jitted(config, "encode_image")(variables, images), plain)


def test_drop_path_draws_anew_for_every_key_and_image(variables):
    encode = jitted(_with_encoder(drop_path_rate=0.5), "encode_image", deterministic=False)
    images = np.repeat(random_images(2, 1, 80, 80), 16, axis=0)
    one, same, other = (encode(variables, images, rngs={"drop_path": jax.random.key(key)}) for key in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 0.1
    assert np.abs(one - one[:1]).max() > 0.1


def test_drop_path_grows_with_depth(variables):
    """Of 64 equal images all leave block 0 alike; each later block makes more kinds of them."""
    encoder = ImageEncoder(dataclasses.replace(CONFIG, drop_path_rate=0.5), TINY.prompt_embed_dim)
    names = [f"blocks_{i}" for i in range(CONFIG.depth)]

    @jax.jit
    def run(images, deterministic_key):
        _, state = encoder.apply(
            {"params": variables["params"]["image_encoder"]},
            images,
            False,
            rngs={"drop_path": deterministic_key},
            capture_intermediates=True,
            mutable="intermediates",
        )
        return [state["intermediates"][name]["__call__"][0] for name in names]

    images = np.repeat(random_images(3, 1, 80, 80), 64, axis=0)
    outputs = [np.asarray(x).reshape(64, -1) for x in run(images, jax.random.key(0))]
    kinds = [len(np.unique(np.round(x, 3), axis=0)) for x in outputs]
    assert kinds[0] == 1
    assert 2 <= kinds[1] <= 4  # two residual branches, each kept or dropped
    assert kinds[2] > kinds[1]


def test_remat_changes_neither_values_nor_gradients(variables):
    images = random_images(4, 1, 48, 64)
    one_block = {"depth": 1, "global_attn_indexes": ()}

    def loss(remat):
        model = Sam(_with_encoder(**one_block, remat=remat))

        def fn(params):
            out = model.apply({"params": params, "constants": variables["constants"]}, images, method="encode_image")
            return (out * jnp.arange(out.shape[-1])).sum()

        return jax.jit(jax.value_and_grad(fn))

    (value, grads), (same_value, same_grads) = (loss(remat)(variables["params"]) for remat in (False, True))
    np.testing.assert_allclose(value, same_value, rtol=1e-5)
    for one, other in zip(jax.tree.leaves(grads), jax.tree.leaves(same_grads), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * max(1.0, np.abs(one).max()))


@pytest.mark.parametrize("shape", [(1, 80, 81, 3), (1, 3, 80, 80), (80, 80, 3), (1, 80, 80, 1)])
def test_wrong_shapes_are_named(shape, tiny, variables):
    with pytest.raises(ValueError, match=rf"{shape}.*multiples of 16".replace("(", r"\(").replace(")", r"\)")):
        Sam(tiny).apply(variables, np.zeros(shape, np.float32), method="encode_image")
