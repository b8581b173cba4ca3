"""What needs no learning, on shapes whose answer is known."""

import importlib.util

import numpy as np
import pytest

from sam_jax.evaluation import EvaluationOptions, floors
from sam_jax.evaluation.floors import ellipse_in_box, evaluate_floors, filled_box, floor_columns
from tests.evaluation.test_protocol import Images, labelled

H, W = 80, 120


def draw(scale):
    """A bright disc and a dark rectangle on grey noise, in an image of `scale` times (H, W)."""
    rng = np.random.default_rng(0)
    image = rng.integers(110, 130, (scale * H, scale * W, 3), np.uint8)
    y, x = (np.mgrid[: scale * H, : scale * W] + 0.5) / scale
    disc = (x - 35) ** 2 + (y - 40) ** 2 <= 20**2
    bar = (x > 80) & (x < 110) & (y > 10) & (y < 70)
    image[disc], image[bar] = (240, 200, 40), (20, 30, 90)
    return Images([labelled(image, disc, bar)])


@pytest.fixture
def scene():
    return draw(1)


def test_shapes_in_a_box():
    box = np.array([2.0, 3.0, 8.0, 7.0])
    assert filled_box(box, (10, 12)).sum() == 24
    ellipse = ellipse_in_box(box, (10, 12))
    assert ellipse[5, 2]
    assert not ellipse[3, 2]
    assert not (ellipse & ~filled_box(box, (10, 12))).any()
    assert ellipse_in_box(np.array([0.0, 0.0, 200.0, 200.0]), (200, 200)).mean() == pytest.approx(np.pi / 4, abs=1e-3)


def test_box_floors_know_boxes_and_discs(scene):
    result = evaluate_floors(scene, EvaluationOptions(keep_masks=True))
    filled, ellipse = (list(result.columns).index(name) for name in (floors.FILLED, floors.ELLIPSE))
    assert result.iou[1, filled] == 1
    assert result.iou[0, ellipse] > 0.97
    assert result.iou[0, filled] == pytest.approx(np.pi / 4, abs=0.01)
    assert result.boundary_iou[1, filled] == 1
    assert result.areas[1] == 60 * 30
    assert np.isnan(result.predicted_iou).all()
    assert len(result.masks[0]) == len(result.columns)


@pytest.mark.oracle
def test_grabcut_finds_what_is_plain_to_see(scene):
    result = evaluate_floors(scene)
    column = list(result.columns).index(floors.GRABCUT)
    assert (result.iou[:, column] > 0.95).all()


@pytest.mark.oracle
def test_felzenszwalb_finds_what_is_plain_to_see():
    result = evaluate_floors(draw(3))  # it smooths the image first: a pixel of each outline goes to neither side
    assert (result.iou[:, list(result.columns).index(floors.FELZENSZWALB[1])] > 0.9).all()


def test_columns_follow_the_options_and_what_is_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert floor_columns(EvaluationOptions()) == (floors.FILLED, floors.ELLIPSE)
    assert floor_columns(EvaluationOptions(boxes=False)) == ()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    everything = (floors.FILLED, floors.ELLIPSE, floors.GRABCUT, *floors.FELZENSZWALB)
    assert floor_columns(EvaluationOptions()) == everything
    assert floor_columns(EvaluationOptions(clicks=(3,))) == everything[:3]
