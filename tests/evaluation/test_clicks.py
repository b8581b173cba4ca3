"""Where to click, by hand."""

import numpy as np
import pytest

from sam_jax.evaluation.clicks import Click, first_click, next_click
from tests.evaluation import statement


def image(*rows):
    """Rows of '#' and '.' as (H, W) bool."""
    return np.array([[letter == "#" for letter in row] for row in rows])


def test_the_first_click_is_the_middle_of_the_thickest_part():
    mask = image(
        "..........",
        ".#######..",
        ".#####....",
        ".#####....",
        ".#####....",
        ".#####....",
        "..........",
    )
    assert first_click(mask) == Click(3, 3, 1)


def test_the_image_ends_at_its_border():
    """Were beyond the border still object, the corner would be deepest."""
    mask = image("#####..", "#####..", "#####..", "#####..", "#####..")
    assert first_click(mask) == Click(2, 2, 1)
    assert first_click(np.ones((3, 9), bool)) == Click(1, 1, 1)


def test_of_equals_the_first_in_reading_order():
    assert first_click(image("....", ".##.", ".##.", "....")) == Click(1, 1, 1)
    assert first_click(image("#...#", ".....", "#...#")) == Click(0, 0, 1)


def test_the_deeper_error_wins_not_the_larger():
    true = np.zeros((20, 30), bool)
    true[2, 0:30] = True  # missed: 30 pixels, one deep
    predicted = np.zeros_like(true)
    predicted[10:15, 10:15] = True  # surplus: 25 pixels, three deep
    assert next_click(true, predicted) == Click(12, 12, 0)
    true[5:18, 0:7] = True  # missed: seven wide
    assert next_click(true, predicted) == Click(3, 8, 1)


def test_of_equally_deep_errors_the_surplus_one():
    true, predicted = np.zeros((9, 20), bool), np.zeros((9, 20), bool)
    true[2:5, 2:5] = True
    predicted[2:5, 10:13] = True
    assert next_click(true, predicted) == Click(11, 3, 0)


def test_missed_and_surplus_side_by_side_are_two_errors():
    true, predicted = np.zeros((9, 9), bool), np.zeros((9, 9), bool)
    true[1:8, 2:5] = True
    predicted[1:8, 5:8] = True  # as one region of 7 x 6 the deepest pixel would be (4, 4)
    assert next_click(true, predicted) == Click(6, 2, 0)


def test_no_pixel_is_clicked_twice():
    true = image("...", ".#.", "...")
    click = first_click(true)
    assert next_click(true, np.zeros_like(true), [click]) is None
    row = image(".....", ".###.", ".....")
    assert next_click(row, np.zeros_like(row), [Click(1, 1, 1), Click(2, 1, 0)]) == Click(3, 1, 1)


def test_nothing_wrong_no_click():
    mask = image(".#.", "###")
    assert next_click(mask, mask) is None


@pytest.mark.parametrize("seed", range(20))
def test_agrees_with_the_statement_on_random_blots(seed):
    rng = np.random.default_rng(seed)
    h, w = rng.integers(5, 40, 2)
    true = rng.random((h, w)) < rng.choice([0.3, 0.9, 1.0])
    predicted = rng.random((h, w)) < rng.choice([0.0, 0.1, 0.7])
    taken = [Click(int(rng.integers(w)), int(rng.integers(h)), 1) for _ in range(3)]
    found = next_click(true, predicted, taken)
    assert (found if found is None else tuple(found)) == statement.correction(true, predicted, taken)
