"""Exported files in onnxruntime beside the model that they were made of, on an image and prompts of every kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import sam_jax
from sam_jax.convert.errors import ConversionError
from sam_jax.ops.masks import postprocess_masks
from sam_jax.ops.transforms import pad_to_square, resize_longest_side, to_input_frame

# Of embeddings and logits, both of order one: relative to their RMS where that is larger.
EMBEDDING_ERROR, LOGIT_ERROR = 1e-3, 1e-4
IOU_ERROR = 1e-3  # some models' count pixels beside a threshold
NEAR_THRESHOLD = 1e-3  # logits this close to the threshold may fall on either side of it
# Smaller numbers cannot give the same; their masks have to have this mean IoU with the model's.
LEAST_IOU = {"float16": 0.95, "int8": 0.8}
_FEW_POINTS = 2.5  # as in the official export: fewer are ambiguous

Arrays = dict[str, np.ndarray]


class Case(NamedTuple):
    """A prompt as `SamPredictor.predict` takes it: points (P, 2) with labels, and a box (4,)."""

    point_coords: np.ndarray | None
    point_labels: np.ndarray | None
    box: np.ndarray | None


class Reference:
    """The model itself, with an image that is neither square nor of the frame's size."""

    def __init__(self, model: sam_jax.Sam, variables: Any) -> None:
        self.side = model.config.image_size
        self.size = (self.side * 3 // 4 + 1, self.side * 5 // 4 + 3)
        self.image = _image(self.size)
        self.predictor = sam_jax.SamPredictor(model, variables)
        self.predictor.set_image(self.image)

    def image_inputs(self) -> Arrays:
        """What encoders take."""
        frame = pad_to_square(resize_longest_side(self.image, self.side), self.side)
        return {"input_image": frame[None], "orig_im_size": np.array(self.size, np.float32)}

    def embeddings(self) -> Arrays:
        """What encoders give: image_embeddings, and image_details where the model has them."""
        found, c = np.asarray(self.predictor.get_image_embedding()), self.predictor.model.config.prompt_embed_dim
        details = {"image_details": found[:, c:]} if found.shape[1] > c else {}
        return {"image_embeddings": found[:, :c], **details}

    def cases(self) -> list[Case]:
        """Prompts of every kind."""
        h, w = self.size
        points = np.array([[0.3, 0.4], [0.7, 0.6], [0.45, 0.8]]) * (w, h)
        box = np.array([0.2, 0.1, 0.8, 0.9]) * (w, h, w, h)
        return [
            Case(points[:1], np.array([1]), None),
            Case(points[:2], np.array([1, 0]), None),
            Case(None, None, box),
            Case(points, np.array([1, 0, 1]), box),
        ]

    def predict(self, case: Case, mask_input: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Logits (M, H, W), predicted IoUs (M,) and low-resolution logits (M, l, l) of all masks."""
        every = [
            self.predictor.predict(*case, mask_input, multimask_output=several, return_logits=True)
            for several in (False, True)
        ]
        masks, iou, low_res = (np.concatenate(parts) for parts in zip(*every, strict=True))
        return masks, iou, low_res

    def prompt_inputs(self, case: Case, mask_input: np.ndarray | None) -> Arrays:
        """What decoders take, as the official export's users make it: a point of label -1 where there is no box."""
        input_size = self.predictor.input_size
        assert input_size is not None
        coords, labels = [np.zeros((0, 2))], [np.zeros(0)]
        if case.point_coords is not None and case.point_labels is not None:
            coords, labels = [*coords, case.point_coords], [*labels, case.point_labels]
        if case.box is not None:
            coords, labels = [*coords, case.box.reshape(2, 2)], [*labels, np.array([2, 3])]
        else:
            coords, labels = [*coords, np.zeros((1, 2))], [*labels, np.array([-1])]
        low = 4 * self.predictor.model.config.image_encoder.grid_size
        given = np.zeros((1, low, low), np.float32) if mask_input is None else mask_input
        return {
            "point_coords": to_input_frame(np.concatenate(coords), self.size, input_size)[None].astype(np.float32),
            "point_labels": np.concatenate(labels)[None].astype(np.float32),
            "mask_input": given[None],
            "has_mask_input": np.array([mask_input is not None], np.float32),
        }

    def masks(self, found: Arrays) -> np.ndarray:
        """Logits (M, H, W) of what a decoder gives; one of low resolution leaves enlarging to its caller."""
        if "masks" in found:
            return found["masks"][0]
        logits = found.get("refined_masks", found["low_res_masks"])[0]
        assert self.predictor.input_size is not None
        return np.asarray(postprocess_masks(logits, self.predictor.input_size, self.size, (self.side, self.side)))


def check_encoder(file: Path, reference: Reference, precision: str) -> str:
    """How far an encoder's file is from the model, in words. Raises ConversionError where that is too far."""
    found = _run(file, reference.image_inputs())
    errors = {name: _error(found[name], want) for name, want in reference.embeddings().items()}
    if precision == "float32":
        for name, error in errors.items():
            _require(error <= EMBEDDING_ERROR, f"{file.name}: {name} are off by {error:.1e} of their RMS")
    return f"embeddings within {max(errors.values()):.1e} of the model's"


def check_decoder(file: Path, reference: Reference, precision: str, single: bool) -> str:
    """How far a decoder's file is from the model, in words. Raises ConversionError where that is too far."""
    errors, ious = [], []
    for case in reference.cases():
        earlier = None
        for _ in range(2):  # without a mask prompt, then with the first mask of before
            prompts = reference.prompt_inputs(case, earlier)
            found = _run(file, reference.embeddings() | prompts | reference.image_inputs())
            masks, iou, low_res = reference.predict(case, earlier)
            earlier = low_res[:1]
            if single:
                few = prompts["point_labels"].shape[1] < _FEW_POINTS
                best = 1 + int(iou[1:].argmax()) if few else 0
                masks, iou, low_res = (part[best : best + 1] for part in (masks, iou, low_res))
            errors.append(_error(found["low_res_masks"], low_res[None]))
            iou_error = _error(found["iou_predictions"], iou[None])
            threshold = reference.predictor.model.config.mask_threshold
            inside, wanted = reference.masks(found) > threshold, masks > threshold
            wrong = (inside != wanted) & (abs(masks - threshold) > NEAR_THRESHOLD)
            ious.append((inside & wanted).sum() / max(1, (inside | wanted).sum()))
            if precision == "float32":
                _require(errors[-1] <= LOGIT_ERROR, f"{file.name}: masks' logits are off by {errors[-1]:.1e}")
                _require(iou_error <= IOU_ERROR, f"{file.name}: predicted IoUs are off by {iou_error:.1e}")
                _require(not wrong.any(), f"{file.name}: {wrong.sum()} pixels of masks are others")
    if precision == "float32":
        return f"logits within {max(errors):.1e} of the model's, the same masks"
    agreement = float(np.mean(ious))
    _require(
        agreement >= LEAST_IOU[precision], f"{file.name}: masks have a mean IoU of {agreement:.3f} with the model's"
    )
    return f"masks with a mean IoU of {agreement:.3f} with the model's"


def _run(file: Path, given: Arrays) -> Arrays:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_outputs()]
    wanted = {one.name: given[one.name] for one in session.get_inputs()}
    return dict(zip(names, session.run(names, wanted), strict=True))


def _error(found: np.ndarray, want: np.ndarray) -> float:
    """The largest difference, over the RMS of what is wanted where that is above one."""
    rms = float(np.sqrt(np.mean(np.square(want, dtype=np.float64))))
    return float(abs(found - want).max()) / max(1.0, rms)


def _require(met: bool, problem: str) -> None:
    if not met:
        raise ConversionError(f"{problem}; nothing was written")


def _image(size: tuple[int, int]) -> np.ndarray:
    """Some shapes on a slope of colours: (H, W, 3) uint8."""
    y, x = np.mgrid[: size[0], : size[1]] / np.array(size)[:, None, None]
    image = np.stack([x, y, 1 - x], axis=-1) * 160 + 40
    image[(x - 0.45) ** 2 + (y - 0.5) ** 2 < 0.08] = (200, 60, 40)
    image[(abs(x - 0.75) < 0.1) & (abs(y - 0.6) < 0.2)] = (30, 90, 220)
    noise = np.random.default_rng(0).normal(scale=6, size=image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)
