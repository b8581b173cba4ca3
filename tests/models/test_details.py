"""Details: nothing until they are learned, then exactly where they belong, finer than the ViT's grid."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from sam_jax.config import MaskDecoderConfig, SamConfig
from sam_jax.models.details import DetailsToPixels, ImageDetails, pixel_embeddings, split_details
from sam_jax.models.sam import Sam, init_variables
from sam_jax.ops.planes import join_subpixels
from sam_jax.structs import Prompts
from tests.tiny import TINY, jitted, random_images, random_variables

DETAILED = dataclasses.replace(TINY, details=8)
GRID = (3, 5)
IMAGES = random_images(0, 2, 16 * GRID[0], 16 * GRID[1])
PROMPTS = Prompts(boxes=jnp.asarray([[[4.0, 5, 60, 40], [10, 10, 30, 20]]] * 2))


def _masks(config, variables):
    return jitted(config, "__call__")(variables, IMAGES, PROMPTS).low_res_masks


@pytest.mark.slow
def test_fresh_details_change_nothing():
    """Training can begin with the weights of a model that has none."""
    variables = random_variables(TINY)
    leaves = flatten_dict(init_variables(Sam(DETAILED), jax.random.key(1)))
    for path, known in flatten_dict(variables).items():
        # A hypernetwork's weights of the details begin at zero.
        leaves[path] = np.pad(known, [(0, n - m) for n, m in zip(leaves[path].shape, known.shape, strict=True)])
    with_details = unflatten_dict(leaves)
    np.testing.assert_allclose(_masks(DETAILED, with_details), _masks(TINY, variables), atol=2e-5)


def test_embeddings_carry_them_and_the_config_says_how_many():
    for config in (TINY, DETAILED):
        embeddings = jitted(config, "encode_image")(random_variables(config), IMAGES)
        assert embeddings.shape == (2, *GRID, config.embedding_channels)
    assert DETAILED.embedding_channels == 4 * TINY.embedding_channels + 16 * 8


def test_each_sub_pixel_gets_its_own_details():
    """Planes joined again are what the two layers make of each place of the details."""
    dim, rng = 16, np.random.default_rng(0)
    details = rng.standard_normal((2, 4 * GRID[0], 4 * GRID[1], 8)).astype(np.float32)
    tokens = rng.standard_normal((2, *GRID, 12)).astype(np.float32)
    layer = DetailsToPixels(dim)
    shapes = jax.eval_shape(layer.init, jax.random.key(0), details, tokens)["params"]
    params = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), shapes)
    embeddings = jnp.concatenate([jnp.zeros((2, *GRID, dim)), layer.apply({"params": params}, details, tokens)], -1)
    proper, (first, second, masks) = split_details(embeddings, dim)
    assert not proper.any()
    details = np.asarray(pixel_embeddings(masks, GRID))  # what both layers see
    joined = join_subpixels(masks[:, 0].swapaxes(1, 2), GRID)
    np.testing.assert_array_equal(joined, details.transpose(0, 3, 1, 2))
    # (B, 1, 4, 4 G, S): sub-pixel of the first enlargement, then of the second, then channels.
    second = second.reshape(2, 4, 4, dim // 8, -1).transpose(0, 3, 1, 2, 4).reshape(2, dim // 8, 16, -1)
    expected = details @ params["second"]["kernel"] + params["second"]["bias"]
    np.testing.assert_allclose(join_subpixels(second, GRID), expected.transpose(0, 3, 1, 2), atol=1e-5)
    first = np.asarray(first[:, 0]).reshape(2, 2, 2, dim // 4, *GRID)
    for b, i, j, y, x in np.ndindex(2, 2, 2, *GRID):
        top, left = 4 * y + 2 * i, 4 * x + 2 * j
        square = details[b, top : top + 2, left : left + 2].reshape(-1)
        wanted = square @ params["first"]["kernel"] + params["first"]["bias"]
        np.testing.assert_allclose(first[b, i, j, :, y, x], wanted, atol=1e-4)


def test_features_see_20_pixels_and_no_more():
    """One cell's own 4 x 4 pixels, and two cells on every side."""
    layer, stride = ImageDetails(8, 4), 4
    params = layer.init(jax.random.key(0), IMAGES[:1])
    changed = IMAGES[:1].copy()
    changed[0, 24, 40] += 1.0
    seen = np.abs(layer.apply(params, changed) - layer.apply(params, IMAGES[:1]))[0].max(axis=-1) > 1e-6
    rows, columns = np.nonzero(seen)
    assert (rows.min(), rows.max()) == (24 // stride - 2, 24 // stride + 2)
    assert (columns.min(), columns.max()) == (40 // stride - 2, 40 // stride + 2)


def test_a_pixel_moves_the_mask_at_its_own_place_most():
    """The way from image to mask is not scrambled anywhere: without ViT, neck and prompts, only details are left."""
    variables = random_variables(DETAILED)
    embeddings = jitted(DETAILED, "encode_image")(variables, IMAGES)
    moved = embeddings.at[:, 1, 3, DETAILED.prompt_embed_dim :].multiply(2.0)
    decode = jitted(DETAILED, "decode_masks", multimask_output=False)
    change = np.abs(
        decode(variables, moved, PROMPTS).low_res_masks - decode(variables, embeddings, PROMPTS).low_res_masks
    )
    inside = change[..., 4:8, 12:16]
    assert (inside.max(axis=(-2, -1)) > 0).all()
    change[..., 4:8, 12:16] = 0
    assert change.max() == 0


@pytest.mark.slow
def test_every_parameter_of_the_details_learns():
    variables = random_variables(DETAILED)

    def loss(params):
        masks = Sam(DETAILED).apply(variables | {"params": params}, IMAGES, PROMPTS).low_res_masks
        return (masks * jnp.asarray(random_images(3, *masks.shape)[..., 0])).sum()

    gradients = flatten_dict(jax.jit(jax.grad(loss))(variables["params"])["image_encoder"], sep="/")
    learned = {path: float(jnp.abs(x).max()) for path, x in gradients.items() if path.startswith("details")}
    assert len(learned) == 30
    assert min(learned.values()) > 1e-6, learned


@pytest.mark.long
def test_bfloat16_is_close():
    variables = random_variables(DETAILED)
    low = dataclasses.replace(DETAILED, dtype="bfloat16")
    exact, rounded = _masks(DETAILED, variables), _masks(low, variables)
    assert np.abs(exact - rounded).mean() < 0.05 * np.abs(exact).mean()


def test_kernels_are_refused_rather_than_passed_over():
    with pytest.raises(ValueError, match='must be "auto" or "xla", not "pallas"'):
        SamConfig(details=32, mask_decoder=MaskDecoderConfig(kernels="pallas"))


def test_hypernetworks_weigh_the_details():
    """Masks are what they are without, plus the product of each prompt's weights and the shared features."""
    variables = random_variables(DETAILED)
    embeddings = jitted(DETAILED, "encode_image")(variables, IMAGES)
    dim = DETAILED.prompt_embed_dim
    decode = jitted(DETAILED, "decode_masks", multimask_output=False)
    features = np.asarray(pixel_embeddings(split_details(embeddings, dim)[1].masks, GRID))
    twice = embeddings.at[..., 4 * dim :].multiply(2.0)
    plain = embeddings.at[..., 4 * dim :].multiply(0.0)
    masks, doubled, bare = (decode(variables, x, PROMPTS).low_res_masks[:, :, 0] for x in (embeddings, twice, plain))
    shared = masks - bare
    np.testing.assert_allclose(doubled - masks, shared, atol=1e-4)
    # Eight weights explain every pixel of a mask.
    for b, n in np.ndindex(2, 2):
        weights, *_ = np.linalg.lstsq(features[b].reshape(-1, 8), np.ravel(shared[b, n]), rcond=None)
        np.testing.assert_allclose(features[b] @ weights, shared[b, n], atol=1e-4)


def test_they_follow_the_size_of_the_patches():
    encoder = dataclasses.replace(TINY.image_encoder, patch_size=8, image_size=40)
    config = dataclasses.replace(DETAILED, image_encoder=encoder)
    embeddings = jitted(config, "encode_image")(random_variables(config), random_images(0, 1, 24, 40))
    assert embeddings.shape == (1, *GRID, config.embedding_channels)
    with pytest.raises(ValueError, match="patch_size that is a multiple of 4, not 10"):
        dataclasses.replace(config, image_encoder=dataclasses.replace(encoder, patch_size=10))
