"""Segmenters: everything mode and prompts, each split into a device's part and a host's part.

A segmenter has `find(image, objects)` and `records(found, size)`, called by different threads, so that the device does
not wait for the host, and `on_device(device)`, which copies it to another device. `sam_jax.batch.stream` runs it over
many images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from PIL import Image

from sam_jax.batch.prompt_files import ImageObjects, ObjectPrompt
from sam_jax.batch.tiles import TileLayout, find_in_tiles, merge_tiles
from sam_jax.inference.automatic_mask_generator import SamAutomaticMaskGenerator
from sam_jax.inference.images import as_array
from sam_jax.inference.overlays import mask_record
from sam_jax.inference.predictor import SamPredictor
from sam_jax.models.sam import Sam
from sam_jax.text.embedding import LoadedTowers

Record = dict[str, Any]
Size = tuple[int, int]
# Objects whose masks are enlarged at once; an unpacked mask of 10 megapixels takes 10 MB.
OBJECTS_AT_ONCE = 16


class Segmenter(Protocol):
    """See the top of this file."""

    def find(self, image: np.ndarray, objects: ImageObjects | None) -> Any:
        """The device's part; `records` takes its result. `image` is (H, W, 3) uint8."""

    def records(self, found: Any, size: Size) -> list[Record]:
        """The host's part; `segmentation` of each record is a compressed COCO RLE. `size` is (H, W) of the image."""

    def on_device(self, device: jax.Device) -> Segmenter:
        """A copy with its variables on a device."""


class EverythingSegmenter:
    """Everything mode; with `tile`, on tiles of the image that are merged afterwards (see `tiles`)."""

    def __init__(
        self,
        model: Sam,
        variables: Any,
        *,
        tile: int | None = None,
        tile_overlap: int | None = None,
        tile_iou_thresh: float = 0.5,
        **options: Any,
    ) -> None:
        """Takes a model and options.

        Args:
          tile: side of the tiles, pixels; images that fit into one tile are not split.
          tile_overlap: pixels, less than half a tile; None means a quarter of a tile.
          tile_iou_thresh: masks of two tiles with at least this IoU in the tiles' overlap are one object.
          options: fields of `AmgConfig`.

        Raises:
          ValueError: an option is unknown or out of range.
        """
        if tile is None and tile_overlap is not None:
            raise ValueError("tile_overlap has no effect without tile; give the side of the tiles, too")
        if tile is not None and tile < 1:
            raise ValueError(f"tile must be a number of pixels, not {tile}")
        overlap = (tile or 0) // 4 if tile_overlap is None else tile_overlap
        if tile is not None and not 0 < 2 * overlap < tile:
            raise ValueError(f"tile_overlap must be at least 1 and less than half of tile ({tile}), not {overlap}")
        self._tile, self._overlap, self._iou_thresh = tile, overlap, tile_iou_thresh
        self._options = options
        self._generator = SamAutomaticMaskGenerator(model, variables, **options | {"output_mode": "coco_rle"})

    def find(self, image: np.ndarray | Image.Image, objects: ImageObjects | None = None) -> Any:
        """Candidates of the image, or pieces of its tiles. Takes no prompts."""
        image = as_array(image)
        layout = self._layout(image.shape[:2])
        return self._generator.find(image) if layout is None else find_in_tiles(self._generator, image, layout)

    def records(self, found: Any, size: Size) -> list[Record]:
        """Records as in `SamAutomaticMaskGenerator.generate`, with compressed COCO RLEs."""
        layout = self._layout(size)
        if layout is None:
            return self._generator.records(found, size)
        return merge_tiles(found, layout, self._iou_thresh, self._generator.config.crop_nms_thresh)

    def on_device(self, device: jax.Device) -> EverythingSegmenter:
        """A copy with its variables on a device."""
        tiling = {"tile": self._tile, "tile_overlap": self._overlap} if self._tile is not None else {}
        return EverythingSegmenter(
            self._generator.model,
            jax.device_put(self._generator.variables, device),
            tile_iou_thresh=self._iou_thresh,
            **tiling,
            **self._options,
        )

    def _layout(self, size: Size) -> TileLayout | None:
        if self._tile is None or max(size) <= self._tile:
            return None
        return TileLayout(size, self._tile, self._overlap)


@dataclasses.dataclass(frozen=True, eq=False)
class FoundObject:
    """A mask as packed bits, (H, W / 8) uint8 in row-major order, its predicted IoU and its prompt."""

    bits: np.ndarray
    predicted_iou: float
    prompt: ObjectPrompt


class PromptedSegmenter:
    """One mask per object of an image's prompts; for a single point, the best of three by predicted IoU.

    Texts are prompts of a model that was trained with them (`SamConfig.text_embed_dim`), and of its text model alone.
    """

    def __init__(self, model: Sam, variables: Any, towers: LoadedTowers | None = None) -> None:
        self._predictor, self._towers = SamPredictor(model, variables), towers
        width = model.config.text_embed_dim
        if towers is not None and width and towers.embed_dim != width:
            raise ValueError(
                f"the text model's embeddings are {towers.embed_dim} wide, and the model was trained with {width}; "
                "give the text model of its training"
            )

    def find(self, image: np.ndarray | Image.Image, objects: ImageObjects | None) -> list[FoundObject]:
        """A mask per object, in the order of the objects.

        Raises:
          ValueError: a prompt is outside the image, or a box is empty.
        """
        prompts = () if objects is None else objects.objects
        found: dict[int, FoundObject] = {}
        if prompts:
            self._predictor.set_image(image)
        for numbers in _slices(prompts):
            part = [prompts[i] for i in numbers]
            arrays = _arrays(part) | {"text_embeddings": self._embed(part)}
            masks, ious, _ = self._predictor.predict_many(**arrays, multimask_output=_is_ambiguous(part[0]))
            for row, (number, prompt) in enumerate(zip(numbers, part, strict=True)):
                best = int(ious[row].argmax())
                found[number] = FoundObject(np.packbits(masks[row, best], axis=1), float(ious[row, best]), prompt)
        self._predictor.reset_image()
        return [found[number] for number in range(len(prompts))]

    def records(self, found: Sequence[FoundObject], size: Size) -> list[Record]:
        """Records in SA-1B's format, with the prompt and its `extra` fields."""
        records = []
        for number, one in enumerate(found):
            mask = np.unpackbits(one.bits, axis=1, count=size[1]).astype(bool)
            record = mask_record(number, mask, one.predicted_iou, _prompt_fields(one.prompt))
            if one.prompt.text is not None:
                record.setdefault("score", one.predicted_iou)
            records.append({key: value for key, value in record.items() if key != "id"})
        return records

    def on_device(self, device: jax.Device) -> PromptedSegmenter:
        """A copy with its variables on a device."""
        towers = None if self._towers is None else self._towers.on_device(device)
        return PromptedSegmenter(self._predictor.model, jax.device_put(self._predictor.variables, device), towers)

    def _embed(self, prompts: Sequence[ObjectPrompt]) -> np.ndarray | None:
        """Embeddings (n, E) of the texts of prompts that all have one, or none."""
        if prompts[0].text is None:
            return None
        if self._towers is None:
            raise ValueError("prompts have texts, and no text model is given; give one (--text-model)")
        return self._towers.embed_texts([str(prompt.text) for prompt in prompts])


def _is_ambiguous(prompt: ObjectPrompt) -> bool:
    alone = len(prompt.points) == 1 if prompt.text is None else not prompt.points
    return alone and prompt.box is None


def _slices(prompts: Sequence[ObjectPrompt]) -> Iterator[list[int]]:
    """Indices of prompts that are decoded together: of the same kinds, at most OBJECTS_AT_ONCE."""
    kinds: dict[tuple[bool, ...], list[int]] = {}
    for number, prompt in enumerate(prompts):
        has = bool(prompt.points), prompt.box is not None, prompt.text is not None
        kinds.setdefault((*has, _is_ambiguous(prompt)), []).append(number)
    for numbers in kinds.values():
        for start in range(0, len(numbers), OBJECTS_AT_ONCE):
            yield numbers[start : start + OBJECTS_AT_ONCE]


def _arrays(prompts: Sequence[ObjectPrompt]) -> dict[str, Any]:
    """Arguments of `predict_many`; absent points have the label -1."""
    most = max(len(prompt.points) for prompt in prompts)
    coords = np.zeros((len(prompts), most, 2))
    labels = np.full((len(prompts), most), -1)
    for row, prompt in enumerate(prompts):
        if prompt.points:
            coords[row, : len(prompt.points)] = prompt.points
            labels[row, : len(prompt.points)] = prompt.labels
    has_box = prompts[0].box is not None
    return {
        "point_coords": coords if most else None,
        "point_labels": labels if most else None,
        "boxes": np.array([prompt.box for prompt in prompts]) if has_box else None,
    }


def _prompt_fields(prompt: ObjectPrompt) -> dict[str, Any]:
    """The prompt of a mask, as its record keeps it."""
    fields: dict[str, Any] = {} if prompt.text is None else {"text": prompt.text}
    if prompt.points:
        fields |= {"point_coords": [list(p) for p in prompt.points], "point_labels": list(prompt.labels)}
    if prompt.box is not None:
        fields["box"] = list(prompt.box)
    return fields | prompt.extra
