"""A model at work for many users: images are encoded one after the other, prompts decoded together.

Everything here is called from threads; app.py speaks HTTP.
"""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

from sam_jax.config import ServingConfig
from sam_jax.inference.automatic_mask_generator import Record, SamAutomaticMaskGenerator
from sam_jax.inference.encoding import encode_and_wait, prepare_embeddings
from sam_jax.inference.images import ImageError, decode_image
from sam_jax.inference.predictor import POINT_BUCKETS
from sam_jax.models.sam import Sam, inference_variables
from sam_jax.ops.boxes import xyxy_to_xywh
from sam_jax.ops.masks import mask_to_box
from sam_jax.ops.rle import encode_mask
from sam_jax.ops.transforms import pad_to_square, resize_longest_side
from sam_jax.serving.decoding_queue import DecodingQueue
from sam_jax.serving.image_store import ImageStore, StoredImage
from sam_jax.serving.metrics import Metrics
from sam_jax.serving.phrases import PhraseSearch
from sam_jax.serving.refusals import Refusal
from sam_jax.serving.schemas import (
    EverythingIn,
    MaskOut,
    MasksIn,
    MasksOut,
    ObjectIn,
    ObjectOut,
    Rle,
    encoded_logits,
    object_prompt,
)
from sam_jax.serving.segmenting import FoundMask, ObjectPrompt, StoredPredictor
from sam_jax.text.embedding import LoadedTowers

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_PNG_LEVEL = 1  # masks are easy: more takes time and saves little


class SegmentationService:
    """What the routes call. Close it when done."""

    def __init__(
        self,
        model: Sam,
        variables: dict[str, Any],
        name: str,
        config: ServingConfig,
        towers: LoadedTowers | None = None,
    ) -> None:
        self.model, self.name, self.config = model, name, config
        self.phrase_search = None if towers is None else PhraseSearch(towers, self.pixels, self.everything)
        width = model.config.text_embed_dim
        if towers is not None and width not in (0, towers.embed_dim):
            raise ValueError(f"the text model gives {towers.embed_dim} numbers, but {name} was trained with {width}")
        self.variables = inference_variables(model.config, variables)
        self.metrics = Metrics()
        self.images = ImageStore(config.cache_megabytes * 1e6)
        self._decoding = DecodingQueue(model, self.variables, config.max_batch, self.metrics.batch.observe)
        # Encoders fill a device by themselves. Reading an image takes a host's core, and waits for none.
        self._encoder = ThreadPoolExecutor(1, "encoder")
        self.workers = ThreadPoolExecutor(config.threads, "masks")
        self.readers = ThreadPoolExecutor(2, "images")
        self.everything_workers = ThreadPoolExecutor(config.everything_runs, "everything")

    @property
    def low(self) -> int:
        """Side of a low-resolution mask."""
        return 4 * self.model.config.image_encoder.grid_size

    @property
    def embedding_shape(self) -> list[int]:
        """Of an image, channels first."""
        grid = self.model.config.image_encoder.grid_size
        return [1, self.model.config.embedding_channels, grid, grid]

    def warm_up(self) -> None:
        """Compiles what a first user would wait for: the encoder, and the decoder for all sizes of batches."""
        side = self.model.config.image_size
        content = io.BytesIO()
        Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(content, "PNG")
        name = self.add_image(content.getvalue())
        predictor = self._predictor(self.images.get(name))
        for points in (1, POINT_BUCKETS[0] + 1):
            one = ObjectPrompt(np.zeros((points, 2)), np.ones(points), None, None)
            ((prompts, _),) = predictor.submit([one])
            self._decoding.compile(self.images.get(name).prepared, prompts)
        for several in (True, False):
            list(predictor.masks(predictor.submit([one]), several))
        self.images.remove(name)

    def close(self) -> None:
        """Finishes what was begun."""
        for pool in (self.readers, self._encoder, self.everything_workers, self.workers):
            pool.shutdown()
        self._decoding.close()

    def add_image(self, content: bytes) -> str:
        """Encodes an image file; its id. Raises Refusal (4xx) for what is no image that is taken."""
        image = self._decoded(content)
        side = self.model.config.image_size
        resized = resize_longest_side(image, side)
        frame = pad_to_square(resized, side)[None]
        encoded = self._encoder.submit(self._encode, frame, np.array([resized.shape[:2]], np.int32)).result()
        prepared = prepare_embeddings(self.model, self.variables, encoded.embeddings)
        return self.images.put(StoredImage(content, image.shape[:2], resized.shape[:2], encoded, prepared))

    def embedding(self, name: str) -> bytes:
        """An image's embedding (1, C, h, w): little-endian float16."""
        embeddings = np.asarray(self.images.get(name).encoded.embeddings).transpose(0, 3, 1, 2)
        limit = np.finfo(np.float16).max
        return np.clip(embeddings, -limit, limit).astype("<f2").tobytes()

    def find_masks(self, name: str, wanted: MasksIn) -> MasksOut:
        """Masks of objects. Raises Refusal (404, 422)."""
        image = self.images.get(name)
        predictor = self._predictor(image)
        try:
            waiting = predictor.submit([self._object_prompt(one) for one in wanted.objects])
        except ValueError as error:
            raise Refusal(422, str(error)) from error
        objects = [
            ObjectOut(masks=[_mask_out(mask, wanted) for mask in masks])
            for masks in predictor.masks(waiting, wanted.multimask_output)
        ]
        return MasksOut(image_id=name, size=image.original_size, objects=objects)

    def find_everything(
        self, name: str, wanted: EverythingIn, on_progress: Callable[[int, int], None]
    ) -> tuple[tuple[int, int], list[Record]]:
        """Size and records of all that is in an image, with run lengths.

        Args:
          on_progress: told how many points are done, and of how many. What it raises ends the work.
        """
        pixels = self.pixels(name)
        return pixels.shape[:2], self.everything(pixels, wanted.model_dump(), on_progress)

    def everything(
        self, pixels: np.ndarray, options: dict[str, Any], on_progress: Callable[[int, int], None]
    ) -> list[Record]:
        """The records of `find_everything`, of an image (H, W, 3) uint8 and options of everything mode."""
        size = pixels.shape[:2]
        try:
            generator = SamAutomaticMaskGenerator(self.model, self.variables, output_mode="coco_rle", **options)
        except ValueError as error:
            raise Refusal(422, str(error)) from error
        done, total = 0, generator.count_points(size)

        def on_points(count: int) -> None:
            nonlocal done
            on_progress(done, total)
            done += count

        found = generator.find(pixels, on_points)
        on_progress(total, total)
        return generator.records(found, size)

    def pixels(self, name: str) -> np.ndarray:
        """An image (H, W, 3) uint8. Raises Refusal (404)."""
        return self._decoded(self.images.get(name).content)

    def _object_prompt(self, given: ObjectIn) -> ObjectPrompt:
        if given.text is None:
            return object_prompt(given, self.low)
        if self.phrase_search is None:
            raise Refusal(422, "the server has no text model; start it with --text-model DIR")
        if not self.model.config.text_embed_dim:
            raise Refusal(422, f"{self.name} was not trained with text prompts; /v1/images/{{id}}/text finds phrases")
        return object_prompt(given, self.low, self.phrase_search.embed(given.text))

    def _predictor(self, image: StoredImage) -> StoredPredictor:
        return StoredPredictor(self.model, self.variables, image, self._decoding)

    def _encode(self, frame: np.ndarray, input_sizes: np.ndarray) -> Any:
        start = time.perf_counter()
        encoded = encode_and_wait(self.model, self.variables, frame, input_sizes)
        self.metrics.encoder_seconds.observe(time.perf_counter() - start)
        return encoded

    def _decoded(self, content: bytes) -> np.ndarray:
        if not content:
            raise Refusal(422, "the request has no image: send the file's bytes as its body")
        try:
            return decode_image(content, "the image", int(self.config.max_megapixels * 1e6), FORMATS)
        except ImageError as error:
            raise Refusal(422, str(error)) from error
        except MemoryError as error:
            raise Refusal(413, "the image is too large for the server's memory") from error


def _mask_out(found: FoundMask, wanted: MasksIn) -> MaskOut:
    segmentation: Rle | str
    if wanted.format == "rle":
        segmentation = Rle(**encode_mask(found.mask))
    else:
        content = io.BytesIO()
        Image.fromarray(found.mask).save(content, "PNG", compress_level=_PNG_LEVEL)
        segmentation = base64.b64encode(content.getvalue()).decode("ascii")
    return MaskOut(
        segmentation=segmentation,
        predicted_iou=found.predicted_iou,
        area=int(found.mask.sum()),
        bbox=xyxy_to_xywh(mask_to_box(found.mask)).tolist(),
        low_res_mask=encoded_logits(found.low_res_mask) if wanted.low_res_masks else None,
    )
