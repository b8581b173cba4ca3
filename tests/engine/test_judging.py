"""Who is better: the figures, the rule, and what is said about it."""

import dataclasses
import json
import re

import numpy as np
import pytest

from sam_jax.config import RetrainConfig
from sam_jax.engine.judging import FIGURES, compare, from_json
from sam_jax.evaluation import EvaluationOptions, EvaluationResult

OPTIONS = EvaluationOptions(clicks=(1,), boxes=True)


def result(iou, images=4):
    """A result with the same IoUs, by column, for two masks of each image, a little noise added."""
    n = 2 * images
    table = np.array([[iou.get(column, 0.0) for column in OPTIONS.columns]] * n)
    table += np.linspace(-0.05, 0.05, n)[:, None]
    number = np.arange(n)
    names = tuple(f"image {i}" for i in range(images))
    none = np.full_like(table, np.nan)
    return EvaluationResult(
        "set", OPTIONS.columns, names, np.arange(images), number // 2, number % 2, number + 1, table, table, none,
        np.zeros((n, 1, 3), int),
    )  # fmt: skip


def figures(box, click, best):
    return dict(zip(FIGURES.values(), (box, click, best), strict=True))


def test_the_figures_are_a_box_a_click_and_the_best_of_a_clicks_three():
    found = compare(result(figures(0.7, 0.4, 0.6)), result(figures(0.76, 0.43, 0.63)))
    assert found.present == pytest.approx({"box": 0.7, "one click": 0.4, "best of three": 0.6})
    assert found.candidate == pytest.approx({"box": 0.76, "one click": 0.43, "best of three": 0.63})
    assert found.gain == pytest.approx(0.04)
    assert found.interval == pytest.approx((0.04, 0.04))  # the same change everywhere
    assert (found.images, found.masks) == (4, 8)
    assert "box               0.7000      0.7600   +0.0600" in found.table()
    assert from_json(json.loads(json.dumps(dataclasses.asdict(found)))) == found


@pytest.mark.parametrize(
    ("candidate", "better", "reason"),
    [
        ((0.71, 0.41, 0.61), True, r"by \+0\.0100$"),
        ((0.701, 0.401, 0.601), False, r"by \+0\.0010; 0\.002 is needed"),
        ((0.695, 0.395, 0.595), False, r"by -0\.0050; 0\.002 is needed"),
        ((0.80, 0.40, 0.585), False, r"by \+0\.0283, and best of three falls by more than 0\.01"),
        ((0.80, 0.40, 0.595), True, r"by \+0\.0317"),
    ],
)
def test_the_rule(candidate, better, reason):
    found, config = compare(result(figures(0.7, 0.4, 0.6)), result(figures(*candidate))), RetrainConfig()
    assert found.is_better(config) is better
    assert re.search(reason, found.reason(config))
    generous = RetrainConfig(margin=0.0, max_loss=1.0)
    assert found.is_better(generous) is (found.gain >= 0)
