"""From prompts on some frames to masks on all: which frame follows from which, and the walk through them.

Each object's frame follows from the nearest frame on which the object is prompted (the earlier of two): forward from
it, or backward. So two walks, one in each direction, reach every frame, and a correction spreads in both directions
halfway to the next prompt; all prompted frames are remembered in both walks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from sam_jax.config import VideoConfig
from sam_jax.inference.predictor import SamPredictor
from sam_jax.models.sam import Sam, inference_variables
from sam_jax.ops.masks import postprocess_masks
from sam_jax.ops.transforms import pad_to_square, resize_longest_side
from sam_jax.video.frames import Frames
from sam_jax.video.matching import cell_grid
from sam_jax.video.memory import Memory, Remembered
from sam_jax.video.prompts import FramePrompt, check_prompts, join_prompts
from sam_jax.video.step import CarriedMasks, EncodedFrame, apart, carry_to_frame, cell_shares, encode_frame

_to_pixels = jax.jit(postprocess_masks, static_argnums=(1, 2, 3))
_PLAINLY = 0.1  # predicted IoU by which a mask is plainly surer than another


class FrameMasks(NamedTuple):
    """Masks of some objects on a frame.

    Attributes:
      frame: its number.
      objects: (n,) int, the numbers of the objects that were looked for in this walk.
      masks: (n, H, W) bool in pixels of the frame, disjoint; empty for an object that is hidden.
      iou_predictions: (n,) float32 of the mask decoder.
      hidden: (n,) bool.
      prompted: (n,) bool.
    """

    frame: int
    objects: np.ndarray
    masks: np.ndarray
    iou_predictions: np.ndarray
    hidden: np.ndarray
    prompted: np.ndarray


class _Prompted(NamedTuple):
    """A prompted frame: low_res_masks (N, 4h, 4w), iou_predictions (N,), given (N,) bool, and what is remembered."""

    low_res_masks: np.ndarray
    iou_predictions: np.ndarray
    given: np.ndarray
    remembered: Remembered


class VideoPropagator:
    """Carries masks through a video. Frames are read one after another; memory does not grow with their number.

        frames = open_frames("frames/")
        prompts = [FramePrompt(frame=0, object=1, box=(40, 50, 210, 300))]
        propagator = VideoPropagator(*sam_jax.load_model(), frames, prompts)
        for found in propagator.run():
            found.frame, found.masks

    A frame is yielded twice if some of its objects follow from earlier frames and others from later ones.
    """

    def __init__(
        self,
        model: Sam,
        variables: dict[str, Any],
        frames: Frames,
        prompts: Sequence[FramePrompt],
        settings: VideoConfig | None = None,
    ) -> None:
        """Takes a model, a video and prompts. Masks are not refined at edges (`SamConfig.crf`).

        Raises:
          ValueError: a prompt is outside of its frame or of the video.
        """
        self.model, self.frames = Sam(dataclasses.replace(model.config, crf=False)), frames
        self.variables = inference_variables(model.config, variables)
        self.settings = settings or VideoConfig()
        self.prompts = join_prompts(prompts)
        check_prompts(self.prompts, frames)
        self.objects = np.array(sorted({prompt.object for prompt in self.prompts}))
        side = model.config.image_size
        self._input_size: tuple[int, int] = resize_longest_side(np.zeros((*frames.size, 3), np.uint8), side).shape[:2]
        self._grid = cell_grid(model.config, self.settings, self._input_size)
        self._walks = plan_walks(len(frames.names), self.objects, self.prompts)
        self.position = 0
        self._memory: Memory | None = None
        self._prompted: dict[int, _Prompted] = {}

    def __len__(self) -> int:
        """Frames of both walks together."""
        return len(self._walks)

    def run(self) -> Iterator[FrameMasks]:
        """Yields the masks of every frame, from `position` on."""
        self._prompted = {frame: self._predict_prompted(frame) for frame in {p.frame for p in self.prompts}}
        if self._memory is None:
            self._memory = self._new_memory()
        while self.position < len(self._walks):
            direction, frame, active = self._walks[self.position]
            if self.position and self._walks[self.position - 1][0] != direction:
                self._memory = self._new_memory()
            found = self._on_frame(frame, active, self._memory)
            self.position += 1
            yield found

    def state(self) -> dict[str, np.ndarray]:
        """Where the walk is and what it remembers, for `restore`."""
        return {"position": np.array(self.position)} | (self._memory.state() if self._memory else {})

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Continues from a `state` of the same model, video, prompts and settings: `run` then yields what follows."""
        self._prompted = {frame: self._predict_prompted(frame) for frame in {p.frame for p in self.prompts}}
        self.position = int(state["position"])
        self._memory = self._new_memory()
        self._memory.restore(state)

    def _new_memory(self) -> Memory:
        anchors = [self._prompted[frame].remembered for frame in sorted(self._prompted)]
        return Memory(anchors, self.settings, self.settings.radius * max(self._grid.rows, self._grid.cols))

    def _on_frame(self, frame: int, active: np.ndarray, memory: Memory) -> FrameMasks:
        prompted = self._prompted.get(frame)
        given = np.zeros_like(active) if prompted is None else prompted.given & active
        memory.forget(given)
        if (active & ~given).any():
            encoded = self._encode(self.frames.read(frame))
            carried = self._carry(encoded, memory, frame, active & ~given)
            masks, ious = np.array(carried.low_res_masks), np.array(carried.iou_predictions)
            relative = np.maximum(ious, 0) / np.maximum(self._first_ious(), 1e-6)
            hidden = ~np.asarray(carried.found) | (relative < self.settings.occlusion_iou)
            good = active & ~given & ~hidden & (relative >= self.settings.good_iou)
            memory.remember(Remembered(frame, encoded.cells, carried.shares, good))
        else:
            assert prompted is not None
            masks, ious = np.array(prompted.low_res_masks), np.array(prompted.iou_predictions)
            hidden = np.zeros_like(active)
        if prompted is not None:
            masks[given], ious[given] = prompted.low_res_masks[given], prompted.iou_predictions[given]
            hidden &= ~given
        return FrameMasks(
            frame, self.objects[active], self._pixels(masks[active], hidden[active]), ious[active], hidden[active],
            given[active],
        )  # fmt: skip

    def _first_ious(self) -> np.ndarray:
        """(N,) the highest predicted IoU of each object's prompts."""
        scores = [np.where(one.given, one.iou_predictions, 0) for one in self._prompted.values()]
        best: np.ndarray = np.max(scores, axis=0)
        return best

    def _pixels(self, logits: np.ndarray, hidden: np.ndarray) -> np.ndarray:
        """(n, 4h, 4w) logits -> (n, H, W) bool, disjoint."""
        side, threshold = self.model.config.image_size, self.model.config.mask_threshold
        masks = np.zeros((len(logits), *self.frames.size), bool)
        strongest = np.full(self.frames.size, threshold, np.float32)
        for number in np.flatnonzero(~hidden):
            enlarged = np.asarray(_to_pixels(logits[number], self._input_size, self.frames.size, (side, side)))
            stronger = enlarged > strongest
            masks[:, stronger] = False
            masks[number] = stronger
            strongest = np.where(stronger, enlarged, strongest)
        return masks

    def _encode(self, frame: np.ndarray) -> EncodedFrame:
        side = self.model.config.image_size
        padded = pad_to_square(resize_longest_side(frame, side), side)
        size = np.array(self._input_size, np.int32)
        return encode_frame(self.model, self.variables, padded, size, settings=self.settings, grid=self._grid)

    def _carry(self, encoded: EncodedFrame, memory: Memory, frame: int, active: np.ndarray) -> CarriedMasks:
        stacked = memory.stack(frame, active)
        return carry_to_frame(self.model, self.variables, encoded, *stacked, settings=self.settings, grid=self._grid)

    def _predict_prompted(self, frame: int) -> _Prompted:
        """The masks of a frame's prompts, as the image predictor gives them; those of other objects are absent."""
        pixels = self.frames.read(frame)
        predictor = SamPredictor(self.model, self.variables)
        predictor.set_image(pixels)
        side, count = 4 * self.model.config.image_encoder.grid_size, len(self.objects)
        masks, ious = np.full((count, side, side), -10.0, np.float32), np.zeros(count, np.float32)
        given = np.zeros(count, bool)
        for prompt in (p for p in self.prompts if p.frame == frame):
            number = int(np.searchsorted(self.objects, prompt.object))
            masks[number], ious[number] = _best_mask(predictor, prompt)
            given[number] = True
        masks = np.array(_apart(masks))
        remembered = Remembered(frame, self._encode(pixels).cells, _shares(masks, self._grid), given)
        return _Prompted(masks, ious, given, remembered)


_apart = jax.jit(apart)
_shares = partial(jax.jit, static_argnums=1)(cell_shares)


def _best_mask(predictor: SamPredictor, prompt: FramePrompt) -> tuple[np.ndarray, float]:
    """The low-resolution logits (l, l) of a prompt's mask, and its predicted IoU.

    A single point is ambiguous, and gets the best of three masks. Any other prompt gets the single mask, unless it is
    plainly less sure than the best of three: all that follows depends on this mask.
    """
    arguments: dict[str, Any] = {
        "point_coords": np.array(prompt.points) if prompt.points else None,
        "point_labels": np.array(prompt.labels) if prompt.points else None,
        "box": None if prompt.box is None else np.array(prompt.box),
    }
    three = predictor.predict(**arguments, multimask_output=True)
    best = int(three.iou_predictions.argmax())
    if prompt.box is not None or len(prompt.points) > 1:
        single = predictor.predict(**arguments, multimask_output=False)
        if single.iou_predictions[0] + _PLAINLY >= three.iou_predictions[best]:
            return single.low_res_masks[0], float(single.iou_predictions[0])
    return three.low_res_masks[best], float(three.iou_predictions[best])


def plan_walks(count: int, objects: np.ndarray, prompts: Sequence[FramePrompt]) -> list[tuple[int, int, np.ndarray]]:
    """The frames in the order in which they are reached: (direction 1 or -1, frame, active objects (N,) bool).

    Prompted frames belong to the walk forward.
    """
    nearest = np.empty((len(objects), count), int)
    for row, number in zip(nearest, objects, strict=True):
        given = np.array(sorted({p.frame for p in prompts if p.object == number}))
        row[:] = given[np.abs(np.arange(count)[:, None] - given).argmin(axis=1)]
    places = np.arange(count)
    forward = [(1, t, nearest[:, t] <= t) for t in places.tolist()]
    backward = [(-1, t, nearest[:, t] > t) for t in places[::-1].tolist()]
    return [walk for walk in forward + backward if walk[2].any()]
