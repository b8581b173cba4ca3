"""J and F beside a plain statement of the rules, and the rules on frames, void pixels and single objects."""

import math

import numpy as np
import pytest

from sam_jax.video.davis import (
    contour,
    contour_accuracy,
    evaluate_masks,
    region_similarity,
    score_frames,
    statistics,
)
from sam_jax.video.label_images import davis_palette, read_labels, write_labels

SIZE = (60, 90)


def blob(seed, size=SIZE):
    """Two discs that overlap."""
    rng, (h, w) = np.random.default_rng(seed), size
    y, x = np.indices(size)
    discs = [((rng.uniform(0.2, 0.8) * h, rng.uniform(0.2, 0.8) * w), rng.uniform(5, 14)) for _ in range(2)]
    return np.any([(y - cy) ** 2 + (x - cx) ** 2 < r**2 for (cy, cx), r in discs], axis=0)


def stated_contour(mask):
    """`seg2bmap` of the official code, pixel by pixel."""
    h, w = mask.shape
    found = np.zeros_like(mask)
    for y in range(h):
        for x in range(w):
            others = [(y, x + 1), (y + 1, x), (y + 1, x + 1)]
            if y == h - 1:
                others = [(y, x + 1)]
            if x == w - 1:
                others = [(y + 1, x)] if y < h - 1 else []
            found[y, x] = any(mask[y, x] != mask[place] for place in others)
    return found


def stated_f(mask, truth):
    """Every contour pixel looks for one of the other contour within a disc."""
    reach = math.ceil(0.008 * math.hypot(*mask.shape))
    found, wanted = np.argwhere(stated_contour(mask)), np.argwhere(stated_contour(truth))
    near = np.array([[math.hypot(*(a - b)) <= reach for b in wanted] for a in found])
    precision, recall = near.any(axis=1).mean(), near.any(axis=0).mean()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@pytest.mark.parametrize("seed", range(4))
def test_as_stated(seed):
    truth = blob(seed)
    mask = np.roll(truth, (seed, 1), axis=(0, 1)) ^ (blob(seed + 9) & blob(seed + 5))
    np.testing.assert_array_equal(contour(mask), stated_contour(mask))
    assert 0 < contour_accuracy(mask, truth) == pytest.approx(stated_f(mask, truth))
    assert region_similarity(mask, truth) == pytest.approx((mask & truth).sum() / (mask | truth).sum())


def test_empty_masks():
    empty, some = np.zeros(SIZE, bool), blob(0)
    assert (region_similarity(empty, empty), contour_accuracy(empty, empty)) == (1, 1)
    assert (region_similarity(some, empty), contour_accuracy(some, empty)) == (0, 0)
    assert (region_similarity(empty, some), contour_accuracy(empty, some)) == (0, 0)


def test_the_first_and_the_last_frame_do_not_count():
    truth = np.where(blob(0), 3, np.where(blob(1), 2, 0)).astype(np.uint8)
    wrong = np.zeros_like(truth)
    scores = score_frames([(wrong, truth), (truth, truth), (wrong, truth), (wrong, truth)])
    assert scores.keys() == {2, 3}
    assert scores[3].region.tolist() == [1, 0]
    assert scores[2].contour.tolist() == [1, 0]


def test_void_and_the_single_object_of_2016():
    mask = blob(2)
    of_2016 = [(mask.astype(np.uint8), mask.astype(np.uint8) * 255)] * 3
    assert score_frames(of_2016)[1].region.tolist() == [1]
    truth = mask.astype(np.uint8)
    truth[0] = 255  # void is background
    assert score_frames([(mask.astype(np.uint8), truth)] * 3)[1].region.tolist() == [1]


def test_statistics():
    found = statistics(np.array([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]))
    assert found["mean"] == pytest.approx(0.65)
    assert found["recall"] == 5 / 8  # above .5, not at it
    # Quarters share their ends: frames 1 to 3, and 6 to 8.
    assert found["decay"] == pytest.approx(0.9 - 0.4)


def test_directories(tmp_path):
    labels = blob(0).astype(np.uint8)
    for name in ("00000", "00001", "00002"):
        for kind in ("found", "true"):
            (tmp_path / kind).mkdir(exist_ok=True)
            write_labels(tmp_path / kind / f"{name}.png", labels)
    assert evaluate_masks(tmp_path / "found", tmp_path / "true")["J&F"] == 1
    (tmp_path / "found" / "00001.png").unlink()
    with pytest.raises(ValueError, match=r"00001.png has no mask"):
        evaluate_masks(tmp_path / "found", tmp_path / "true")
    with pytest.raises(ValueError, match="holds 0 true masks"):
        evaluate_masks(tmp_path / "true", tmp_path)


def test_labels_keep_their_numbers(tmp_path):
    labels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    write_labels(tmp_path / "a.png", labels)
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png"), labels)
    # The first colours of DAVIS' annotations.
    assert davis_palette()[:5].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]]
    assert davis_palette()[255].tolist() == [224, 224, 192]
