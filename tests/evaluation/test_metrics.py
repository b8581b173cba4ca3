"""Metrics against brute force and by hand."""

import numpy as np
import pytest

from sam_jax.evaluation.metrics import (
    bootstrap_means,
    boundary_width,
    calibration,
    interval,
    mask_boundary,
    mask_iou,
)
from sam_jax.evaluation.results import EvaluationResult, average_over_sets, join
from tests.evaluation import statement


def test_iou_by_hand():
    a, b = np.zeros((4, 5), bool), np.zeros((4, 5), bool)
    assert mask_iou(a, b) == 0
    a[:2, :2] = True
    assert mask_iou(a, b) == 0
    b[1:3, :2] = True
    assert mask_iou(a, b) == pytest.approx(2 / 6)
    assert mask_iou(a, a) == 1


def test_boundary_width_is_a_share_of_the_diagonal():
    assert boundary_width((30, 40)) == 1
    assert boundary_width((3, 4)) == 1  # at least
    assert boundary_width((300, 400)) == 10
    assert boundary_width((480, 640)) == 16


@pytest.mark.parametrize("seed", range(6))
def test_boundary_agrees_with_brute_force(seed):
    rng = np.random.default_rng(seed)
    mask = np.zeros((70, 110), bool)
    for _ in range(4):
        y, x = rng.integers(0, 60), rng.integers(0, 90)
        mask[y : y + rng.integers(3, 40), x : x + rng.integers(3, 60)] ^= True
    assert np.array_equal(mask_boundary(mask), statement.border(mask))
    assert np.array_equal(mask_boundary(mask, 0.05), statement.border(mask, 0.05))


def test_boundary_at_the_images_edge_and_of_nothing():
    full = np.ones((100, 100), bool)
    ring = mask_boundary(full)
    assert ring[:3].all()
    assert not ring[3:-3, 3:-3].any()
    assert not mask_boundary(~full).any()


def test_bootstrap_draws_images_not_masks():
    values = np.array([[0.0], [0.0], [0.0], [1.0]])
    draws = bootstrap_means(values, np.array([7, 7, 7, 9]), rounds=4000)
    shares = {round(share, 6) for share in np.unique(draws)}
    assert shares == {0.0, 0.25, 1.0}  # both of one image, one of each, both of the other
    assert np.mean(draws == 0.25) == pytest.approx(0.5, abs=0.03)
    assert np.array_equal(draws, bootstrap_means(values, np.array([7, 7, 7, 9]), rounds=4000))


def test_interval_of_many_independent_masks():
    values = np.random.default_rng(0).normal(0.6, 0.2, (2000, 1))
    low, high = interval(bootstrap_means(values, np.arange(2000)))[:, 0]
    assert (low + high) / 2 == pytest.approx(values.mean(), abs=2e-3)
    assert high - low == pytest.approx(2 * 1.96 * 0.2 / np.sqrt(2000), rel=0.1)


def test_calibration_by_hand():
    found = calibration([0.95, 0.95, 0.15, 1.2, -0.1], [0.9, 0.7, 0.4, 1.0, 0.0])
    assert found["mean_absolute_error"] == pytest.approx((0.05 + 0.25 + 0.25 + 0.2 + 0.1) / 5)
    assert found["mean_error"] == pytest.approx((0.05 + 0.25 - 0.25 + 0.2 - 0.1) / 5)
    assert [(b["low"], b["count"]) for b in found["bins"]] == [(0.0, 1), (0.1, 1), (0.9, 3)]
    top = found["bins"][-1]
    assert top["predicted"] == pytest.approx((0.95 + 0.95 + 1.2) / 3)
    assert top["true"] == pytest.approx((0.9 + 0.7 + 1.0) / 3)
    gaps = [0.1 * 1, 0.25 * 1, abs(3.1 - 2.6)]
    assert found["expected_calibration_error"] == pytest.approx(sum(gaps) / 5)
    # Ranks 3.5 3.5 2 5 1 against 4 3 2 5 1.
    assert found["spearman"] == pytest.approx(np.corrcoef([3.5, 3.5, 2, 5, 1], [4, 3, 2, 5, 1])[0, 1])


def test_calibration_of_a_constant_has_no_rank():
    assert calibration([0.5, 0.5], [0.1, 0.9])["spearman"] is None
    assert calibration([0.5], [0.1])["spearman"] is None


def result(name, iou, image_of, columns=("1 click", "1 click, oracle", "box"), predicted=0.5):
    iou, image_of = np.asarray(iou, float), np.asarray(image_of)
    names = tuple(f"{name} {number}" for number in range(image_of.max() + 1))
    return EvaluationResult(
        name,
        columns,
        names,
        np.arange(len(names)),
        image_of,
        np.arange(len(iou)),
        np.ones(len(iou), int),
        iou,
        iou / 2,
        np.full(iou.shape, predicted),
        np.zeros((len(iou), 1, 3), int),
    )


def test_averages_count_each_set_once():
    small = result("small", [[0.2, 0.4, 0.6]], [0])
    large = result("large", np.full((100, 3), 0.8), np.arange(100) // 10)
    average = average_over_sets([small, large])
    assert average["miou"]["1 click"]["mean"] == pytest.approx(0.5)
    assert average["miou"]["box"]["interval"] == pytest.approx([0.7, 0.7])
    assert average["boundary_iou"]["1 click, oracle"]["mean"] == pytest.approx(0.3)
    assert small.miou("box") == pytest.approx(0.6)
    with pytest.raises(ValueError, match="no result"):
        average_over_sets([])


def test_summary_leaves_the_oracle_and_floors_out_of_calibration():
    found = result("set", [[0.2, 0.4, 0.6], [0.3, 0.5, 0.7]], [0, 1])
    assert list(found.summary()["calibration"]) == ["1 click", "box"]
    floor = result("set", [[0.1], [0.2]], [0, 1], ("box, filled",), np.nan)
    both = join([found, floor])
    assert both.columns == ("1 click", "1 click, oracle", "box", "box, filled")
    assert both.miou("box, filled") == pytest.approx(0.15)
    assert list(both.summary()["calibration"]) == ["1 click", "box"]
    with pytest.raises(ValueError, match="not for the same masks"):
        join([found, result("set", [[0.1]], [0], ("box, filled",))])
