"""Cells are found again where they went, within the radius, and only valid masks are carried."""

import jax
import numpy as np
import pytest

from sam_jax.config import VideoConfig, vit_b, vit_tiny
from sam_jax.video.matching import CellGrid, carry_masks, cell_distances, cell_grid, describe_cells
from tests.tiny import TINY, random_embeddings

GRID = CellGrid(6, 9, 2)
SETTINGS = VideoConfig()


def clip(shift, seed=0):
    """Cells and a mask, and the same shifted to the right."""
    rng = np.random.default_rng(seed)
    cells = rng.standard_normal((6, 9, 8)).astype(np.float32)
    mask = np.zeros((6, 9), np.float32)
    mask[1:4, 1:4] = 1
    return cells, mask, np.roll(cells, shift, axis=1), np.roll(mask, shift, axis=1)


def carry(cells, remembered, masks, valid, radius):
    radii = np.full(len(remembered), radius, np.float32)
    found, closed = carry_masks(
        cells.reshape(54, -1),
        np.stack([one.reshape(54, -1) for one in remembered]),
        np.stack(masks).reshape(len(masks), -1, 54),
        np.array(valid),
        cell_distances(GRID),
        radii,
        SETTINGS,
    )
    return np.asarray(found).reshape(-1, 6, 9), np.asarray(closed).reshape(6, 9)


def test_masks_follow_their_cells():
    before, mask, after, moved = clip(shift=3)
    found, closed = carry(after, [before], [mask], [[True]], radius=4)
    np.testing.assert_allclose(found[0, :, 3:], moved[:, 3:], atol=1e-3)  # to the left, cells are new
    assert closed[1:4, 4:7].min() > 0.99
    found, closed = carry(after, [before], [mask], [[True]], radius=2)  # too far away
    assert np.abs(found[0] - moved).max() > 0.5
    assert closed[1:4, 4:7].mean() < 0.9


def test_masks_that_are_not_valid_do_not_count():
    before, mask, after, moved = clip(shift=1)
    both, other = np.stack([mask, 1 - mask]), np.stack([1 - mask, 1 - mask])
    found, _ = carry(after, [before, before], [both, other], [[True, False], [False, False]], radius=4)
    np.testing.assert_allclose(found[0, :, 1:], moved[:, 1:], atol=1e-3)
    assert found[1].max() == 0


@pytest.mark.parametrize(
    ("sam", "input_size", "expected"),
    [
        (vit_tiny(), (288, 512), CellGrid(36, 64, 2)),
        (vit_b(), (576, 1024), CellGrid(36, 64, 1)),
        (TINY, (50, 80), CellGrid(13, 20, 4)),
    ],
)
def test_grids(sam, input_size, expected):
    assert cell_grid(sam, SETTINGS, input_size) == expected


def test_features_see_embedding_and_colour():
    grid = cell_grid(TINY, SETTINGS, (50, 80))
    embedding, frame = random_embeddings(0)[0], np.zeros((80, 80, 3), np.uint8)
    frame[:4, :4] = 255
    describe = jax.jit(lambda e, f: describe_cells(TINY, SETTINGS, e, f, grid))
    cells = np.asarray(describe(embedding, frame)).reshape(13, 20, -1)
    assert cells.shape[-1] == TINY.prompt_embed_dim + 3
    np.testing.assert_allclose(np.linalg.norm(cells[..., :-3], axis=-1), 1, atol=1e-3)
    assert cells[0, 0, -3:].tolist() == [1, 1, 1]
    assert cells[..., -3:].sum() == 3
