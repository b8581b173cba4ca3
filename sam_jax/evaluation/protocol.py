"""The interactive protocol of the SAM paper (section 7.1, appendix D.1), run over a whole set of images.

For every object:
  clicks      the first click is at the point farthest from the object's border, each further one at the deepest error
              (`clicks.next_click`). One click is ambiguous: the mask with the highest predicted IoU of three is scored
              and fed back; "oracle" scores the truly best of the three. From the second click on the decoder returns a
              single mask, given all clicks so far and the logits of the previous mask.
  box         the object's tight box, single mask.
  box + mask  the same box again, with that mask's logits fed back (appendix D.4).

Coordinates of clicks are pixel indices, as in the official code, whose prompt encoder adds the half pixel. Masks are
compared in pixels of the image. Clicking ends when a mask is perfect; later columns repeat its scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from sam_jax.evaluation.clicks import Click, first_click, next_click
from sam_jax.evaluation.objects import Engine, ObjectGroup, Target, split_into_rows
from sam_jax.evaluation.options import BOX, ORACLE, REFINED, EvaluationOptions, click_column
from sam_jax.evaluation.programs import slots_per_row
from sam_jax.evaluation.reading import SetReader
from sam_jax.evaluation.results import EvaluationResult
from sam_jax.evaluation.sets.image_sets import ImageSet, LabelledImage
from sam_jax.models.sam import Sam
from sam_jax.ops.rle import encode_mask


def evaluate(
    model: Sam,
    variables: Any,
    image_set: ImageSet,
    options: EvaluationOptions | None = None,
    progress: bool = False,
) -> EvaluationResult:
    """Scores a model on a set of labelled images.

    Args:
      model, variables: from `load_model`, or a training state's.
      image_set: from `open_image_set`, or anything with a `name` and a length whose items are `LabelledImage`s.
      options: what to score; None means the paper's clicks, and boxes.
      progress: show a progress bar on stderr.

    Raises:
      DataError: no image of the set has a mask. Images that cannot be read are skipped, with a warning.
    """
    options = options or EvaluationOptions()
    with ThreadPoolExecutor(options.threads) as pool:
        reader = SetReader(image_set, options, pool, progress)
        scores = _Scores(options)
        for batch in reader.batches():
            _score_batch(Engine(model, variables, pool), options, batch, scores)
    return scores.result(image_set.name, reader.skipped)


def _score_batch(
    engine: Engine, options: EvaluationOptions, batch: Sequence[tuple[int, LabelledImage]], scores: _Scores
) -> None:
    encoded = engine.encode([image.image for _, image in batch], options.images_per_batch)
    first = scores.add_images(batch)
    jobs = [(place, number) for place, (_, image) in enumerate(batch) for number in range(len(image.segmentations))]
    slots = slots_per_row([len(image.segmentations) for _, image in batch], options.prompts_per_batch)
    shape = options.prompts_per_batch // slots, slots
    for run in split_into_rows([place for place, _ in jobs], shape):
        targets = engine.map(lambda job: Target(job[0], batch[job[0]][1].segmentations[job[1]]), jobs[run])
        group = ObjectGroup(engine, encoded, targets, shape)
        outcome = Outcome(len(targets), options)
        if options.clicks:
            play_clicks(group, options, outcome)
        if options.boxes:
            play_boxes(group, outcome)
        scores.add_objects([(first + place, number) for place, number in jobs[run]], targets, outcome)


class Outcome:
    """Scores of a group's objects, filled in column by column.

    Attributes:
      iou, boundary_iou, predicted_iou: (n, c) float64.
      clicks: (n, K, 3) int x, y, label; label -1 for no click.
      masks: (n, c) RLEs if masks are kept.
    """

    def __init__(self, objects: int, options: EvaluationOptions) -> None:
        shape = objects, len(options.columns)
        self._columns, self._keep = options.columns, options.keep_masks
        self.iou, self.boundary_iou, self.predicted_iou = (np.full(shape, np.nan) for _ in range(3))
        self.clicks = np.full((shape[0], max(options.clicks, default=0), 3), -1)
        self.masks: list[list[dict[str, Any]]] = [[{} for _ in options.columns] for _ in range(objects)]

    def record(self, group: ObjectGroup, column: str, masks: Sequence[np.ndarray], predicted_iou: np.ndarray) -> None:
        """Scores one mask (H, W) bool of each object, and stores predicted IoUs (n,)."""
        place = self._columns.index(column)

        def score(number: int) -> None:
            target = group.targets[number]
            self.iou[number, place] = target.iou(masks[number])
            self.boundary_iou[number, place] = target.boundary_iou(masks[number])
            if self._keep:
                self.masks[number][place] = encode_mask(masks[number])

        group.engine.map(score, range(len(masks)))
        self.predicted_iou[:, place] = predicted_iou


@dataclass
class _Clicker:
    """The simulated user: the clicks on each object so far, and whether there is nothing left to click."""

    targets: Sequence[Target]
    taken: list[list[Click]] = field(default_factory=list)
    done: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.done = [False] * len(self.targets)

    def start(self, engine: Engine) -> None:
        self.taken = engine.map(lambda target: [first_click(target.mask)], self.targets)

    def go_on(self, engine: Engine, masks: Sequence[np.ndarray]) -> None:
        """Adds a click on each object whose mask is not perfect yet."""

        def click(number: int) -> None:
            if not self.done[number]:
                found = next_click(self.targets[number].mask, masks[number], self.taken[number])
                self.done[number] = found is None
                self.taken[number] += [found] if found else []

        engine.map(click, range(len(self.targets)))

    def points(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """coords (n, count, 2) float64 and labels (n, count) int, -1 for no click."""
        table = np.zeros((len(self.targets), count, 3))
        table[:, :, 2] = -1
        for number, clicks in enumerate(self.taken):
            table[number, : len(clicks)] = clicks
        return table[:, :, :2], table[:, :, 2].astype(int)


def play_clicks(group: ObjectGroup, options: EvaluationOptions, outcome: Outcome) -> None:
    """Clicks on every object of a group, up to the largest number that is scored, and records the scores."""
    clicker, last = _Clicker(group.targets), options.clicks[-1]
    clicker.start(group.engine)
    masks, estimates, logits = _first_masks(group, options, outcome, clicker)
    for number in range(2, last + 1):
        clicker.go_on(group.engine, masks)
        predictions = group.predict(*clicker.points(last), mask_inputs=logits)
        logits, fresh = group.choose(predictions, np.zeros(len(masks)))
        found = [found[0] for found in group.in_image(logits)]
        masks = [old if done else new for old, new, done in zip(masks, found, clicker.done, strict=True)]
        estimates = np.where(clicker.done, estimates, fresh)
        if number in options.clicks:
            outcome.record(group, click_column(number), masks, estimates)
    coords, labels = clicker.points(last)
    outcome.clicks[:] = np.concatenate([coords, labels[..., None]], axis=-1)


def _first_masks(
    group: ObjectGroup, options: EvaluationOptions, outcome: Outcome, clicker: _Clicker
) -> tuple[list[np.ndarray], np.ndarray, jax.Array]:
    """Masks (H, W) bool and predicted IoUs (n,) after the first click, and the logits to feed back."""
    predictions = group.predict(*clicker.points(1))
    estimates = group.gather(predictions.iou_predictions)[:, 1:]
    best = estimates.argmax(axis=1)
    logits, chosen = group.choose(predictions, 1 + best)
    if 1 not in options.clicks:
        return [masks[0] for masks in group.in_image(logits)], chosen, logits
    three = group.in_image(predictions.low_res_masks[:, :, 1:])
    masks = [found[index] for found, index in zip(three, best, strict=True)]
    outcome.record(group, click_column(1), masks, chosen)

    def truly_best(number: int) -> int:
        return int(np.argmax([group.targets[number].iou(mask) for mask in three[number]]))

    oracle = group.engine.map(truly_best, range(len(three)))
    picked = [found[index] for found, index in zip(three, oracle, strict=True)]
    outcome.record(group, ORACLE, picked, estimates[np.arange(len(oracle)), oracle])
    return masks, chosen, logits


def play_boxes(group: ObjectGroup, outcome: Outcome) -> None:
    """Scores each object's box, and the box with its mask fed back."""
    logits, boxes = None, group.boxes()
    for column in (BOX, REFINED):
        predictions = group.predict(boxes=boxes, mask_inputs=logits)
        logits, estimates = group.choose(predictions, np.zeros(len(group.targets)))
        outcome.record(group, column, [found[0] for found in group.in_image(logits, boxes)], estimates)


class _Scores:
    """Scores of all batches so far."""

    def __init__(self, options: EvaluationOptions) -> None:
        self._options = options
        self._images: list[str] = []
        self._indices: list[int] = []
        self._objects: list[tuple[int, int, int]] = []
        self._outcomes: list[Outcome] = []

    def add_images(self, batch: Sequence[tuple[int, LabelledImage]]) -> int:
        """Adds the images of a batch and returns the number of the first."""
        self._indices += [index for index, _ in batch]
        self._images += [image.name for _, image in batch]
        return len(self._images) - len(batch)

    def add_objects(self, places: Sequence[tuple[int, int]], targets: Sequence[Target], outcome: Outcome) -> None:
        """Adds a group: (image, mask within the image) of each object, and its scores."""
        areas = (int(np.count_nonzero(target.mask)) for target in targets)
        self._objects += [(*place, area) for place, area in zip(places, areas, strict=True)]
        self._outcomes.append(outcome)

    def _all(self, field: str) -> np.ndarray:
        return np.concatenate([getattr(outcome, field) for outcome in self._outcomes])

    def _masks(self) -> Iterator[tuple[dict[str, Any], ...]]:
        for outcome in self._outcomes:
            yield from map(tuple, outcome.masks)

    def result(self, name: str, skipped: Sequence[str]) -> EvaluationResult:
        """Everything as one result."""
        image_of, mask_of, areas = np.array(self._objects, np.int64).T
        return EvaluationResult(
            name,
            self._options.columns,
            tuple(self._images),
            np.array(self._indices, np.int64),
            image_of,
            mask_of,
            areas,
            self._all("iou"),
            self._all("boundary_iou"),
            self._all("predicted_iou"),
            self._all("clicks"),
            tuple(self._masks()) if self._options.keep_masks else None,
            tuple(skipped),
        )
