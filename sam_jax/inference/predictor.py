"""SamPredictor: encode one image, then segment it with any number of prompts.

Arguments, shapes and coordinate frames are those of the official class of the same name; `predict_many` is ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from sam_jax.inference.buckets import bucket_size
from sam_jax.inference.encoding import EncodedImages, encode_and_wait, prepare_embeddings
from sam_jax.inference.images import as_array
from sam_jax.inference.text_prompts import check_text_embeddings
from sam_jax.models.mask_decoder import PreparedEmbeddings
from sam_jax.models.sam import Sam, inference_variables
from sam_jax.ops.crf import box_limits, refine_masks
from sam_jax.ops.masks import postprocess_masks
from sam_jax.ops.transforms import (
    boxes_to_input_frame,
    pad_to_square,
    resize_longest_side,
    to_input_frame,
)
from sam_jax.structs import MaskPredictions, Prompts

# Prompt counts are padded to one of these, so that only a handful of programs are compiled.
POINT_BUCKETS = (2, 8, 32, 128, 512)
PROMPT_BUCKETS = (1, 4, 16, 64)

# Ends of error messages.
_MANY = "for several objects use predict_many"
_ONE = "N is the number of objects, and predict takes one without that axis"
_LOGITS = "logits, such as one of an earlier prediction's low_res_masks"


class PredictedMasks(NamedTuple):
    """What `predict` returns; `predict_many` adds a leading axis N to each.

    Attributes:
      masks: (M, H, W) bool in pixels of the image, or float32 logits with `return_logits`.
      iou_predictions: (M,) float32, the model's estimate of each mask's quality.
      low_res_masks: (M, 4h, 4w) float32 logits; feed one back as `mask_input`.
    """

    masks: np.ndarray
    iou_predictions: np.ndarray
    low_res_masks: np.ndarray


@partial(jax.jit, static_argnums=0)
def _decode(model: Sam, variables: Any, image_embeddings: PreparedEmbeddings, prompts: Prompts) -> MaskPredictions:
    # Always all masks: selecting one or three on the host saves a second program.
    predictions: Any = model.apply(variables, image_embeddings, prompts, method="predict_masks")
    return predictions


@partial(jax.jit, static_argnums=(1, 2, 3))
def _enlarge(
    low_res_mask: jax.Array, input_size: tuple[int, int], original_size: tuple[int, int], image_size: tuple[int, int]
) -> jax.Array:
    return postprocess_masks(low_res_mask, input_size, original_size, image_size)


_to_edges = jax.jit(refine_masks, static_argnames="patch_size")


class SamPredictor:
    """Promptable segmentation of one image at a time.

        predictor = SamPredictor(*sam_jax.load_model())
        predictor.set_image(sam_jax.read_image("image.jpg"))
        masks, iou_predictions, low_res_masks = predictor.predict(np.array([[500, 375]]), np.array([1]))

    Coordinates are (x, y) in pixels of the image; the top left corner is (0, 0).
    """

    def __init__(self, model: Sam, variables: dict[str, Any]) -> None:
        self.model = model
        self.variables = inference_variables(model.config, variables)
        self.reset_image()

    def reset_image(self) -> None:
        """Forgets the current image."""
        self.original_size: tuple[int, int] | None = None
        self.input_size: tuple[int, int] | None = None
        self._encoded: EncodedImages | None = None
        self._prepared: PreparedEmbeddings | None = None

    @property
    def is_image_set(self) -> bool:
        """Whether `set_image` has been called."""
        return self._encoded is not None

    def set_image(self, image: np.ndarray | Image.Image, image_format: str = "RGB") -> None:
        """Runs the image encoder on an image; `predict` then costs only the mask decoder.

        Args:
          image: (H, W, 3) uint8, or a Pillow image, whose EXIF rotation is applied, as for files.
          image_format: of an array, "RGB" or "BGR".

        Raises:
          ValueError: another dtype, shape or format.
          ImageError: Pillow cannot decode the image.
        """
        image = as_array(image, image_format)
        self.reset_image()
        if image_format == "BGR":
            image = image[..., ::-1]
        side = self.model.config.image_size
        resized = resize_longest_side(np.ascontiguousarray(image), side)
        input_size = np.array(resized.shape[:2], np.int32)
        images = pad_to_square(resized, side)[None]
        self._encoded = encode_and_wait(self.model, self.variables, images, input_size[None])
        self._prepared = prepare_embeddings(self.model, self.variables, self._encoded.embeddings)
        self.original_size = image.shape[:2]
        self.input_size = resized.shape[:2]

    def get_image_embedding(self) -> jax.Array:
        """The image's embedding, (1, C, h, w) float32: channels first, as in the official class.

        Raises:
          RuntimeError: no image is set.
        """
        return self._image().embeddings.transpose(0, 3, 1, 2)

    def predict(
        self,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        box: np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        text_embedding: np.ndarray | None = None,
    ) -> PredictedMasks:
        """Masks of one object.

        Args:
          point_coords: (P, 2) x, y in pixels of the image.
          point_labels: (P,) 1 on the object, 0 off it.
          box: (4,) x0, y0, x1, y1 in pixels of the image.
          mask_input: (1, 4h, 4w) logits, usually one of an earlier call's `low_res_masks`.
          multimask_output: True returns three masks, for ambiguous prompts such as a single point; False one. HQ-SAM
            always returns one; True then means the best of three.
          return_logits: return logits instead of booleans.
          text_embedding: (E,) for a model with text prompts, such as `LoadedTowers.embed_texts(["a dog"])[0]`.

        Raises:
          RuntimeError: no image is set.
          ValueError: a prompt has another shape, is outside the image, or has labels other than 0 and 1.
        """
        coords, labels = _numbers("point_coords", point_coords), _numbers("point_labels", point_labels)
        one_box, mask = _numbers("box", box), _numbers("mask_input", mask_input, dtype=None)
        # Check before adding the axis N, so that errors name the shapes that were given.
        _check_point_shapes(coords, labels, "(P, 2) and (P,)", _MANY)
        if labels is not None:
            check_labels(labels, allowed=(0, 1))
        if one_box is not None and one_box.shape == (1, 4):
            one_box = one_box[0]
        _check_shape("box", one_box, (4,), "numbers x0, y0, x1, y1", _MANY)
        _check_shape("mask_input", mask, self._mask_shape, _LOGITS, _MANY)
        coords, labels, boxes, masks = (
            None if part is None else part[None] for part in (coords, labels, one_box, mask)
        )
        texts = None if text_embedding is None else np.asarray(text_embedding)[None]
        many = self.predict_many(coords, labels, boxes, masks, multimask_output, return_logits, texts)
        return PredictedMasks(*(part[0] for part in many))

    def predict_many(
        self,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        boxes: np.ndarray | None = None,
        mask_inputs: np.ndarray | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        text_embeddings: np.ndarray | None = None,
    ) -> PredictedMasks:
        """Masks of N objects at once; arguments are those of `predict` with a leading axis N.

        Args:
          point_coords: (N, P, 2); pad ragged counts with points of label -1.
          point_labels: (N, P) 1, 0, or -1 for absent.
          boxes: (N, 4).
          mask_inputs: (N, 1, 4h, 4w).
          text_embeddings: (N, E).

        Raises:
          RuntimeError: no image is set.
          ValueError: a prompt has another shape, is outside the image, or prompts disagree on N.
        """
        self._image()
        prompts = self._collect(point_coords, point_labels, boxes, mask_inputs, text_embeddings)
        predictions = self._decode_in_buckets(prompts)
        wanted = slice(1, None) if multimask_output else slice(0, 1)
        low_res, ious = predictions.low_res_masks[:, wanted], predictions.iou_predictions[:, wanted]
        masks = np.empty((*low_res.shape[:2], *self._sizes()[1]), np.float32 if return_logits else bool)
        for number, logits in enumerate(self._at_edges(low_res, prompts)):
            for index, one in enumerate(logits):
                enlarged = np.asarray(self._to_original_frame(one))
                masks[number, index] = enlarged if return_logits else enlarged > self.model.config.mask_threshold
        return PredictedMasks(masks, ious, low_res)

    @property
    def _mask_shape(self) -> tuple[int, int, int]:
        side = 4 * self.model.config.image_encoder.grid_size
        return 1, side, side

    def _image(self) -> EncodedImages:
        if self._encoded is None:
            raise RuntimeError("no image is set; call set_image(image) first")
        return self._encoded

    def _sizes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        assert self.input_size is not None
        assert self.original_size is not None
        return self.input_size, self.original_size

    def _to_original_frame(self, low_res_mask: np.ndarray) -> jax.Array:
        side = self.model.config.image_size
        return _enlarge(low_res_mask, *self._sizes(), (side, side))

    def _at_edges(self, low_res: np.ndarray, prompts: Prompts) -> Iterator[Any]:
        """Yields the logits (M, l, l) of each object, with edge refinement if `SamConfig.crf` is on."""
        image = self._image()
        if image.pixels is None:
            yield from low_res
            return
        pixels = image.one(0).pixels
        limits, patch = box_limits(prompts), self.model.config.image_encoder.patch_size
        for number, logits in enumerate(low_res):
            yield _to_edges(logits[None], pixels, limits[number, None], patch_size=patch)[0]

    def _collect(
        self,
        point_coords: np.ndarray | None,
        point_labels: np.ndarray | None,
        boxes: np.ndarray | None,
        mask_inputs: np.ndarray | None,
        text_embeddings: np.ndarray | None = None,
    ) -> Prompts:
        """Checked numpy prompts (N, ...) in pixels of the input frame; absent points and boxes are flagged as such."""
        input_size, original_size = self._sizes()
        coords, labels = _check_points(point_coords, point_labels, original_size)
        checked_boxes = _check_boxes(boxes, original_size)
        masks = _check_masks(mask_inputs, self._mask_shape)
        texts = check_text_embeddings(text_embeddings, self.model.config.text_embed_dim)
        counts = {len(part) for part in (coords, checked_boxes, masks, texts) if part is not None} or {1}
        if len(counts) > 1:
            raise ValueError(f"prompts disagree on the number of objects: {sorted(counts)}; give each kind for all")
        n = counts.pop()
        if coords is None:
            coords, labels = np.zeros((n, 0, 2)), np.zeros((n, 0), np.int32)
        has_box = checked_boxes is not None
        if checked_boxes is None:
            checked_boxes = np.zeros((n, 4))
        return Prompts(
            point_coords=to_input_frame(coords, original_size, input_size).astype(np.float32),
            point_labels=labels,
            boxes=boxes_to_input_frame(checked_boxes, original_size, input_size).astype(np.float32),
            box_valid=np.full(n, has_box),
            mask_inputs=masks,
            mask_valid=None if masks is None else np.full(n, True),
            text_embeddings=texts,
        )

    def _decode_in_buckets(self, prompts: Prompts) -> MaskPredictions:
        """Pads points and prompts to bucket sizes and decodes; numpy in, numpy (N, ...) out."""
        n, points = prompts.point_labels.shape  # type: ignore[union-attr]
        if not n:
            return self._no_predictions()
        slots = bucket_size(points, POINT_BUCKETS)
        spare = [(0, 0), (0, slots - points)]
        prompts = prompts.replace(  # type: ignore[attr-defined]
            point_coords=np.pad(prompts.point_coords, [*spare, (0, 0)]),  # type: ignore[arg-type]
            point_labels=np.pad(prompts.point_labels, spare, constant_values=-1),  # type: ignore[arg-type]
        )
        if n == 1 and prompts.mask_inputs is None:  # interactive use: one program with or without a mask
            empty = np.zeros(self._mask_shape, np.float32)
            prompts = prompts.replace(mask_inputs=empty, mask_valid=np.zeros(1, bool))  # type: ignore[attr-defined]
        size = bucket_size(min(n, PROMPT_BUCKETS[-1]), PROMPT_BUCKETS)
        parts = [self._decode_padded(_rows(prompts, start, size), n - start) for start in range(0, n, size)]
        return jax.tree.map(lambda *xs: np.concatenate(xs), *parts)

    def _no_predictions(self) -> MaskPredictions:
        masks = self.model.config.mask_decoder.num_masks
        low_res = np.zeros((0, masks, *self._mask_shape[1:]), np.float32)
        return MaskPredictions(low_res, np.zeros((0, masks), np.float32))

    def _decode_padded(self, prompts: Prompts, count: int) -> MaskPredictions:
        out = _decode(self.model, self.variables, self._prepared, prompts)
        return jax.tree.map(lambda x: np.asarray(x)[0, :count], out)


def _rows(prompts: Prompts, start: int, size: int) -> Prompts:
    """Rows start to start + size - 1 of every part as (1, size, ...); the last row is repeated past the end."""

    def take(x: np.ndarray) -> np.ndarray:
        index = np.minimum(np.arange(start, start + size), len(x) - 1)
        return x[index][None]

    return jax.tree.map(take, prompts)


def check_labels(labels: np.ndarray, allowed: tuple[int, ...]) -> None:
    """Raises ValueError that names the first label, in an array of any shape, that is not allowed."""
    wrong = labels[~np.isin(labels, allowed)]
    if wrong.size:
        raise ValueError(f"point label {wrong[0]:g} is neither 1 (on the object) nor 0 (off it)")


def _check_shape(name: str, value: np.ndarray | None, shape: tuple[int | str, ...], what: str, remedy: str) -> None:
    """Raises ValueError unless the value is None or has that shape, where "N" stands for any length."""
    if value is None:
        return
    if value.ndim == len(shape) and all(want in (have, "N") for have, want in zip(value.shape, shape, strict=True)):
        return
    expected = f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"
    end = f"; {remedy}" if value.ndim != len(shape) else ""
    raise ValueError(f"{name} has shape {value.shape}; expected {expected} {what}{end}")


def _check_point_shapes(coords: np.ndarray | None, labels: np.ndarray | None, expected: str, remedy: str) -> None:
    """Raises ValueError unless both or neither are given and their shapes are those of `expected`."""
    if coords is None and labels is None:
        return
    if coords is None or labels is None:
        missing = "point_coords" if coords is None else "point_labels"
        raise ValueError(f"{missing} is missing; points need coordinates and labels together")
    axes = expected.partition(")")[0].count(",") + 1
    if coords.ndim != axes or coords.shape[-1] != 2 or labels.shape != coords.shape[:-1]:
        end = f"; {remedy}" if coords.ndim != axes else ""
        raise ValueError(
            f"point_coords has shape {coords.shape} and point_labels {labels.shape}; expected {expected}{end}"
        )


def _check_points(
    coords: np.ndarray | None, labels: np.ndarray | None, original_size: tuple[int, int]
) -> tuple[np.ndarray | None, np.ndarray | None]:
    coords, labels = _numbers("point_coords", coords), _numbers("point_labels", labels)
    _check_point_shapes(coords, labels, "(N, P, 2) and (N, P)", _ONE)
    if coords is None or labels is None:
        return None, None
    check_labels(labels, allowed=(-1, 0, 1))
    h, w = original_size
    inside = np.isfinite(coords).all(axis=-1) & (coords >= 0).all(axis=-1) & (coords <= (w, h)).all(axis=-1)
    outside = coords[~inside & (labels >= 0)]
    if outside.size:
        raise ValueError(f"point {outside[0][0]:g},{outside[0][1]:g} lies outside the image, which is {w}x{h} pixels")
    # Absent points may hold any values; NaN would propagate through the model.
    return np.where((labels >= 0)[..., None], coords, 0.0), labels.astype(np.int32)


def _check_boxes(boxes: np.ndarray | None, original_size: tuple[int, int]) -> np.ndarray | None:
    boxes = _numbers("boxes", boxes)
    _check_shape("boxes", boxes, ("N", 4), "numbers x0, y0, x1, y1 of each object", _ONE)
    if boxes is None:
        return None
    h, w = original_size
    for box in boxes:
        x0, y0, x1, y1 = box
        text = ",".join(f"{v:g}" for v in box)
        if not (np.isfinite(box).all() and x0 < x1 and y0 < y1):
            raise ValueError(f"box {text} is empty; expected x0 < x1 and y0 < y1 (corners, not width and height)")
        if x1 <= 0 or y1 <= 0 or x0 >= w or y0 >= h:
            raise ValueError(f"box {text} lies outside the image, which is {w}x{h} pixels")
    return boxes


def _check_masks(masks: np.ndarray | None, shape: tuple[int, int, int]) -> np.ndarray | None:
    given = _numbers("mask_inputs", masks, dtype=None)
    _check_shape("mask_inputs", given, ("N", *shape), _LOGITS, _ONE)
    if given is None:
        return None
    if given.dtype.kind != "f":
        raise ValueError(f"a mask input has dtype {given.dtype}; expected float logits, not a binary mask")
    with np.errstate(over="ignore"):
        logits = given.astype(np.float32)
    if not np.isfinite(logits).all():
        raise ValueError("a mask input has values that are not finite in float32; expected logits")
    return logits[:, 0]


def _numbers(name: str, value: Any, dtype: type | None = np.float64) -> Any:
    """The value as an array; None stays None. Raises ValueError if it is not a regular array of numbers."""
    if value is None:
        return None
    try:
        with np.errstate(over="ignore"):
            array = np.asarray(value)
            return array if dtype is None else array.astype(dtype)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is not an array of numbers ({error}); give a regular array") from error
