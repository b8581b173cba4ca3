"""The JSON that annotators' clients send and get; OpenAPI is made of these."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from sam_jax.engine.rows import ImageRow, MaskDraft, MaskRow, Task
from sam_jax.engine.statistics import Statistics

_MOST_POINTS, _MOST_MASKS, _MOST_PASSED = 512, 10_000, 1000
_Number = Annotated[float, Field(allow_inf_nan=False)]
_Seconds = Annotated[float, Field(ge=0, le=10**7, allow_inf_nan=False)]
_Point = Annotated[list[_Number], Field(min_length=2, max_length=2)]
_Text = StringConstraints(strip_whitespace=True, min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")
Annotator = Annotated[str, _Text]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class RleIn(_Strict):
    """COCO's compressed run lengths."""

    size: Annotated[list[int], Field(min_length=2, max_length=2, description="[H, W] of the image")]
    counts: str


class PromptsIn(_Strict):
    """How the mask was asked for, in pixels of the image."""

    point_coords: Annotated[list[_Point], Field(max_length=_MOST_POINTS)] | None = None
    point_labels: Annotated[list[Literal[0, 1]], Field(max_length=_MOST_POINTS)] | None = None
    box: Annotated[list[_Number], Field(min_length=4, max_length=4)] | None = None


class NextIn(_Strict):
    """Who wants an image."""

    annotator: Annotator = Field(description="a name to tell annotators apart, no proof of who it is")
    image_id: int | None = Field(None, description="this image")
    passed: Annotated[list[int], Field(max_length=_MOST_PASSED)] = Field([], description="images not to be given now")
    shared: bool = Field(False, description="with image_id, to label it once more, from nothing")


class AnnotatorIn(_Strict):
    """Who holds the task."""

    annotator: Annotator


class MaskIn(_Strict):
    """A mask to accept."""

    annotator: Annotator
    version: Annotated[int, Field(ge=0)] = Field(description="of the mask when it was read, 0 for a new one")
    segmentation: RleIn
    name: Annotated[str, _Text] | None = None
    prompts: PromptsIn | None = None
    corrections: Annotated[int, Field(ge=0, le=10**6)] = Field(0, description="edits after the first proposal")
    seconds: _Seconds | None = Field(None, description="of work on it")
    proposal: RleIn | None = Field(None, description="what the model proposed first")
    predicted_iou: _Number | None = None
    prominence: Annotated[int, Field(ge=0, le=10**6)] | None = Field(None, description="rank, 0 the most prominent")

    def draft(self, key: str) -> MaskDraft:
        """As the store takes it."""
        return MaskDraft(key=key, **self.model_dump(exclude={"annotator", "version"}))


class DoneIn(_Strict):
    """A finished image."""

    annotator: Annotator
    seconds: _Seconds | None = Field(None, description="of work on the image")
    order: Annotated[list[str], Field(max_length=_MOST_MASKS)] = Field([], description="keys, most prominent first")


class RleOut(BaseModel):
    """COCO's compressed run lengths, in their shortest form."""

    size: tuple[int, int] = Field(description="[H, W] of the image")
    counts: str


class EngineMask(BaseModel):
    """A mask as it stands in the store."""

    key: str
    version: int = Field(description="to be sent with the next change")
    state: str = Field(description="proposed by a model, accepted or deleted")
    stage: str
    author: str
    name: str | None
    segmentation: RleOut
    bbox: list[int] = Field(description="[x, y, w, h]: the first column and row, and how far the last ones are")
    area: int
    predicted_iou: float | None
    seconds: float | None
    corrections: int
    prominence: int | None


class EngineImage(BaseModel):
    """An image; its file is at /v1/engine/images/{id}/file."""

    id: int
    file_name: str
    size: tuple[int, int] = Field(description="[H, W] in pixels, upright")


class TaskOut(BaseModel):
    """An image to label, and the masks that it has."""

    task_id: int
    version: int
    stage: str = Field(description="assisted-manual, semi-automatic, repeat (from nothing) or audit (correct all)")
    lease_seconds: float = Field(description="the image is theirs for so long; renew it before")
    image: EngineImage
    masks: list[EngineMask]


class LeaseOut(BaseModel):
    """For how long a task has been renewed."""

    lease_seconds: float


class StatisticsOut(BaseModel):
    """Averages; null where there is nothing to average."""

    masks_per_image: float | None
    seconds_per_mask: float | None
    share_new: float | None = Field(description="of masks accepted in the semi-automatic stage, those people added")
    proposal_iou: float | None = Field(description="IoU of the first proposal with what was accepted")


class EngineOut(BaseModel):
    """Where the store stands."""

    stage: str
    images: int
    done: int
    open: int
    masks: int = Field(description="accepted, of all stages")
    model_version: str = Field(description="the name of the model that this server runs")
    promoted: str = Field(description="the name of the store's present model; a server that is started anew runs it")
    hint_seconds: float = Field(description="after so long on a mask, tell the annotator that a rough one will do")
    statistics: StatisticsOut


class MaskConflict(BaseModel):
    """The mask has changed since it was read."""

    error: str
    mask: EngineMask | None = Field(description="as it stands; null where it was never saved")


class NotHeldOut(BaseModel):
    """The task is not theirs."""

    error: str
    annotator: str | None = Field(description="who holds or has finished it; null is nobody")


def mask_out(mask: MaskRow) -> EngineMask:
    """A mask for clients."""
    values = dataclasses.asdict(mask)
    return EngineMask(**{name: values[name] for name in EngineMask.model_fields})


def task_out(task: Task, image: ImageRow, masks: list[MaskRow], lease_seconds: float) -> TaskOut:
    """A task for clients."""
    about = EngineImage(id=image.id, file_name=image.file_name, size=image.size)
    return TaskOut(
        task_id=task.id,
        version=task.version,
        stage=task.stage,
        lease_seconds=lease_seconds,
        image=about,
        masks=[mask_out(mask) for mask in masks],
    )


def engine_out(found: Statistics, model_version: str, promoted: str, hint_seconds: float) -> EngineOut:
    """The statistics for clients."""
    values: dict[str, Any] = dataclasses.asdict(found)
    averages = StatisticsOut(**{name: values.pop(name) for name in StatisticsOut.model_fields})
    values |= {"model_version": model_version, "promoted": promoted}
    return EngineOut(**values, hint_seconds=hint_seconds, statistics=averages)
