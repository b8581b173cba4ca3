"""The batched protocol against the slow statement on photographs, and what must not matter to it."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from sam_jax.data.records import DataError
from sam_jax.evaluation import EvaluationOptions, LabelledImage, evaluate, open_image_set
from sam_jax.models.sam import Sam
from sam_jax.ops.rle import decode_mask, encode_mask
from tests.evaluation import statement
from tests.tiny import TINY

MINI = Path(__file__).parents[1] / "devset_mini"
COUNTS = (1, 2, 3)


class Images:
    """Labelled images in memory."""

    name = "memory"

    def __init__(self, images):
        self._images = images

    def __len__(self):
        return len(self._images)

    def __getitem__(self, index):
        found = self._images[index]
        if isinstance(found, Exception):
            raise found
        return found


def labelled(image, *masks, name="image"):
    return LabelledImage(name, image, tuple(map(encode_mask, masks)))


@pytest.fixture(scope="module")
def mini():
    return open_image_set(MINI)


@pytest.fixture(scope="module")
def one_by_one(mini, variables):
    options = EvaluationOptions(clicks=COUNTS, images_per_batch=1, prompts_per_batch=1, keep_masks=True)
    return evaluate(Sam(TINY), variables, mini, options)


def check_against_statement(config, variables, images, result, stray_pixels=0):
    number = 0
    for image in images:
        sam = statement.SlowSam(config, variables, image.image)
        for segmentation in image.segmentations:
            true = decode_mask(segmentation)
            found, clicks = statement.play(sam, true, COUNTS)
            assert [tuple(c) for c in result.clicks[number].tolist() if c[2] >= 0] == clicks
            for place, column in enumerate(result.columns):
                mask, estimate = found[column]
                tolerance = 1e-6 + stray_pixels / (true | mask).sum()
                assert result.iou[number, place] == pytest.approx(statement.iou(true, mask), abs=tolerance)
                assert result.predicted_iou[number, place] == pytest.approx(estimate, abs=1e-5)
            number += 1
    assert number == len(result.iou)


@pytest.mark.long
def test_agrees_with_the_slow_statement(mini, variables, one_by_one):
    assert len(one_by_one.iou) == 36
    check_against_statement(TINY, variables, mini, one_by_one)


@pytest.mark.slow
def test_agrees_with_the_slow_statement_where_masks_are_taken_to_edges(mini, variables):
    config, images = dataclasses.replace(TINY, crf=True), Images([mini[number] for number in (0, 7, 9)])
    result = evaluate(Sam(config), variables, images, EvaluationOptions(clicks=COUNTS, images_per_batch=2))
    # Sums over an image's colours round as the number of masks beside has it: a logit near zero may change its sign.
    check_against_statement(config, variables, images, result, stray_pixels=3)


@pytest.mark.long
def test_boundaries_agree_with_the_slow_statement(mini, one_by_one):
    result = one_by_one
    for number in (0, 10, 20, 35):
        image = mini[int(result.indices[result.image_of[number]])]
        true = statement.border(decode_mask(image.segmentations[result.mask_of[number]]))
        found = statement.border(decode_mask(result.masks[number][-1]))
        assert result.boundary_iou[number, -1] == pytest.approx(statement.iou(true, found), abs=1e-6)


def squares(seed, count, size=(60, 80)):
    """A noisy image with `count` rectangles, some within others."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, *size), bool)
    for mask in masks:
        y, x = rng.integers(0, size[0] - 20), rng.integers(0, size[1] - 20)
        mask[y : y + rng.integers(4, 20), x : x + rng.integers(4, 20)] = True
    return labelled(rng.integers(0, 256, (*size, 3), np.uint8), *masks, name=f"image {seed}")


@pytest.mark.slow
def test_portions_do_not_matter(variables):
    images = Images([squares(0, 6), squares(1, 1, (40, 200)), squares(2, 3, (90, 30)), squares(3, 2), squares(4, 1)])
    results = [
        evaluate(
            Sam(TINY),
            variables,
            images,
            EvaluationOptions(clicks=(1, 3), images_per_batch=batch, prompts_per_batch=prompts, threads=2),
        )
        for batch, prompts in ((1, 1), (2, 4), (5, 64), (3, 7))
    ]
    for other in results[1:]:
        assert other.images == results[0].images
        assert np.array_equal(other.image_of, results[0].image_of)
        assert np.array_equal(other.mask_of, results[0].mask_of)
        assert np.array_equal(other.areas, results[0].areas)
        assert other.predicted_iou == pytest.approx(results[0].predicted_iou, abs=1e-2)
        # A pixel whose logit is zero but for rounding may fall on either side.
        assert np.mean(np.abs(other.iou - results[0].iou)) < 2e-3
        assert np.array_equal(other.clicks[:, 0], results[0].clicks[:, 0])
    assert results[0].columns == ("1 click", "1 click, oracle", "3 clicks", "box", "box + mask")
    assert (results[0].iou[:, 1] >= results[0].iou[:, 0]).all()


@pytest.mark.long
def test_a_right_mask_ends_the_clicking(variables, monkeypatch):
    def perfect(self, low_res_masks, boxes=None):
        return [np.repeat(target.mask[None], low_res_masks.shape[2], axis=0) for target in self.targets]

    monkeypatch.setattr("sam_jax.evaluation.objects.ObjectGroup.in_image", perfect)
    result = evaluate(Sam(TINY), variables, Images([squares(0, 2)]), EvaluationOptions(clicks=(1, 2, 9)))
    assert (result.iou == 1).all()
    assert (result.boundary_iou == 1).all()
    assert (result.clicks[:, 0, 2] == 1).all()
    assert (result.clicks[:, 1:, 2] == -1).all()
    columns = list(result.columns)
    first, ninth = columns.index("1 click"), columns.index("9 clicks")
    assert np.array_equal(result.predicted_iou[:, first], result.predicted_iou[:, ninth])


def test_clicks_alone_boxes_alone_and_not_the_first(variables):
    images = Images([squares(0, 2)])
    clicks = evaluate(Sam(TINY), variables, images, EvaluationOptions(clicks=(2,), boxes=False))
    boxes = evaluate(Sam(TINY), variables, images, EvaluationOptions(clicks=()))
    assert clicks.columns == ("2 clicks",)
    assert boxes.columns == ("box", "box + mask")
    assert clicks.clicks.shape == (2, 2, 3)
    assert not np.isnan(boxes.iou).any()


def test_what_cannot_be_read_is_left_out(variables, caplog):
    empty = labelled(np.zeros((20, 20, 3), np.uint8))
    images = Images([DataError("one.jpg is broken"), empty, squares(0, 2), empty])
    result = evaluate(Sam(TINY), variables, images, EvaluationOptions(clicks=(1,), boxes=False))
    assert result.skipped == ("one.jpg is broken",)
    assert result.images == ("image 0",)
    assert result.indices.tolist() == [2]
    assert "one.jpg is broken" in caplog.text
    with pytest.raises(DataError, match=r"memory: no mask in 2 images.*one\.jpg"):
        evaluate(Sam(TINY), variables, Images([DataError("one.jpg is broken"), empty]), EvaluationOptions())


def test_samples_are_drawn_once_and_for_all(variables):
    images = Images([squares(seed, 1 + seed % 3) for seed in range(8)])

    def taken(**options):
        options = EvaluationOptions(clicks=(1,), boxes=False, images_per_batch=2, **options)
        return evaluate(Sam(TINY), variables, images, options)

    limited = taken(limit=3)
    assert len(limited.images) == 3
    assert limited.indices.tolist() == sorted(limited.indices.tolist())
    assert np.array_equal(limited.indices, taken(limit=3).indices)
    assert not np.array_equal(limited.indices, taken(limit=3, seed=1).indices)
    enough = taken(max_masks=5)
    assert 5 <= len(enough.iou) < 8
    assert len(enough.iou) - np.sum(enough.image_of == enough.image_of.max()) < 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clicks": (3, 1)}, "clicks are"),
        ({"clicks": (0,)}, "clicks are"),
        ({"clicks": (1, 1)}, "clicks are"),
        ({"clicks": (), "boxes": False}, "nothing to score"),
        ({"limit": 0}, "limit is 0"),
        ({"prompts_per_batch": -1}, "prompts_per_batch is -1"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EvaluationOptions(**options)
