import numpy as np
import pytest

from sam_jax.ops.crops import build_layer_grids, build_point_grid, generate_crop_boxes


def test_build_point_grid():
    np.testing.assert_allclose(build_point_grid(2), [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]])


def test_layers_have_fewer_points():
    assert [len(grid) for grid in build_layer_grids(32, 2, 2)] == [1024, 256, 64]
    with pytest.raises(ValueError, match="no point in layer 2"):
        build_layer_grids(3, 2, 2)


def test_crop_boxes_of_a_released_image():
    """Sizes of the crops that SA-1B's own records name for an image of 2000 x 1500."""
    whole, first, second = generate_crop_boxes((1500, 2000), 2, 512 / 1500)
    assert whole == [(0, 0, 2000, 1500)]
    assert len(first) == 4
    assert len(second) == 16
    assert {(x1 - x0, y1 - y0) for x0, y0, x1, y1 in first} == {(1256, 1006)}
    assert first[1][:2] == (0, 494)  # y runs first
    assert (second[0][2], second[0][3]) == (692, 567)
    for boxes in (first, second):
        assert {max(box[2] for box in boxes), max(box[3] for box in boxes)} == {2000, 1500}


@pytest.mark.parametrize("side", range(1, 12))
@pytest.mark.parametrize("other", [1, 2, 3, 90])
def test_crops_of_few_pixels_cover_the_image_and_none_is_empty(side, other):
    for size in ((side, other), (other, side)):
        for boxes in generate_crop_boxes(size, 2, 512 / 1500):
            covered = np.zeros(size, bool)
            for x0, y0, x1, y1 in boxes:
                assert 0 <= x0 < x1 <= size[1]
                assert 0 <= y0 < y1 <= size[0]
                covered[y0:y1, x0:x1] = True
            assert covered.all()
