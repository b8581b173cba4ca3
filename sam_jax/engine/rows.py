"""What the store gives and takes: rows as frozen structs, and why it says no."""

from __future__ import annotations

import dataclasses
import uuid
from typing import Any

from sam_jax.engine.schema import StoreError

ASSISTED, SEMI_AUTOMATIC, AUTOMATIC = "assisted-manual", "semi-automatic", "automatic"
REPEAT, AUDIT = "repeat", "audit"
# What the data set is made of; the others check it, and neither training nor exports take their masks unasked.
STAGES = (ASSISTED, SEMI_AUTOMATIC, AUTOMATIC)
CHECKS = (REPEAT, AUDIT)
OPEN, CLAIMED, DONE = "open", "claimed", "done"
PROPOSED, ACCEPTED, DELETED = "proposed", "accepted", "deleted"
CANDIDATE, PROMOTED, REJECTED, RETIRED = "candidate", "promoted", "rejected", "retired"
Rle = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class ImageRow:
    """An image.

    Attributes:
      file_name: below DIR/images. height, width: pixels, upright. sha256: of the file.
      held_out: for evaluation; never trained on.
      added_at: seconds since 1970, as all times here.
    """

    id: int
    file_name: str
    height: int
    width: int
    sha256: str
    held_out: bool
    added_at: float

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.height, self.width


@dataclasses.dataclass(frozen=True)
class Task:
    """An image for somebody to label.

    Attributes:
      stage: of STAGES but "automatic", or of CHECKS. "repeat" labels an image once more, from nothing, to compare
        annotators; "audit" corrects copies of automatic masks.
      state: "open", "claimed" or "done".
      annotator: who holds it, or finished it.
      lease_until: it can be claimed by others from then on.
      version: counts every change.
      model_version: id of the model that helped, once it is done.
      masks: accepted ones of the image when it was done.
      seconds: of work on it.
    """

    id: int
    image_id: int
    stage: str
    state: str
    annotator: str | None
    lease_until: float | None
    version: int
    model_version: int | None
    masks: int | None
    seconds: float | None
    finished_at: float | None


@dataclasses.dataclass(frozen=True)
class MaskRow:
    """A mask.

    Attributes:
      key: a UUID that its maker chose.
      task_id: of the task in which it was first saved; None for those that a model made without one.
      stage: in which it was first saved; of STAGES or CHECKS.
      state: "proposed" by a model, "accepted" or "deleted".
      from_model: whether a model made it; such masks keep this when people correct them.
      author: who saved it last.
      model_version: id of the model that made it or helped.
      segmentation: COCO's compressed run lengths, {"size": [H, W], "counts"}. area: pixels.
      bbox: [x, y, w, h] as in SA-1B: first column and row, and how far the last ones are.
      prompts: {"point_coords", "point_labels", "box"}, pixels of the image, or None.
      corrections: edits after the first proposal. seconds: of work on it.
      proposal: what a model proposed first, or None. proposal_iou: its IoU with `segmentation`.
      prominence: rank among the masks of the image, 0 the most prominent.
      version: 1 when new, one more with each change of its content.
    """

    key: str
    image_id: int
    task_id: int | None
    stage: str
    state: str
    from_model: bool
    author: str
    model_version: int | None
    name: str | None
    segmentation: Rle
    area: int
    bbox: list[int]
    predicted_iou: float | None
    stability_score: float | None
    prompts: dict[str, Any] | None
    corrections: int
    seconds: float | None
    proposal: Rle | None
    proposal_iou: float | None
    prominence: int | None
    created_at: float
    updated_at: float
    version: int


@dataclasses.dataclass(frozen=True)
class MaskDraft:
    """A mask to be saved. Fields as in `MaskRow`; the store computes area, bbox and proposal_iou."""

    key: str
    segmentation: Rle
    name: str | None = None
    prompts: dict[str, Any] | None = None
    corrections: int = 0
    seconds: float | None = None
    proposal: Rle | None = None
    predicted_iou: float | None = None
    stability_score: float | None = None
    prominence: int | None = None


@dataclasses.dataclass(frozen=True)
class ModelVersion:
    """A model.

    Attributes:
      path: its directory; None is the bundled one. Relative paths are below the store's directory.
      parent: id of the version that it was trained from.
      round: how many trainings it is away from the first.
      state: "candidate", "promoted" (the present one; there is one), "rejected" or "retired".
      metrics: what was measured, as JSON values.
    """

    id: int
    name: str
    path: str | None
    parent: int | None
    round: int
    state: str
    metrics: dict[str, Any]
    created_at: float


class NotFound(StoreError):
    """There is no such image, task, mask or model version."""


class NotHeld(StoreError):
    """Somebody writes to a task that is not theirs. `task` is as it stands; its `annotator` holds it, or nobody."""

    def __init__(self, task: Task, annotator: str) -> None:
        states = {OPEN: "nobody holds it", DONE: f"{task.annotator} has finished it"}
        why = states.get(task.state, f"{task.annotator} holds it")
        super().__init__(f"task {task.id} is not held by {annotator}: {why}; ask for the next image")
        self.task = task


class VersionConflict(StoreError):
    """A mask has changed since it was read. `present` is the mask as it stands, None where it has never been saved."""

    def __init__(self, key: str, expected: int, present: MaskRow | None) -> None:
        now = "has not been saved yet" if present is None else f"has version {present.version}, by {present.author}"
        super().__init__(f"mask {key} {now}; expected version {expected}: read it again, then decide")
        self.present = present


def checked_key(key: Any) -> str:
    """A mask's key as it is stored. Raises ValueError if it is no UUID."""
    try:
        return str(uuid.UUID(key))
    except (ValueError, TypeError, AttributeError):
        raise ValueError(f"the key {key!r} is no UUID; make one for each new mask") from None
