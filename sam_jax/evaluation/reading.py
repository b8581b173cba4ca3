"""Images of a set, read ahead in threads while the model works."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from tqdm import tqdm

from sam_jax.data.records import DataError
from sam_jax.evaluation.options import EvaluationOptions
from sam_jax.evaluation.sets.image_sets import ImageSet, LabelledImage

log = logging.getLogger(__name__)


@dataclass
class SetReader:
    """Reads the images that the options select; those without a mask do not count.

    Attributes:
      skipped: error messages of images that could not be read; they are skipped, with a warning.
    """

    image_set: ImageSet
    options: EvaluationOptions
    pool: ThreadPoolExecutor
    progress: bool = False
    skipped: list[str] = field(default_factory=list)

    def images(self) -> Iterator[tuple[int, LabelledImage]]:
        """Yields (index in the set, image). Raises DataError if not a single mask was found."""
        order = self.options.order(len(self.image_set)).tolist()
        ahead: deque[tuple[int, Future[LabelledImage]]] = deque()
        masks, waiting = 0, iter(order)
        with tqdm(total=len(order), desc=self.image_set.name, unit="image", disable=not self.progress) as bar:
            for _ in order:
                while len(ahead) < 2 * self.options.images_per_batch and (index := next(waiting, None)) is not None:
                    ahead.append((index, self.pool.submit(self.image_set.__getitem__, index)))
                index, future = ahead.popleft()
                image = self._result(future)
                if image is not None and image.segmentations:
                    masks += len(image.segmentations)
                    yield index, image
                bar.update()
                bar.set_postfix(masks=masks)
                if self.options.max_masks is not None and masks >= self.options.max_masks:
                    break
        for _, future in ahead:
            future.cancel()
        if not masks:
            why = f"; {self.skipped[0]}" if self.skipped else ""
            raise DataError(f"{self.image_set.name}: no mask in {len(order)} images, so nothing to evaluate{why}")

    def batches(self) -> Iterator[list[tuple[int, LabelledImage]]]:
        """The images, `images_per_batch` at a time."""
        batch = []
        for item in self.images():
            batch.append(item)
            if len(batch) == self.options.images_per_batch:
                yield batch
                batch = []
        if batch:
            yield batch

    def _result(self, future: Future[LabelledImage]) -> LabelledImage | None:
        try:
            return future.result()
        except DataError as error:
            log.warning("left out: %s", error)
            self.skipped.append(str(error))
            return None
