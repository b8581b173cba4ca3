"""Masks of a stored image: `SamPredictor`, whose prompts are decoded together with those of others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import numpy as np

from sam_jax.inference.buckets import bucket_size
from sam_jax.inference.predictor import POINT_BUCKETS, SamPredictor
from sam_jax.models.sam import Sam
from sam_jax.ops.masks import axis_matrix
from sam_jax.serving.decoding_queue import DecodingQueue
from sam_jax.serving.image_store import StoredImage
from sam_jax.structs import MaskPredictions, Prompts


class ObjectPrompt(NamedTuple):
    """What a client says of one object; as the arguments of `SamPredictor.predict`."""

    point_coords: np.ndarray | None
    point_labels: np.ndarray | None
    box: np.ndarray | None
    mask_input: np.ndarray | None
    text_embedding: np.ndarray | None = None


class FoundMask(NamedTuple):
    """mask (H, W) bool in the image's pixels, its predicted IoU, and the decoder's own logits (l, l)."""

    mask: np.ndarray
    predicted_iou: float
    low_res_mask: np.ndarray


class StoredPredictor(SamPredictor):
    """A predictor of an image that is encoded already."""

    def __init__(self, model: Sam, variables: dict[str, Any], image: StoredImage, decoding: DecodingQueue) -> None:
        super().__init__(model, variables)
        self._decoding, self._encoded, self._prepared = decoding, image.encoded, image.prepared
        self.original_size, self.input_size = image.original_size, image.input_size

    def submit(self, objects: Sequence[ObjectPrompt]) -> list[tuple[Prompts, Future[MaskPredictions]]]:
        """Checks all prompts, then hands them to the decoder. Raises ValueError as `predict` does."""
        assert self._prepared is not None
        collected = [self._of_one(one) for one in objects]
        return [(prompts, self._decoding.submit(self._prepared, prompts)) for prompts in collected]

    def masks(
        self, waiting: Sequence[tuple[Prompts, Future[MaskPredictions]]], multimask_output: bool
    ) -> Iterator[list[FoundMask]]:
        """The masks of each object, as `predict` gives them. One mask of the image's size is held at a time."""
        wanted = slice(1, None) if multimask_output else slice(0, 1)
        for prompts, answer in waiting:
            found = answer.result()
            low_res, iou = found.low_res_masks[wanted], found.iou_predictions[wanted]
            (logits,) = self._at_edges(low_res[None], _without_batch(prompts))
            yield [
                FoundMask(self._enlarged(np.asarray(one)), float(score), low)
                for one, score, low in zip(logits, iou, low_res, strict=True)
            ]

    def _of_one(self, one: ObjectPrompt) -> Prompts:
        coords, labels, box, mask, text = (None if part is None else part[None] for part in one)
        prompts = self._collect(coords, labels, box, mask, text)
        if width := self.model.config.text_embed_dim:  # one program with or without a text
            texts = np.zeros((1, width), np.float32) if text is None else prompts.text_embeddings
            prompts = prompts.replace(text_embeddings=texts, text_valid=np.full(1, text is not None))  # type: ignore[attr-defined]
        if prompts.mask_inputs is None:
            empty = np.zeros(self._mask_shape, np.float32)
            prompts = prompts.replace(mask_inputs=empty, mask_valid=np.zeros(1, bool))  # type: ignore[attr-defined]
        points = prompts.point_labels.shape[1]  # type: ignore[union-attr]
        spare = [(0, 0), (0, bucket_size(points, POINT_BUCKETS) - points)]
        prompts = prompts.replace(  # type: ignore[attr-defined]
            point_coords=np.pad(prompts.point_coords, [*spare, (0, 0)]),  # type: ignore[arg-type]
            point_labels=np.pad(prompts.point_labels, spare, constant_values=-1),  # type: ignore[arg-type]
        )
        return _mapped(prompts, lambda x: x[None])

    def _enlarged(self, logits: np.ndarray) -> np.ndarray:
        """On the host: a program for each size that an image may have would fill the memory."""
        sizes, side = self._sizes(), self.model.config.image_size
        rows, columns = (
            _enlargement(low, side, inner, outer) for low, inner, outer in zip(logits.shape, *sizes, strict=True)
        )
        enlarged = np.matmul(np.matmul(rows, logits), columns.T)
        return np.asarray(enlarged > self.model.config.mask_threshold)


# Masks of one image come together.
_enlargement = lru_cache(maxsize=16)(axis_matrix)


def _without_batch(prompts: Prompts) -> Prompts:
    return _mapped(prompts, lambda x: x[0])


def _mapped(prompts: Prompts, change: Any) -> Prompts:
    mapped: Prompts = jax.tree.map(change, prompts)
    return mapped
