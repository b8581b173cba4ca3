"""The prompt encoder: what becomes a token, which tokens count, and what it refuses."""

import numpy as np
import pytest

from sam_jax.models.prompt_encoder import prompt_shape
from sam_jax.models.sam import Sam
from sam_jax.structs import Prompts
from tests.tiny import TINY

GRID, FRAME = (4, 7), (64, 112)


@pytest.fixture(scope="module")
def embed(variables):
    def run(prompts, frame=FRAME):
        return Sam(TINY).apply(variables, prompts, method=lambda model, p: model.prompt_encoder(p, GRID, frame))

    return run


def points(*coords, labels):
    return {
        "point_coords": np.array([[coords]], np.float32),
        "point_labels": np.array([[labels]], np.int32),
    }


BOX = {"boxes": np.array([[[10, 20, 60, 40]]], np.float32)}


@pytest.mark.parametrize(
    ("prompts", "flags"),
    [
        (points((3, 4), labels=[1]), [True, True]),  # and the token of the missing box
        (points((3, 4), (5, 6), labels=[1, -1]), [True, False, True]),
        (points((3, 4), labels=[-1]), [False, False]),
        (BOX, [True, True]),
        (BOX | points((3, 4), labels=[0]), [True, True, True]),
        (BOX | points((3, 4), labels=[0]) | {"box_valid": np.array([[False]])}, [True, True, False]),
        (BOX | points((3, 4), labels=[0]) | {"box_valid": np.array([[True]])}, [True, True, True]),
        (BOX | points((3, 4), labels=[-1]) | {"box_valid": np.array([[False]])}, [False, False, False]),
        ({"mask_inputs": np.zeros((1, 1, 16, 28), np.float32)}, []),
        ({"valid": np.array([[True]])}, []),
    ],
)
def test_which_tokens_count(embed, prompts, flags):
    assert embed(Prompts(**prompts)).sparse_valid[0, 0].tolist() == flags


def test_points_are_pixel_centres_of_the_padded_frame(embed, variables):
    """Fourier features of (x, y) + 0.5 over (width, height), spelled out."""
    token = embed(Prompts(**points((30, 9), labels=[1]))).sparse[0, 0, 0]
    matrix = variables["constants"]["prompt_encoder"]["pe_layer"]["positional_encoding_gaussian_matrix"]
    angles = 2 * np.pi * (2 * np.array([30.5 / 112, 9.5 / 64]) - 1) @ matrix.astype(np.float64)
    label = variables["params"]["prompt_encoder"]["point_embeddings_1"][0]
    np.testing.assert_allclose(token, np.concatenate([np.sin(angles), np.cos(angles)]) + label, atol=1e-5)


def test_boxes_are_labelled_corners(embed, variables):
    corners = embed(Prompts(**BOX)).sparse[0, 0]
    table = variables["params"]["prompt_encoder"]
    for corner, xy, name in zip(
        corners, [(10, 20), (60, 40)], ("point_embeddings_2", "point_embeddings_3"), strict=True
    ):
        as_point = embed(Prompts(**points(xy, labels=[0]))).sparse[0, 0, 0]
        np.testing.assert_allclose(corner, as_point - table["point_embeddings_0"][0] + table[name][0], atol=1e-5)


def test_a_missing_box_takes_the_first_corners_place(embed):
    point = points((3, 4), labels=[0])
    for has_box, alone in ((True, BOX | point), (False, point)):
        flagged = embed(Prompts(**(BOX | point), box_valid=np.array([[has_box]])))
        plain = embed(Prompts(**alone))
        counted = flagged.sparse[flagged.sparse_valid]
        np.testing.assert_array_equal(counted, plain.sparse[plain.sparse_valid])


def test_no_mask_is_one_embedding_for_all(embed, variables):
    dense = embed(Prompts(valid=np.ones((2, 3), bool))).dense
    assert dense.shape == (2, 1, TINY.prompt_embed_dim, GRID[0] * GRID[1])
    np.testing.assert_array_equal(dense[1, 0, :, 17], variables["params"]["prompt_encoder"]["no_mask_embed"][0])


def test_a_mask_that_does_not_count_is_no_mask(embed):
    masks = np.random.default_rng(0).standard_normal((1, 2, 16, 28)).astype(np.float32)
    some = embed(Prompts(mask_inputs=masks, mask_valid=np.array([[True, False]]))).dense
    np.testing.assert_array_equal(some[:, 0], embed(Prompts(mask_inputs=masks)).dense[:, 0])
    np.testing.assert_array_equal(some[:, 1], embed(Prompts(valid=np.ones((1, 1), bool))).dense[:, 0])


def test_a_mask_of_the_wrong_size_is_named(embed):
    with pytest.raises(ValueError, match=r"20x20.*16x28.*4x7"):
        embed(Prompts(mask_inputs=np.zeros((1, 1, 20, 20), np.float32)))


def test_empty_prompts_are_refused():
    with pytest.raises(ValueError, match="Prompts is empty"):
        prompt_shape(Prompts())
