"""The losses against plain statements of their formulas."""

import jax
import numpy as np
import pytest

from sam_jax.config import LossConfig
from sam_jax.training import losses

B, N, M, H, W = 2, 3, 4, 5, 7


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    logits = (3 * rng.standard_normal((B, N, M, H, W))).astype(np.float32)
    return logits, rng.random((B, N, H, W)) < 0.3, rng.random((B, N, M)).astype(np.float32)


def _focal(logits, targets, alpha, gamma):
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    p_true = np.where(targets, p, 1 - p)
    weight = np.where(targets, alpha, 1 - alpha)
    return (-weight * (1 - p_true) ** gamma * np.log(p_true)).mean(axis=(-2, -1))


def _dice(logits, targets):
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    sides = p.sum(axis=(-2, -1)) + targets.sum(axis=(-2, -1))
    return 1 - (2 * (p * targets).sum(axis=(-2, -1)) + 1) / (sides + 1)


def _iou(logits, targets):
    mask = logits > 0
    return (mask & targets).sum(axis=(-2, -1)) / (mask | targets).sum(axis=(-2, -1))


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.5, 0.0), (0.8, 3.0)])
def test_focal_loss(case, alpha, gamma):
    logits, targets, _ = case
    targets = targets[:, :, None]
    out = losses.focal_loss(logits, targets.astype(np.float32), alpha, gamma)
    np.testing.assert_allclose(out, _focal(logits, targets, alpha, gamma), rtol=1e-5, atol=1e-6)


def test_dice_loss(case):
    logits, targets, _ = case
    targets = targets[:, :, None]
    np.testing.assert_allclose(losses.dice_loss(logits, targets.astype(np.float32)), _dice(logits, targets), atol=1e-6)


def test_mask_iou(case):
    logits, targets, _ = case
    np.testing.assert_allclose(
        losses.mask_iou(logits, targets[:, :, None]), _iou(logits, targets[:, :, None]), atol=1e-6
    )


def test_enlarging_is_bilinear():
    ramp = np.add.outer(np.arange(4.0), 2 * np.arange(3.0)).astype(np.float32)
    inner = losses.enlarge(ramp, (8, 6))[1:-1, 1:-1]  # edges repeat
    np.testing.assert_allclose(
        inner, np.add.outer(np.arange(0.25, 3.25, 0.5), 2 * np.arange(0.25, 2.25, 0.5)), atol=1e-6
    )
    assert losses.enlarge(ramp, (4, 3)) is ramp


def test_iou_of_two_empty_masks_is_one():
    nothing, something = np.full((1, H, W), -1.0), np.full((1, H, W), 1.0)
    assert losses.mask_iou(nothing, np.zeros((1, H, W))) == 1
    assert losses.mask_iou(something, np.zeros((1, H, W))) == 0


def test_perfect_and_hopeless_predictions():
    target = np.zeros((H, W), np.float32)
    target[1:3, 2:5] = 1
    perfect = 100 * (2 * target - 1)
    for loss in (losses.focal_loss, losses.dice_loss):
        assert loss(perfect, target) < 1e-6
        assert loss(-perfect, target) > 0.5
        grads = jax.vmap(jax.grad(loss), (0, None))(np.stack([perfect, -perfect, 0 * perfect]), target)
        assert np.isfinite(grads).all()


def test_mask_losses_weigh_the_parts(case):
    logits, targets, predicted = case
    config = LossConfig(focal_weight=3, dice_weight=5, iou_weight=7, focal_alpha=0.4, focal_gamma=1.5)
    out = losses.mask_losses(config, logits, predicted, targets)
    true_iou = _iou(logits, targets[:, :, None])
    expected = 3 * _focal(logits, targets[:, :, None], 0.4, 1.5) + 5 * _dice(logits, targets[:, :, None])
    np.testing.assert_allclose(out.mask, expected, rtol=1e-5)
    np.testing.assert_allclose(out.iou, 7 * (predicted - true_iou) ** 2, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(out.true_iou, true_iou, atol=1e-6)


def test_the_paper_weighs_focal_to_dice_20_to_1():
    config = LossConfig()
    assert (config.focal_weight, config.dice_weight, config.iou_weight) == (20, 1, 1)


@pytest.mark.parametrize("all_iou", [False, True])
def test_prompt_loss_takes_the_lowest_of_three_or_the_single_mask(all_iou):
    mask = np.array([[[9.0, 3.0, 1.0, 2.0], [4.0, 1.0, 1.5, 0.5]]])
    iou = np.array([[[0.1, 0.2, 0.3, 0.7], [0.5, 0.6, 0.7, 0.8]]])
    out = losses.prompt_loss(
        LossConfig(supervise_all_iou=all_iou), losses.MaskLosses(mask, 0 * mask, iou, iou), np.array([[True, False]])
    )
    np.testing.assert_allclose(out, [[1.0 + (0.4 if all_iou else 0.3), 4.0 + 0.5]], rtol=1e-6)


def test_the_single_mask_alone_is_the_loss_of_unambiguous_prompts(case):
    logits, targets, predicted = case
    parts = losses.mask_losses(LossConfig(), logits, predicted, targets)
    one = losses.mask_losses(LossConfig(), logits[:, :, :1], predicted[..., :1], targets)
    unambiguous = np.zeros((B, N), bool)
    out = [losses.prompt_loss(LossConfig(), x, unambiguous) for x in (one, parts)]
    np.testing.assert_allclose(*out, rtol=1e-6)


def test_only_the_chosen_mask_learns(case):
    logits, targets, predicted = case

    def loss(logits):
        parts = losses.mask_losses(LossConfig(), logits, predicted, targets)
        return losses.prompt_loss(LossConfig(), parts, np.array([True, False, True])).sum()

    moved = np.abs(jax.grad(loss)(logits)).max(axis=(-2, -1)) > 0
    assert (moved.sum(axis=-1) == 1).all()
    assert moved[:, 1, 0].all()  # the single mask
    assert not moved[:, [0, 2], 0].any()


def test_affinity_loss():
    rng = np.random.default_rng(1)
    targets = np.zeros((2, 3, 8, 12), bool)  # a grid of 4 x 6 cells of 2 x 2
    targets[0, 0, :4, :6] = targets[0, 1, 1:7, 5:12] = targets[1, 0, 4:, :] = True
    targets[1, 1, 0, 0] = True  # a quarter of one cell: not enough to learn from
    valid = np.array([[True, True, False], [True, True, True]])
    embeddings = rng.standard_normal((2, 4, 6, 16)).astype(np.float32)
    share = targets.reshape(2, 3, 4, 2, 6, 2).mean((3, 5)).reshape(2, 3, 24)
    key = jax.random.key(3)
    cells = np.asarray(jax.random.categorical(key, np.log(share**2 + 1e-6)))
    terms = []
    for b, n in ((0, 0), (0, 1), (1, 0)):
        flat = embeddings[b].reshape(24, 16).astype(np.float64)
        p = 1 / (1 + np.exp(-(12 * flat @ flat[cells[b, n]] / 16 - 6)))
        s = share[b, n]
        terms.append((-(s * np.log(p)).sum() / s.sum() - ((1 - s) * np.log(1 - p)).sum() / (1 - s).sum()) / 2)
    found = losses.affinity_loss(embeddings, targets, valid, key)
    np.testing.assert_allclose(found, np.mean(terms), rtol=1e-5)
