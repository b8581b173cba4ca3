"""Which frame follows from which, what is remembered, and masks on a clip through a tiny model."""

import numpy as np
import pytest

from sam_jax.config import VideoConfig
from sam_jax.inference.predictor import PredictedMasks
from sam_jax.models.sam import Sam
from sam_jax.video.memory import Memory, Remembered
from sam_jax.video.prompts import FramePrompt, join_prompts
from sam_jax.video.propagation import VideoPropagator, _best_mask, plan_walks
from tests.tiny import TINY
from tests.video.moving_cutouts import Clip, ClipFrames

BOX = (10.0, 8.0, 50.0, 40.0)


@pytest.fixture(scope="module")
def frames():
    rng = np.random.default_rng(0)
    first = rng.integers(0, 256, (48, 80, 3), np.uint8)
    images = np.stack([np.roll(first, t, axis=1) for t in range(6)])
    return ClipFrames(Clip(images, np.zeros(images.shape[:3], np.uint8)))


def walks(count, *prompts):
    given = [FramePrompt(frame, number, box=BOX) for frame, number in prompts]
    objects = np.array(sorted({number for _, number in prompts}))
    return [(way, frame, active.tolist()) for way, frame, active in plan_walks(count, objects, given)]


def test_a_frame_follows_from_the_nearest_prompt():
    assert walks(3, (0, 1)) == [(1, 0, [True]), (1, 1, [True]), (1, 2, [True])]
    assert walks(3, (1, 1)) == [(1, 1, [True]), (1, 2, [True]), (-1, 0, [True])]
    # Corrected on frame 5: frames 3 and 4 follow from it, backwards.
    assert [(way, frame) for way, frame, _ in walks(6, (0, 1), (5, 1))] == [
        *((1, t) for t in (0, 1, 2, 5)),
        *((-1, t) for t in (4, 3)),
    ]
    assert walks(2, (0, 1), (1, 7)) == [(1, 0, [True, False]), (1, 1, [True, True]), (-1, 0, [False, True])]


def test_the_last_good_frame_of_each_object_stays():
    memory = Memory([Remembered(0, np.zeros((1, 1)), np.zeros((2, 1)), np.array([True, True]))], VideoConfig(), 4.0)
    for frame, valid in enumerate(([1, 1], [1, 0], [1, 0], [1, 0], [0, 0], [1, 0]), 1):
        memory.remember(Remembered(frame, np.zeros((1, 1)), np.zeros((2, 1)), np.array(valid, bool)))
    assert [one.frame for one in memory.recent] == [1, 4, 6]
    _, _, valid, radius = memory.stack(7, np.array([True, False]))
    assert np.asarray(valid).tolist() == [[True, False], *[[True, False]] * 3]
    assert np.asarray(radius).tolist() == [4.0, 4 * 2.25, 4 * 1.5, 4.0]
    memory.forget(np.array([True, False]))
    assert [one.frame for one in memory.recent] == [1]


def test_points_and_boxes_of_an_object_are_joined():
    parts = [FramePrompt(0, 1, box=BOX), FramePrompt(0, 1, ((1, 2),), (0,)), FramePrompt(2, 1, ((3, 4),), (1,))]
    assert join_prompts(parts) == [FramePrompt(0, 1, ((1, 2),), (0,), BOX), parts[2]]
    with pytest.raises(ValueError, match="two boxes on frame 0"):
        join_prompts([parts[0], parts[0]])


class Sure:
    """Answers as a predictor: a single mask and three, numbered by their logits, of given predicted IoUs."""

    def __init__(self, single, three):
        self.ious = {False: [single], True: three}

    def predict(self, point_coords, point_labels, box, multimask_output):
        ious = np.array(self.ious[multimask_output], np.float32)
        numbers = np.arange(1, 4) if multimask_output else np.zeros(1)
        return PredictedMasks(None, ious, np.tile(numbers[:, None, None], (1, 2, 2)))


@pytest.mark.parametrize(
    ("prompt", "single", "best"),
    [
        (FramePrompt(0, 1, box=BOX), 0.5, 3),  # a box's single mask gives way to one that is plainly surer,
        (FramePrompt(0, 1, box=BOX), 0.65, 0),  # and to no other
        (FramePrompt(0, 1, ((1, 2), (3, 4)), (1, 0)), 0.65, 0),
        (FramePrompt(0, 1, ((1, 2),), (1,)), 0.9, 3),  # a single point is ambiguous in any case
    ],
)
def test_the_mask_that_is_carried_on(prompt, single, best):
    logits, iou = _best_mask(Sure(single, [0.2, 0.6, 0.7]), prompt)
    assert (logits == best).all()
    assert iou == pytest.approx(0.7 if best == 3 else single)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({"frame": 6, "box": BOX}, "frame 6 does not exist; the video has frames 0 to 5"),
        ({"frame": 0, "box": (90, 0, 95, 10)}, "box 90,0,95,10 lies outside of the frame 0, which is 80x48 pixels"),
        ({"frame": 0, "box": (9, 0, 5, 10)}, "box 9,0,5,10 is empty"),
        ({"frame": 1, "points": ((1, 99),), "labels": (1,)}, "point 1,99 lies outside of the frame 1"),
    ],
)
def test_prompts_outside(prompt, message, frames, variables):
    with pytest.raises(ValueError, match=message):
        VideoPropagator(Sam(TINY), variables, frames, [FramePrompt(**{"object": 1} | prompt)])


def run(frames, variables, prompts, **settings):
    return VideoPropagator(Sam(TINY), variables, frames, prompts, VideoConfig(**settings))


TWO = [FramePrompt(1, 1, box=BOX), FramePrompt(1, 2, box=(55.0, 5.0, 75.0, 30.0)), FramePrompt(4, 1, box=BOX)]


def test_a_walk_continues_where_it_was(frames, variables):
    whole = list(run(frames, variables, TWO, occlusion_iou=0.0).run())
    assert [(one.frame, one.objects.tolist()) for one in whole] == [
        (1, [1, 2]),
        (2, [1, 2]),
        (3, [2]),
        (4, [1, 2]),
        (5, [1, 2]),
        (3, [1]),
        (0, [1, 2]),
    ]
    assert [one.prompted.tolist() for one in whole][3] == [True, False]
    assert not any((one.masks.sum(axis=0) > 1).any() for one in whole)
    assert sum(one.masks.any() for one in whole) >= 4
    for stop in (2, 6):
        first = run(frames, variables, TWO, occlusion_iou=0.0)
        for _, _found in zip(range(stop), first.run(), strict=False):
            pass
        second = run(frames, variables, TWO, occlusion_iou=0.0)
        second.restore(first.state())
        rest = list(second.run())
        assert len(rest) == len(whole) - stop
        for one, other in zip(rest, whole[stop:], strict=True):
            np.testing.assert_array_equal(one.masks, other.masks)
            np.testing.assert_array_equal(one.iou_predictions, other.iou_predictions)


def test_a_hidden_object_has_no_mask(frames, variables):
    """A share of 1: whatever is less sure than the prompt's mask counts as hidden."""
    propagator = run(frames, variables, TWO[:2], occlusion_iou=1.0)
    first, *others = propagator.run()
    assert first.hidden.tolist() == [False, False]
    gone = [(one.hidden[row], one.masks[row].any()) for one in others for row in range(2)]
    assert any(hidden for hidden, _ in gone)
    assert not any(hidden and some for hidden, some in gone)
