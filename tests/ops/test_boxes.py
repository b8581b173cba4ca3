import numpy as np
import pytest

from sam_jax.ops.boxes import box_iou, near_crop_edge, nms, pixel_iou, xyxy_to_xywh


def greedy(boxes, scores, threshold):
    """Non-maximum suppression, said slowly."""
    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        x0, y0, x1, y1 = boxes[i]
        for k in kept:
            a0, b0, a1, b1 = boxes[k]
            overlap = max(0, min(x1, a1) - max(x0, a0)) * max(0, min(y1, b1) - max(y0, b0))
            if overlap / ((x1 - x0) * (y1 - y0) + (a1 - a0) * (b1 - b0) - overlap) > threshold:
                break
        else:
            kept.append(i)
    return kept


@pytest.mark.parametrize("count", [0, 1, 2, 100, 128, 300])
def test_nms(count):
    rng = np.random.default_rng(count)
    corner = rng.integers(0, 60, (count, 2))
    boxes = np.concatenate([corner, corner + rng.integers(5, 40, (count, 2))], axis=1)
    scores = rng.integers(0, 20, count) / 20  # with ties
    for threshold in (0.3, 0.7):
        kept = nms(boxes, scores, threshold)
        assert kept.tolist() == greedy(boxes, scores, threshold)
    if count > 50:
        assert 0 < len(kept) < count


def test_boxes_one_pixel_wide_suppress_their_duplicates():
    """Their areas are 0, and so is the overlap: by 0 / 0 all would stay."""
    row = [[10, 5, 50, 5], [10, 5, 50, 5], [12, 5, 50, 5], [10, 6, 50, 6], [40, 5, 90, 5], [10, 5, 50, 9]]
    scores = np.array([0.5, 0.6, 0.4, 0.3, 0.2, 0.1])
    for boxes in (np.array(row), np.array(row)[:, [1, 0, 3, 2]]):
        # The last has an area, and is no duplicate of one without.
        assert nms(boxes, scores, 0.7, thin=True).tolist() == [1, 3, 4, 5]
        assert nms(boxes, scores, 0.7).tolist() == [1, 0, 2, 3, 4, 5]  # as torchvision
    empty, scores = np.zeros((3, 4)), np.array([0.1, 0.3, 0.2])
    assert nms(empty, scores, 0.5, thin=True).tolist() == [1]
    assert nms(empty, scores, 0.5).tolist() == [1, 2, 0]


def test_box_iou():
    found = box_iou(np.float32([[0, 0, 4, 4]]), np.float32([[0, 0, 4, 4], [2, 2, 6, 6], [5, 5, 6, 6]]))
    np.testing.assert_allclose(found, [[1, 4 / 28, 0]], rtol=1e-6)
    thin = pixel_iou(np.float32([[0, 7, 9, 7]]), np.float32([[0, 7, 9, 7], [5, 7, 14, 7], [0, 8, 9, 8], [0, 7, 9, 8]]))
    np.testing.assert_allclose(thin, [[1, 5 / 15, 0, 0]], rtol=1e-6)


def test_near_crop_edge_forgives_the_edges_of_the_image():
    crop, image = np.array([0, 50, 100, 200]), np.array([0, 0, 300, 200])
    boxes = np.array([[0, 60, 40, 100], [30, 5, 60, 60], [30, 60, 85, 149], [30, 60, 79, 149], [25, 25, 50, 50]])
    # left edge of both; top of the crop; right of the crop; well inside but for the image's bottom; inside
    assert near_crop_edge(boxes, crop, image).tolist() == [False, True, True, False, False]


def test_xyxy_to_xywh():
    assert xyxy_to_xywh(np.array([2, 3, 10, 7])).tolist() == [2, 3, 8, 4]
