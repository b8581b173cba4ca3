"""The JSON that clients send and get; OpenAPI is made of these."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from sam_jax.serving.refusals import Refusal
from sam_jax.serving.segmenting import ObjectPrompt

MAX_POINTS, MAX_OBJECTS, MAX_PHRASES = 512, 64, 16
Number = Annotated[float, Field(allow_inf_nan=False)]
Point = Annotated[list[Number], Field(min_length=2, max_length=2)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


Phrase = Annotated[str, Field(min_length=1, max_length=500)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ObjectIn(_Strict):
    """One object to segment: points, a box, an earlier mask, a text, or several of them. In pixels of the image."""

    point_coords: Annotated[list[Point], Field(max_length=MAX_POINTS)] | None = Field(
        None, description="[[x, y], ...], upright image, the first pixel's corner at 0"
    )
    point_labels: Annotated[list[Literal[0, 1]], Field(max_length=MAX_POINTS)] | None = Field(
        None, description="for each point 1 on the object, 0 off it"
    )
    box: Annotated[list[Number], Field(min_length=4, max_length=4)] | None = Field(None, description="[x0, y0, x1, y1]")
    mask_input: str | None = Field(
        None, description="a low_res_mask of an earlier answer: base64 of little-endian float32 logits (l, l)"
    )
    text: Phrase | None = Field(None, description="what it is, for a model with text_prompts; others have /text")


class MasksIn(_Strict):
    """What to segment in an image."""

    objects: Annotated[list[ObjectIn], Field(min_length=1, max_length=MAX_OBJECTS)]
    multimask_output: bool = Field(
        True, description="three masks for each object, best for a single point; false gives one"
    )
    format: Literal["rle", "png"] = Field("rle", description="of masks: COCO run lengths, or a PNG in base64")
    low_res_masks: bool = Field(False, description="also the logits, to send back as mask_input")


class Rle(BaseModel):
    """COCO's compressed run lengths."""

    size: tuple[int, int] = Field(description="[H, W]")
    counts: str


class MaskOut(BaseModel):
    """A mask in the image's pixels."""

    segmentation: Rle | str = Field(description="run lengths, or a PNG of 0 and 255 in base64")
    predicted_iou: float = Field(description="the model's own estimate of the mask's quality")
    area: int = Field(description="pixels")
    bbox: list[int] = Field(description="[x, y, w, h]: the first column and row, and how far the last ones are")
    low_res_mask: str | None = Field(None, description="base64 of little-endian float32 logits (l, l)")


class ObjectOut(BaseModel):
    """The masks of one object, in the order of the request's objects."""

    masks: list[MaskOut]


class MasksOut(BaseModel):
    """The answer to `MasksIn`."""

    image_id: str
    size: tuple[int, int] = Field(description="[H, W] of the image, upright")
    objects: list[ObjectOut]


class ImageOut(BaseModel):
    """An image that the server has encoded."""

    id: str
    size: tuple[int, int] = Field(description="[H, W] in pixels, upright: the frame of all prompts and masks")
    input_size: tuple[int, int] = Field(description="[h, w] as resized into the model's frame")
    image_size: int = Field(description="side of the model's square frame, in pixels")
    embedding_shape: list[int] = Field(description="[1, C, h, w] of what /embedding gives")


class EverythingIn(_Strict):
    """Everything mode. Fields as those of `sam_jax.config.AmgConfig`, which says what they mean."""

    points_per_side: Annotated[int, Field(ge=1, le=64)] = 32
    pred_iou_thresh: Share | None = None
    stability_score_thresh: Share | None = None
    box_nms_thresh: Share = 0.7
    crop_n_layers: Annotated[int, Field(ge=0, le=1)] = 0
    min_mask_region_area: Annotated[int, Field(ge=0, le=10**6)] = 0
    mask_nms_thresh: Share | None = None
    min_mask_area: Annotated[int, Field(ge=0, le=10**9)] = 0
    max_mask_cover: Share = 1.0


class TextIn(EverythingIn):
    """What phrases name, among the masks of everything mode."""

    points_per_side: Annotated[int, Field(ge=1, le=64)] = 16
    phrases: Annotated[list[Phrase], Field(min_length=1, max_length=MAX_PHRASES)]
    threshold: Annotated[Number, Field(ge=-1, le=1)] = Field(0.5, description="masks of a lower score are left out")
    masks_per_phrase: Annotated[int, Field(ge=1)] | None = Field(None, description="the best ones; null has all")

    def everything(self) -> dict[str, Any]:
        """The options of everything mode."""
        return self.model_dump(include=set(EverythingIn.model_fields))


class ModelOut(BaseModel):
    """The model, and what of it can be fetched."""

    name: str
    image_size: int = Field(description="side of the input frame, in pixels")
    embedding_shape: list[int] = Field(description="[1, C, h, w]; channels from prompt_embed_dim on are image_details")
    prompt_embed_dim: int = Field(description="channels of the ONNX decoder's image_embeddings")
    low_res_size: int = Field(description="l, side of a low_res_mask")
    mask_threshold: float = Field(description="a pixel is inside where its logit is above")
    crf: bool = Field(description="edge refinement: the ONNX decoder then takes input_image, too")
    phrases: bool = Field(description="there is a text model: /v1/images/{id}/text finds what phrases name")
    text_prompts: bool = Field(description="an object of /v1/images/{id}/masks may have a text")
    onnx: str = Field(description="/v1/model/decoder.onnx and encoder.onnx: ready, being made or not available")


class Health(BaseModel):
    """Whether the server works."""

    status: Literal["ok"]
    version: str
    model: str
    images: int = Field(description="in the cache")
    requests: int = Field(description="that are being worked on")


class Error(BaseModel):
    """Why a request was not done, in one line."""

    error: str


def object_prompt(given: ObjectIn, low: int, text_embedding: np.ndarray | None = None) -> ObjectPrompt:
    """Arrays of an object; `low` is the side of a mask input. Raises Refusal (422)."""
    if all(part is None for part in (given.point_coords, given.box, given.mask_input, given.text)):
        raise Refusal(422, "an object has no prompt; give point_coords with point_labels, a box or a mask_input")
    arrays = (given.point_coords, given.point_labels, given.box)
    coords, labels, box = (None if part is None else np.array(part, np.float64) for part in arrays)
    coords = coords.reshape(-1, 2) if coords is not None else None
    logits = None if given.mask_input is None else _logits(given.mask_input, low)
    return ObjectPrompt(coords, labels, box, logits, text_embedding)


def _logits(text: str, low: int) -> np.ndarray:
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refusal(422, f"mask_input is no base64 ({error})") from None
    if len(content) != 4 * low * low:
        raise Refusal(422, f"mask_input has {len(content)} bytes; expected {low}x{low} float32 = {4 * low * low}")
    return np.frombuffer(content, "<f4").reshape(1, low, low)


def encoded_logits(low_res_mask: np.ndarray) -> str:
    """(l, l) float32 as `ObjectIn.mask_input` takes it."""
    return base64.b64encode(low_res_mask.astype("<f4").tobytes()).decode("ascii")


def as_json(model: BaseModel) -> dict[str, Any]:
    """Plain dictionaries."""
    return model.model_dump(exclude_none=True)
