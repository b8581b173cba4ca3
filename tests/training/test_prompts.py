"""Simulated prompts: where points and boxes fall, and what they are labelled."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam_jax.config import InteractionConfig, TrainConfig
from sam_jax.ops.planes import split_subpixels
from sam_jax.training import prompts
from sam_jax.training.prompts import STRIDE
from sam_jax.training.step import point_slots

B, N, H, W = 2, 3, 12, 20
GRID = (H // 4, W // 4)  # of the image embedding
KEYS = [jax.random.key(seed) for seed in range(30)]


def blobs(seed=0):
    """(B, N, H, W) bool: a rectangle each, one of a single cell, one empty."""
    rng, masks = np.random.default_rng(seed), np.zeros((B, N, H, W), bool)
    for b, n in np.ndindex(B, N):
        (y0, y1), (x0, x1) = (np.sort(rng.choice(side, 2, replace=False)) for side in (H, W))
        masks[b, n, y0:y1, x0:x1] = True
    masks[0, 0] = False
    masks[0, 0, 7, 13] = True
    masks[1, 2] = False
    return masks


def cells(coords):
    """Row and column of points (..., 2) in pixels."""
    x, y = np.moveaxis(np.asarray(coords) // STRIDE, -1, 0).astype(int)
    return y, x


def lookup(masks, coords):
    rows, cols = cells(coords)
    b, n = np.indices(rows.shape)
    return masks[b, n, rows, cols]


def test_points_are_drawn_inside_the_mask_and_all_over_it():
    masks = blobs()
    sample = jax.jit(prompts.sample_pixel)
    drawn = np.stack([sample(key, masks) for key in KEYS])
    inside = np.array([lookup(masks, coords) for coords in drawn])
    assert inside[:, masks.any(axis=(-2, -1))].all()
    assert (drawn == drawn.round()).all()
    single = drawn[:, 0, 0]
    assert {tuple(cell) for cell in np.transpose(cells(single))} == {(7, 13)}
    assert len(np.unique(single, axis=0)) > 8  # of the 16 pixels of that cell
    whole = sample(jax.random.key(0), np.ones((1, 4000, H, W), bool))[0]
    counts = np.bincount(np.ravel_multi_index(cells(whole), (H, W)), minlength=H * W)
    assert counts.min() > 0
    assert counts.max() < 4000 / (H * W) * 3


def test_boxes_are_tight():
    masks = blobs()
    boxes = np.asarray(prompts.mask_boxes(masks))
    for b, n in np.ndindex(B, N):
        pixels = np.argwhere(masks[b, n].repeat(STRIDE, 0).repeat(STRIDE, 1))
        expected = [*pixels.min(0)[::-1], *pixels.max(0)[::-1]] if len(pixels) else [0, 0, 0, 0]
        assert boxes[b, n].tolist() == expected


def test_box_noise_is_limited_and_stays_in_the_frame():
    config = InteractionConfig(box_noise=0.1, box_noise_max=20)
    boxes = np.tile(np.array([[8, 8, 207, 407], [0, 0, 11, 11], [400, 300, 639, 479]], np.float32), (1, 200, 1))
    noisy = np.asarray(prompts.jitter_boxes(config, jax.random.key(0), boxes, frame=(120, 160)))
    noise = noisy - boxes
    assert np.abs(noise).max() <= 20
    assert np.abs(noise[0, 1::3]).max() <= 11 / 3 + 1e-4  # small boxes move less
    assert noisy.min() >= 0
    assert noisy[..., [0, 2]].max() <= 639
    assert noisy[..., [1, 3]].max() <= 479
    assert (noisy[..., 2:] > noisy[..., :2]).all()
    right = np.abs(noise[0, ::3, 2])  # far from the frame's edge; sigma is the limit, so 68 % stay below it
    assert 0.55 < (right < 19.99).mean() < 0.8
    assert (right < 5).any()


def test_no_noise_leaves_boxes_alone():
    config = InteractionConfig(box_noise=0.0)
    boxes = prompts.mask_boxes(blobs())
    np.testing.assert_array_equal(prompts.jitter_boxes(config, KEYS[0], boxes, frame=(H, W)), boxes)


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_first_prompts_are_a_point_or_a_box(probability):
    config, masks = InteractionConfig(num_points=4, box_probability=probability), blobs()
    draw = jax.jit(lambda key: prompts.first_prompts(config, key, masks))
    shares = []
    for key in KEYS:
        first = draw(key)
        labels = np.asarray(first.point_labels)
        assert labels.shape == (B, N, 5)
        assert first.point_coords.shape == (B, N, 5, 2)
        assert (labels[..., 1:] == -1).all()
        np.testing.assert_array_equal(labels[..., 0] == 1, ~np.asarray(first.box_valid))
        inside = lookup(masks, first.point_coords[:, :, 0])
        assert inside[(labels[..., 0] == 1) & masks.any(axis=(-2, -1))].all()
        shares.append(np.mean(first.box_valid))
    assert abs(np.mean(shares) - probability) < 0.15


def add_error_points(first, slot, key, predicted, targets, keep):
    """`prompts.add_error_points` of masks (B, N, H, W)."""
    planes = split_subpixels(predicted), split_subpixels(targets)
    return prompts.add_error_points(first, slot, key, *planes, keep=keep, grid=GRID)


def test_error_points_lie_in_the_error_with_the_true_label():
    targets, predicted = jnp.asarray(blobs()), jnp.asarray(blobs(seed=1))
    config = InteractionConfig(num_points=3)
    first = prompts.first_prompts(config, KEYS[0], targets)
    add = jax.jit(lambda key: add_error_points(first, 2, key, predicted, targets, keep=False))
    seen = set()
    for key in KEYS:
        after = add(key)
        coords, labels = np.asarray(after.point_coords[:, :, 2]), np.asarray(after.point_labels[:, :, 2])
        wrong = predicted != np.asarray(targets)
        assert lookup(wrong, coords)[wrong.any(axis=(-2, -1))].all()
        np.testing.assert_array_equal(labels, lookup(blobs(), coords))
        others = [0, 1, 3]
        np.testing.assert_array_equal(after.point_coords[:, :, others], first.point_coords[:, :, others])
        np.testing.assert_array_equal(after.point_labels[:, :, others], first.point_labels[:, :, others])
        seen |= set(labels.ravel().tolist())
    assert seen == {0, 1}


def test_a_perfect_prediction_gets_a_point_with_its_true_label():
    targets = blobs()
    first = prompts.first_prompts(InteractionConfig(num_points=1), KEYS[0], targets)
    after = add_error_points(first, 1, KEYS[1], targets, targets, keep=False)
    np.testing.assert_array_equal(after.point_labels[:, :, 1], lookup(targets, after.point_coords[:, :, 1]))


def test_a_mask_only_step_keeps_the_prompts():
    targets = blobs()
    first = prompts.first_prompts(InteractionConfig(num_points=1), KEYS[0], targets)
    after = add_error_points(first, 0, KEYS[1], blobs(seed=1), targets, keep=True)
    np.testing.assert_array_equal(after.point_coords, first.point_coords)
    np.testing.assert_array_equal(after.point_labels, first.point_labels)


@pytest.mark.parametrize(("points", "mask_only"), [(8, 2), (8, 1), (8, 0), (1, 0), (2, 4), (0, 1), (0, 0)])
def test_mask_only_steps_fall_last_and_at_random(points, mask_only):
    interaction = InteractionConfig(num_points=points, num_mask_only_steps=mask_only)
    config = dataclasses.replace(TrainConfig(), interaction=interaction)
    slots = np.stack([point_slots(config, key) for key in KEYS])
    assert slots.shape == (len(KEYS), interaction.num_steps - 1)
    for row in slots:
        assert row[row >= 0].tolist() == list(range(1, points + 1))  # slot 0 is the first prompt's
        assert (row < 0).sum() == mask_only
    if mask_only:
        assert (slots[:, -1] < 0).all()
    if points == 8 and mask_only == 2:
        assert len({int(np.argmax(row < 0)) for row in slots}) > 4
