import numpy as np
import pytest

from sam_jax.engine.polygons import fill_polygon, rectangle_corners


def inside(x, y, corners):
    """Even-odd rule for one point: a ray to the left."""
    hits = False
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if (y0 <= y) != (y1 <= y) and x0 + (y - y0) * (x1 - x0) / (y1 - y0) <= x:
            hits = not hits
    return hits


def stated(corners, size):
    return np.array([[inside(x + 0.5, y + 0.5, corners) for x in range(size[1])] for y in range(size[0])])


@pytest.mark.parametrize("seed", range(8))
def test_a_pixel_is_inside_if_its_centre_is(seed):
    """Polygons that cross themselves and leave the image, too."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(-6, 30, (rng.integers(3, 9), 2))
    if seed % 2:
        corners = np.round(corners * 2) / 2  # edges through centres, and along them
    assert np.array_equal(fill_polygon(corners, (19, 26)), stated(corners, (19, 26)))


def test_polygons_that_share_an_edge_share_no_pixel():
    left, right = np.array([[0, 0], [4.5, 0], [4.5, 8], [0, 8]]), np.array([[4.5, 0], [9, 0], [9, 8], [4.5, 8]])
    masks = [fill_polygon(corners, (8, 9)) for corners in (left, right)]
    assert masks[0].sum() + masks[1].sum() == 72
    assert not (masks[0] & masks[1]).any()


def test_a_turned_rectangle():
    assert fill_polygon(rectangle_corners(2, 1, 5, 3), (6, 9)).sum() == 15
    turned = fill_polygon(rectangle_corners(8, 1, 5, 3, 90), (8, 9))  # clockwise: it goes down, and to the left
    assert np.array_equal(np.argwhere(turned), np.argwhere(np.pad(np.ones((5, 3)), ((1, 2), (5, 1)))))
